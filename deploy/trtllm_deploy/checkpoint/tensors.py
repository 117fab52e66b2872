"""The tensors of a TensorRT-LLM checkpoint under their Hugging Face names, one layer at a time.

Comes in: a checkpoint folder, whatever its precision and its tensor and pipeline parallel sizes.
Goes out: weights joined over the ranks with their scales applied, in float32, and how the engine
rounds each linear's input and the KV cache. Holds no more than what was asked for; knows nothing of
models that compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, find_architecture
from trtllm_deploy.checkpoint.trtllm_format import check_checkpoint, rank_files

_LINEARS = {
    # TensorRT-LLM's linear -> Hugging Face's, and whether its output channels are split over ranks
    "attention.qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), True),
    "attention.dense": (("self_attn.o_proj",), False),
    "mlp.fc": (("mlp.gate_proj",), True),  # the one with the activation
    "mlp.gate": (("mlp.up_proj",), True),
    "mlp.proj": (("mlp.down_proj",), False),
}
_SAME = (  # fields of transformers' config too
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "mlp_bias"),
)


@dataclass(frozen=True, slots=True)
class InputRounding:
    """What happens to a linear's input before the product.

    ``smoothing`` multiplies each input channel; ``scale`` is the step of the ``kind`` of numbers
    (fp8: e4m3, int8) that the input is rounded to; None leaves out either.
    """

    kind: str
    scale: float | None
    smoothing: Tensor | None


@dataclass(frozen=True, slots=True)
class KvRounding:
    """The steps of the ``kind`` of numbers (fp8: e4m3, int8) that keys and values are kept in."""

    kind: str
    k_scale: float
    v_scale: float


class LayerTensors(Protocol):
    """A model's tensors, read when they are asked for. ``config`` is that of transformers.

    Names are those of Hugging Face: of a whole model in ``outer``, without the part
    ``model.layers.<N>.`` in the others.
    """

    config: Any

    def outer(self) -> dict[str, Tensor]:
        """Embedding, last norm and head."""

    def layer(self, index: int) -> dict[str, Tensor]:
        """Weights of one layer."""

    def roundings(self, index: int) -> dict[str, InputRounding]:
        """The linears of one layer that round or smooth their input."""

    def kv_rounding(self, index: int) -> KvRounding | None:
        """How one layer's keys and values are rounded, if they are."""


class CheckpointTensors:
    """The :class:`LayerTensors` of a TensorRT-LLM checkpoint.

    Raises UserError: the checkpoint isn't complete, names the file and what it lacks.
    """

    def __init__(self, directory: Path) -> None:
        self.fields = check_checkpoint(directory)
        self.config = hf_config(self.fields)
        self._architecture = ARCHITECTURES[self.config.architectures[0]]
        shards = [_Shard(file) for file in rank_files(directory, self.fields)]
        tp = self.fields["mapping"]["tp_size"]
        self._stages = [shards[first : first + tp] for first in range(0, len(shards), tp)]

    def outer(self) -> dict[str, Tensor]:
        """Embedding, last norm and head; without the rows that pad the vocabulary."""
        first, last, vocabulary = self._stages[0], self._stages[-1], self.fields["vocab_size"]
        return {
            "model.embed_tokens.weight": _stacked(first, "transformer.vocab_embedding.weight")[
                :vocabulary
            ],
            "model.norm.weight": last[0].tensor("transformer.ln_f.weight").float(),
            "lm_head.weight": _stacked(last, "lm_head.weight")[:vocabulary],
        }

    def layer(self, index: int) -> dict[str, Tensor]:
        """Weights of one layer."""
        ranks, ours = self._place(index)
        weights = {
            f"{theirs}.weight": ranks[0].tensor(f"{ours}.{norm}.weight").float()
            for norm, theirs in self._architecture.norms.items()
        }
        for linear, (names, by_output) in _LINEARS.items():
            weights |= _join_linear(ranks, f"{ours}.{linear}", names, by_output, self.fields)
        return weights

    def roundings(self, index: int) -> dict[str, InputRounding]:
        """The linears of one layer that round or smooth their input."""
        ranks, ours = self._place(index)
        found: dict[str, InputRounding] = {}
        for linear, (names, by_output) in _LINEARS.items():
            rounding = _input_rounding(ranks, f"{ours}.{linear}", by_output, self.fields)
            if rounding is not None:
                found |= dict.fromkeys(names, rounding)
        return found

    def kv_rounding(self, index: int) -> KvRounding | None:
        """How one layer's keys and values are rounded: one scale for both, as the engine has."""
        algo = self.fields["quantization"]["kv_cache_quant_algo"]
        if algo is None:
            return None
        ranks, ours = self._place(index)
        scale = ranks[0].tensor(f"{ours}.attention.kv_cache_scaling_factor").item()
        return KvRounding(algo.lower(), scale, scale)

    def rank_numbers(self, index: int) -> range:
        """The ranks that hold one layer."""
        tp = self.fields["mapping"]["tp_size"]
        first = index // self._per_stage * tp
        return range(first, first + tp)

    @property
    def _per_stage(self) -> int:
        return int(self.fields["num_hidden_layers"]) // len(self._stages)

    def _place(self, index: int) -> tuple[list[_Shard], str]:
        """The ranks that hold a layer, and its name in them (numbered from 0 in each stage)."""
        stage, local = divmod(index, self._per_stage)
        return self._stages[stage], f"transformer.layers.{local}"


def hf_config(config: Mapping[str, Any]) -> Any:
    """The transformers config of the model that a checkpoint's config describes."""
    scaling = config["rotary_scaling"] or {"rope_type": "default"}
    rope = {key: value for key, value in scaling.items() if key != "type"}
    rope.setdefault("rope_type", scaling.get("type"))
    architecture = find_architecture(config)
    assert architecture is not None  # read_config saw to it
    return AutoConfig.for_model(
        ARCHITECTURES[architecture].model_type,
        architectures=[architecture],
        **{name: config[name] for name in _SAME},
        head_dim=config["head_size"],
        rms_norm_eps=config["norm_epsilon"],
        rope_parameters={**rope, "rope_theta": config["rotary_base"]},
        attention_bias=config["attn_bias"],
        tie_word_embeddings=False,
        sliding_window=None,  # Mistral's would be 4096 by default
    )


class _Shard:
    """The tensors of one rank, read one at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors = safe_open(file, framework="pt")
        self._names = frozenset(self._tensors.keys())  # type: ignore[no-untyped-call]

    def tensor(self, name: str) -> Tensor:
        if name not in self._names:
            raise UserError(f"tensor '{name}' is missing", where=self.file)
        tensor: Tensor = self._tensors.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def find(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self._names else None


def _stacked(ranks: list[_Shard], name: str) -> Tensor:
    return torch.cat([rank.tensor(name).float() for rank in ranks])


def _join_linear(
    ranks: list[_Shard],
    source: str,
    targets: tuple[str, ...],
    by_output: bool,
    config: Mapping[str, Any],
) -> Iterator[tuple[str, Tensor]]:
    """The weight and bias of one linear (of three for qkv), joined over the ranks."""
    parts = {"weight": [_weight(rank, source, config) for rank in ranks]}
    biases = [rank.find(f"{source}.bias") for rank in ranks]
    if biases[0] is not None:
        parts["bias"] = [rank.tensor(f"{source}.bias").float() for rank in ranks]
    for kind, shards in parts.items():
        if len(targets) == 3:
            for target, joined in zip(targets, _join_qkv(shards, config), strict=True):
                yield f"{target}.{kind}", joined
        elif by_output:
            yield f"{targets[0]}.{kind}", torch.cat(shards)
        else:  # split by input channel; the bias is whole on each rank
            yield f"{targets[0]}.{kind}", torch.cat(shards, 1) if kind == "weight" else shards[0]


def _join_qkv(shards: list[Tensor], config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Each rank's [q; k; v] taken apart and joined; repeated key-value heads are taken once."""
    tp, size, kv_heads = len(shards), config["head_size"], config["num_key_value_heads"]
    q_rows = config["num_attention_heads"] // tp * size
    kv_rows = max(1, kv_heads // tp) * size
    split = [torch.split(shard, [q_rows, kv_rows, kv_rows]) for shard in shards]
    repeats = max(1, tp // kv_heads)
    return (
        torch.cat([q for q, _, _ in split]),
        torch.cat([k for _, k, _ in split[::repeats]]),
        torch.cat([v for _, _, v in split[::repeats]]),
    )


def _weight(rank: _Shard, source: str, config: Mapping[str, Any]) -> Tensor:
    """One rank's weight as the engine's kernels see it, in float32 [output, input]."""
    stored = rank.tensor(f"{source}.weight")
    algo = config["quantization"]["quant_algo"]
    if algo is None:
        return stored.float()
    if algo == "W8A16":
        return weight_only_int8(stored)
    if algo not in _DEQUANTIZE:
        raise UserError(f"quant_algo '{algo}' isn't known", where=rank.file.parent / "config.json")
    return _DEQUANTIZE[algo](stored, rank.tensor(f"{source}.weights_scaling_factor").float())


def weight_only_int8(weight: Tensor) -> Tensor:
    """A [output, input] weight quantized to int8 per output channel and back, in float32.

    As TensorRT-LLM does when it loads a W8A16 checkpoint (symmetric_quantize in
    kernels/cutlass_kernels/cutlass_preprocessors.cpp): scale = absmax / 128, 127 at most, the
    scale kept in the weight's own type.
    """
    scale = weight.float().abs().amax(1, keepdim=True) / 128
    steps = (weight.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return steps.clamp(-128, 127) * scale.to(weight.dtype).float()


def unpack_int4(packed: Tensor) -> Tensor:
    """[output / 2, input] bytes to [output, input] numbers; the even row is in the low nibble."""
    nibbles = torch.stack((packed & 0x0F, (packed >> 4) & 0x0F), dim=1).flatten(0, 1).float()
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def dequantize_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """Packed int4 steps times their group's scale; ``scale`` is [output, groups]."""
    steps = unpack_int4(packed)
    return steps * scale.repeat_interleave(steps.shape[1] // scale.shape[1], dim=1)


_DEQUANTIZE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "FP8": lambda stored, scale: stored.float() * scale,
    "W8A8_SQ_PER_CHANNEL": lambda stored, scale: stored.float() * scale[:, None],
    "W4A16_AWQ": dequantize_int4,
    "W4A8_AWQ": dequantize_int4,  # modelopt rounds these to e4m3 once more: 2 % of an output
}


def _input_rounding(
    ranks: list[_Shard], source: str, by_output: bool, config: Mapping[str, Any]
) -> InputRounding | None:
    scale = ranks[0].find(f"{source}.activation_scaling_factor")
    smoothing = ranks[0].find(f"{source}.prequant_scaling_factor")
    if scale is None and smoothing is None:
        return None
    if smoothing is not None and not by_output:
        smoothing = _stacked(ranks, f"{source}.prequant_scaling_factor")
    return InputRounding(
        "int8" if config["quantization"]["quant_algo"].startswith("W8A8") else "fp8",
        None if scale is None else scale.item(),
        None if smoothing is None else smoothing.float(),
    )

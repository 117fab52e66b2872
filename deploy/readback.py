"""A TensorRT-LLM checkpoint read back into a Hugging Face model.

Comes in: a checkpoint folder, whatever its precision and its tensor and pipeline parallel sizes.
Goes out: one model on one device that computes what TensorRT-LLM would: weights as quantized,
activations rounded where the engine rounds them. The model is built from the checkpoint alone, so
a wrong or missing field shows. Knows nothing of tokenizers, end tokens or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from client.errors import UserError
from deploy.trtllm_checkpoint import ARCHITECTURES, check_checkpoint, rank_files

_FP8_MAX = 448.0  # largest e4m3 value
_LINEARS = {
    # TensorRT-LLM's linear -> Hugging Face's, and whether its output channels are split over ranks
    "attention.qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), True),
    "attention.dense": (("self_attn.o_proj",), False),
    "mlp.fc": (("mlp.gate_proj",), True),  # the one with the activation
    "mlp.gate": (("mlp.up_proj",), True),
    "mlp.proj": (("mlp.down_proj",), False),
}
_NORMS = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near two models' logits are: share of equal top tokens, and errors of single logits."""

    top1: float
    mean_abs_err: float
    max_abs_err: float


@dataclass(frozen=True, slots=True)
class InputRounding:
    """What happens to a linear's input before the product.

    ``smoothing`` multiplies each input channel; ``scale`` is the step of the ``kind`` of numbers
    (fp8: e4m3, int8) that the input is rounded to; None leaves out either.
    """

    kind: str
    scale: float | None
    smoothing: Tensor | None


def load_model(
    checkpoint_dir: Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """The checkpoint as a ``transformers.PreTrainedModel``, in evaluation mode.

    ``dtype`` is that of the computation. By default it is the checkpoint's own, but float32 on the
    CPU, where half precision is slow: the weights are still those of the checkpoint, exactly.

    Raises:
        UserError: the checkpoint isn't complete, names the file and what it lacks.
    """
    config = check_checkpoint(checkpoint_dir)
    if dtype is None:
        cpu = torch.device(device).type == "cpu"
        dtype = torch.float32 if cpu else getattr(torch, config["dtype"])
    stages = _stages(checkpoint_dir, config)
    architecture = getattr(transformers, config["architecture"])
    model, report = architecture.from_pretrained(
        None,
        config=_hf_config(config),
        state_dict={name: tensor.to(dtype) for name, tensor in _weights(stages, config)},
        dtype=dtype,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            name = sorted(map(str, report[problem]))[0]
            raise UserError(f"{problem.replace('_', ' ')}: {name}", where=checkpoint_dir)
    for name, rounding in _roundings(stages, config):
        _round_input(model.get_submodule(name), rounding)
    model.requires_grad_(False)
    return model.eval().to(device)


def compare_logits(a: Tensor, b: Tensor) -> Agreement:
    """Agreement of two models' logits, both [..., vocabulary].

    A vocabulary that is padded in one of them is compared as far as the other goes.
    """
    common = min(a.shape[-1], b.shape[-1])
    a, b = a[..., :common].float(), b[..., :common].float()
    error = (a - b).abs()
    same = a.argmax(-1) == b.argmax(-1)
    return Agreement(same.float().mean().item(), error.mean().item(), error.max().item())


def _hf_config(config: Mapping[str, Any]) -> Any:
    scaling = config["rotary_scaling"] or {"rope_type": "default"}
    rope = {key: value for key, value in scaling.items() if key != "type"}
    rope.setdefault("rope_type", scaling.get("type"))
    return AutoConfig.for_model(
        ARCHITECTURES[config["architecture"]].model_type,
        architectures=[config["architecture"]],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_size"],
        hidden_act=config["hidden_act"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["norm_epsilon"],
        rope_parameters={**rope, "rope_theta": config["rotary_base"]},
        attention_bias=config["attn_bias"],
        mlp_bias=config["mlp_bias"],
        tie_word_embeddings=False,
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


def _stages(directory: Path, config: Mapping[str, Any]) -> list[list[_Shard]]:
    """The shards of each pipeline stage, by tensor-parallel rank."""
    shards = [_Shard(file) for file in rank_files(directory, config)]
    tp = config["mapping"]["tp_size"]
    return [shards[first : first + tp] for first in range(0, len(shards), tp)]


def _layers(
    stages: list[list[_Shard]], config: Mapping[str, Any]
) -> Iterator[tuple[list[_Shard], str, str]]:
    """Of each layer: its ranks, its name in them (numbered from 0 in each stage), and in HF."""
    per_stage = config["num_hidden_layers"] // len(stages)
    for layer in range(config["num_hidden_layers"]):
        stage, local = divmod(layer, per_stage)
        yield stages[stage], f"transformer.layers.{local}", f"model.layers.{layer}"


def _weights(stages: list[list[_Shard]], config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All weights under their Hugging Face names, in float32."""
    first, last, vocabulary = stages[0], stages[-1], config["vocab_size"]
    embedding = _stacked(first, "transformer.vocab_embedding.weight")
    yield "model.embed_tokens.weight", embedding[:vocabulary]  # padded to a multiple of tp
    yield "model.norm.weight", last[0].tensor("transformer.ln_f.weight").float()
    yield "lm_head.weight", _stacked(last, "lm_head.weight")[:vocabulary]
    for ranks, ours, theirs in _layers(stages, config):
        for norm, hf_norm in _NORMS.items():
            yield f"{theirs}.{hf_norm}.weight", ranks[0].tensor(f"{ours}.{norm}.weight").float()
        for linear, (names, by_output) in _LINEARS.items():
            targets = [f"{theirs}.{name}" for name in names]
            yield from _join_linear(ranks, f"{ours}.{linear}", targets, by_output, config)


def _roundings(
    stages: list[list[_Shard]], config: Mapping[str, Any]
) -> Iterator[tuple[str, InputRounding]]:
    """The Hugging Face linears that round or smooth their input."""
    for ranks, ours, theirs in _layers(stages, config):
        for linear, (names, by_output) in _LINEARS.items():
            rounding = _input_rounding(ranks, f"{ours}.{linear}", by_output)
            if rounding is not None:
                for name in names:
                    yield f"{theirs}.{name}", rounding


def _stacked(ranks: list[_Shard], name: str) -> Tensor:
    return torch.cat([rank.tensor(name).float() for rank in ranks])


def _join_linear(
    ranks: list[_Shard], source: str, targets: list[str], by_output: bool, config: Mapping[str, Any]
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


def _unpack_int4(packed: Tensor) -> Tensor:
    """[output / 2, input] bytes to [output, input] numbers; the even row is in the low nibble."""
    nibbles = torch.stack((packed & 0x0F, (packed >> 4) & 0x0F), dim=1).flatten(0, 1).float()
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def _dequantize_int4(packed: Tensor, scale: Tensor) -> Tensor:
    steps = _unpack_int4(packed)
    return steps * scale.repeat_interleave(steps.shape[1] // scale.shape[1], dim=1)


_DEQUANTIZE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "FP8": lambda stored, scale: stored.float() * scale,
    "W8A8_SQ_PER_CHANNEL": lambda stored, scale: stored.float() * scale[:, None],
    "W4A16_AWQ": _dequantize_int4,
}


def _input_rounding(ranks: list[_Shard], source: str, by_output: bool) -> InputRounding | None:
    stored = ranks[0].tensor(f"{source}.weight").dtype
    scale = ranks[0].find(f"{source}.activation_scaling_factor")
    smoothing = ranks[0].find(f"{source}.prequant_scaling_factor")
    if scale is None and smoothing is None:
        return None
    if smoothing is not None and not by_output:
        smoothing = _stacked(ranks, f"{source}.prequant_scaling_factor")
    return InputRounding(
        "fp8" if stored == torch.float8_e4m3fn else "int8",
        None if scale is None else scale.item(),
        None if smoothing is None else smoothing.float(),
    )


def _round_input(linear: nn.Module, rounding: InputRounding) -> None:
    """Make a linear round its input first, as the quantized kernel does."""
    if rounding.smoothing is not None:
        linear.register_buffer("smoothing", rounding.smoothing, persistent=False)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = inputs[0]
        if rounding.smoothing is not None:
            x = x * module.smoothing.to(x.dtype)  # type: ignore[operator]
        return (x if rounding.scale is None else round_to(x, rounding.kind, rounding.scale),)

    linear.register_forward_pre_hook(hook)


def round_to(x: Tensor, kind: str, scale: float) -> Tensor:
    """``x`` rounded to ``scale`` times the nearest e4m3 (fp8) or integer (int8) value, clipped."""
    steps = x.float() / scale
    if kind == "fp8":
        steps = steps.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float()
    else:
        steps = steps.round().clamp(-128, 127)
    return (steps * scale).to(x.dtype)

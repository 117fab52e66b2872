"""The tensors of a TensorRT-LLM checkpoint under their Hugging Face names, one layer at a time.

Comes in: a checkpoint folder, whatever its precision and its tensor and pipeline parallel sizes.
Goes out: weights joined over the ranks with their scales applied, in float32, and how the engine
rounds each linear's input and the KV cache. Holds no more than what was asked for; knows nothing of
models that compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig

from trtllm_deploy.checkpoint.architectures import (
    ARCHITECTURES,
    Architecture,
    Linear,
    find_architecture,
    find_field,
)
from trtllm_deploy.checkpoint.ranks import Shard, join_linear
from trtllm_deploy.checkpoint.trtllm_format import check_checkpoint, rank_files

_SAME = (  # fields of transformers' config too
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "mlp_bias"),
)

# a checkpoint has none of these, and transformers' own defaults are some model's
_NONE = ("sliding_window", "bos_token_id", "eos_token_id", "pad_token_id")


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
        shards = [
            Shard(file, self._architecture.formerly) for file in rank_files(directory, self.fields)
        ]
        tp = self.fields["mapping"]["tp_size"]
        self._stages = [shards[first : first + tp] for first in range(0, len(shards), tp)]

    def outer(self) -> dict[str, Tensor]:
        """Embedding, last norm and head; without the rows that pad the vocabulary."""
        first, last, vocabulary = self._stages[0], self._stages[-1], self.fields["vocab_size"]
        return {
            "model.embed_tokens.weight": _stacked(first, "transformer.vocab_embedding.weight")[
                :vocabulary
            ],
            "model.norm.weight": self._norm(last[0], "transformer.ln_f"),
            "lm_head.weight": _stacked(last, "lm_head.weight")[:vocabulary],
        }

    def layer(self, index: int) -> dict[str, Tensor]:
        """Weights of one layer."""
        ranks, ours = self._place(index)
        weights = {
            f"{theirs}.weight": self._norm(ranks[0], f"{ours}.{norm}")
            for norm, theirs in self._architecture.norms.items()
        }
        for name, linear in self._architecture.linears.items():
            weights |= join_linear(ranks, f"{ours}.{name}", linear, self.fields)
        return weights

    def roundings(self, index: int) -> dict[str, InputRounding]:
        """The linears of one layer that round or smooth their input."""
        ranks, ours = self._place(index)
        found: dict[str, InputRounding] = {}
        for name, linear in self._architecture.linears.items():
            rounding = _input_rounding(ranks, f"{ours}.{name}", linear, self.fields)
            if rounding is not None:
                found |= dict.fromkeys(self._modules(linear), rounding)
        return found

    def spread(self, index: int, module: str) -> tuple[range, int]:
        """The ranks that share out the weight of a layer's linear, and along which dimension."""
        tp = self.fields["mapping"]["tp_size"]
        first = index // self._per_stage * tp
        ranks = range(first, first + tp)
        for linear in self._architecture.linears.values():
            if module in self._modules(linear):
                if linear.split == "whole":
                    return ranks[:1], 0
                if linear.split == "heads" and module != linear.parts[0]:
                    return ranks[:: max(1, tp // self.fields["num_key_value_heads"])], 0
                return ranks, int(linear.split == "input")
        return ranks, 0

    def _modules(self, linear: Linear) -> list[str]:
        """The names in transformers of what a linear holds, expert by expert."""
        experts = range(self.fields["moe"]["num_experts"]) if "{}" in linear.parts[0] else (0,)
        return [part.format(expert) for expert in experts for part in linear.parts]

    def kv_rounding(self, index: int) -> KvRounding | None:
        """How one layer's keys and values are rounded: one scale for both, as the engine has."""
        algo = self.fields["quantization"]["kv_cache_quant_algo"]
        if algo is None:
            return None
        ranks, ours = self._place(index)
        scale = ranks[0].tensor(f"{ours}.attention.kv_cache_scaling_factor").item()
        return KvRounding(algo.lower(), scale, scale)

    def _norm(self, rank: Shard, name: str) -> Tensor:
        return rank.tensor(f"{name}.weight").float() - self._architecture.norm_offset

    @property
    def _per_stage(self) -> int:
        return int(self.fields["num_hidden_layers"]) // len(self._stages)

    def _place(self, index: int) -> tuple[list[Shard], str]:
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
    ours = ARCHITECTURES[architecture]
    gates = {name: theirs for theirs, name in ours.activations.items()}
    found = AutoConfig.for_model(
        ours.model_type,
        architectures=[architecture],
        **{
            **{name: config[name] for name in _SAME},
            **{theirs: _field(config, ours, name) for name, theirs in ours.fields.items()},
        },
        **{ours.activation: gates.get(config["hidden_act"], config["hidden_act"])},
        head_dim=config["head_size"],
        rms_norm_eps=config["norm_epsilon"],
        rope_parameters={**rope, "rope_theta": config["rotary_base"]},
        attention_bias=config["attn_bias"],
        tie_word_embeddings=False,
        **{**dict.fromkeys(_NONE), **ours.like},
    )
    if getattr(found, "layer_types", None):
        found.layer_types = ["full_attention"] * found.num_hidden_layers
    return found


def _field(config: Mapping[str, Any], ours: Architecture, name: str) -> Any:
    value = find_field(config, name)
    return bool(value) if name in ours.switches else value


def _stacked(ranks: list[Shard], name: str) -> Tensor:
    return torch.cat([rank.tensor(name).float() for rank in ranks])


def _input_rounding(
    ranks: list[Shard], source: str, linear: Linear, config: Mapping[str, Any]
) -> InputRounding | None:
    scale = ranks[0].find(f"{source}.activation_scaling_factor")
    smoothing = ranks[0].find(f"{source}.prequant_scaling_factor")
    if scale is None and smoothing is None:
        return None
    if smoothing is not None and linear.split == "input":
        smoothing = _stacked(ranks, f"{source}.prequant_scaling_factor")
    return InputRounding(
        "int8" if config["quantization"]["quant_algo"].startswith("W8A8") else "fp8",
        None if scale is None else scale.item(),
        None if smoothing is None else smoothing.float(),
    )

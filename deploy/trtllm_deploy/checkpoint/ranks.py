"""The tensors of a TensorRT-LLM checkpoint's ranks, and how ranks' parts become one weight.

Comes in: the rank files of one pipeline stage, a linear and how it is split. Goes out: the weights
of transformers' modules that it holds, in float32, scales applied. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.architectures import Linear, renamed
from trtllm_deploy.checkpoint.dequantize import DEQUANTIZE, weight_only_int8


class Shard:
    """The tensors of one rank, read one at a time.

    ``formerly`` are beginnings of a layer's names, and what they may be called in the file.
    """

    def __init__(self, file: Path, formerly: Mapping[str, str]) -> None:
        self.file = file
        self._tensors = safe_open(file, framework="pt")
        now = {old: name for name, old in formerly.items()}
        stored = self._tensors.keys()  # type: ignore[no-untyped-call]
        self._names: Mapping[str, str] = {renamed(name, now): name for name in stored}

    def tensor(self, name: str) -> Tensor:
        """Raises UserError: the file has none of that name."""
        if name not in self._names:
            raise UserError(f"tensor '{name}' is missing", where=self.file)
        tensor: Tensor = self._tensors.get_tensor(self._names[name])  # type: ignore[no-untyped-call]
        return tensor

    def find(self, name: str) -> Tensor | None:
        """The tensor, if the file has it."""
        return self.tensor(name) if name in self._names else None


def join_linear(
    ranks: Sequence[Shard], source: str, linear: Linear, config: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """The weight and bias of each module that one linear holds, joined over the ranks."""
    whole = linear.split == "whole"
    weights = [
        rank.tensor(f"{source}.weight").float() if whole else _weight(rank, source, config)
        for rank in ranks
    ]
    if weights[0].dim() == 3:
        for expert in range(len(weights[0])):
            joined = _join([each[expert] for each in weights], linear, config)
            for part, weight in zip(linear.parts, joined, strict=True):
                yield f"{part.format(expert)}.weight", weight
        return
    for part, weight in zip(linear.parts, _join(weights, linear, config), strict=True):
        yield f"{part}.weight", weight
    if ranks[0].find(f"{source}.bias") is not None:
        biases = [rank.tensor(f"{source}.bias").float() for rank in ranks]
        for part, bias in zip(linear.parts, _join(biases, linear, config), strict=True):
            yield f"{part}.bias", bias


def _join(shards: list[Tensor], linear: Linear, config: Mapping[str, Any]) -> Sequence[Tensor]:
    """The parts of one linear, whole, of weights [output, input] or biases [output]."""
    if linear.split == "heads":
        return _join_qkv(shards, config)
    if linear.split == "output":
        halves = [shard.chunk(len(linear.parts)) for shard in shards]
        return [torch.cat(part) for part in zip(*halves, strict=True)]
    if linear.split == "input" and shards[0].dim() == 2:
        return [torch.cat(shards, 1)]
    return shards[:1]  # a bias after the sum over ranks is whole on each


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


def _weight(rank: Shard, source: str, config: Mapping[str, Any]) -> Tensor:
    """One rank's weight as the engine's kernels see it, in float32 [output, input]."""
    stored = rank.tensor(f"{source}.weight")
    algo = config["quantization"]["quant_algo"]
    if algo is None:
        return stored.float()
    if algo == "W8A16":
        return weight_only_int8(stored)
    if algo not in DEQUANTIZE:
        raise UserError(f"quant_algo '{algo}' isn't known", where=rank.file.parent / "config.json")
    return DEQUANTIZE[algo](stored, rank.tensor(f"{source}.weights_scaling_factor").float())

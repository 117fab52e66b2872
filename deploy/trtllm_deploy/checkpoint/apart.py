"""A transformers model whose experts and fused projections are linears of their own.

transformers 5 keeps all experts of a layer in two tensors, Phi-3 its q, k and v in one; modelopt's
exporter, and whoever rounds inputs, look for a linear each. Comes in: a model. Goes out: the same
one, computing the same. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, Experts


def take_apart(model: nn.Module, architecture: str) -> None:
    """Put linears in the place of what is stacked or fused in each layer; they share its memory."""
    known = ARCHITECTURES.get(architecture)
    if known is None:
        return
    for layer in model.get_submodule("model.layers").children():
        if known.experts is not None:
            block: Any = layer.get_submodule("mlp")
            block.experts = _ExpertList(block.experts, known.experts)
        for fused, parts in known.fused.items():
            _part(layer, fused, parts, model.config)


def split_rows(weight: Tensor, parts: int, config: Any) -> Sequence[Tensor]:
    """A fused weight's parts: q, k and v by the config's heads, or halves."""
    if parts != 3:
        return torch.chunk(weight, parts)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_rows = config.num_key_value_heads * size
    return torch.split(weight, [heads * size, kv_rows, kv_rows])


def _part(layer: nn.Module, fused: str, parts: Sequence[str], config: Any) -> None:
    """Linears beside a fused one, which becomes a call of theirs."""
    place, _, name = fused.rpartition(".")
    owner = layer.get_submodule(place)
    rows = split_rows(layer.get_submodule(fused).weight.data, len(parts), config)  # type: ignore[arg-type]
    names = [part.rpartition(".")[2] for part in parts]
    for part, weight in zip(names, rows, strict=True):
        owner.add_module(part, _linear(weight))
    delattr(owner, name)
    object.__setattr__(owner, name, _Joined(owner, names))  # no submodule: it holds its owner


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


@dataclass(frozen=True, slots=True)
class _Joined:
    """Linears of one module, computed as one; found by name, for modelopt replaces them."""

    owner: nn.Module
    names: Sequence[str]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self.owner.get_submodule(name)(x) for name in self.names], -1)


class _Expert(nn.Module):
    """One gated MLP; its linears have the names that modelopt's exporter looks for."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, act: Any, names: Experts) -> None:
        super().__init__()
        self.act_fn, self._names = act, names
        weights = {names.gate: gate, names.up: up, names.down: down}
        for name, weight in weights.items():
            self.add_module(name, _linear(weight))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (
            self.get_submodule(name)
            for name in (self._names.gate, self._names.up, self._names.down)
        )
        found: Tensor = down(self.act_fn(gate(x)) * up(x))
        return found


class _ExpertList(nn.ModuleList):
    """Experts, called as transformers calls the stacked ones: each with the tokens sent to it."""

    def __init__(self, stacked: Any, names: Experts) -> None:
        super().__init__()
        for gate_up, down in zip(stacked.gate_up_proj.data, stacked.down_proj.data, strict=True):
            gate, up = gate_up.chunk(2)
            self.append(_Expert(gate, up, down, stacked.act_fn, names))

    def forward(self, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """``index`` and ``weights`` [tokens, top_k]: each token's experts and what they count."""
        out = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, place = torch.where(index == number)
            if len(token):
                added = expert(hidden_states[token]) * weights[token, place, None]
                out.index_add_(0, token, added.to(out.dtype))
        return out

"""A transformers model whose experts are linears of their own.

transformers 5 keeps all experts of a layer in two tensors; modelopt's exporter, and whoever rounds
inputs, look for a linear each. Comes in: a model. Goes out: the same one, computing the same.
Knows nothing of files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, Experts


def take_apart(model: nn.Module, architecture: str) -> None:
    """Put linears in the place of each layer's stacked experts; they share its memory."""
    known = ARCHITECTURES.get(architecture)
    if known is None or known.experts is None:
        return
    for block in list(model.modules()):
        stacked = getattr(block, "experts", None)
        if isinstance(stacked, nn.Module) and hasattr(stacked, "gate_up_proj"):
            block.experts = _ExpertList(stacked, known.experts)


class _Expert(nn.Module):
    """One gated MLP; its linears have the names that modelopt's exporter looks for."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, act: Any, names: Experts) -> None:
        super().__init__()
        self.act_fn, self._names = act, names
        weights = {names.gate: gate, names.up: up, names.down: down}
        for name, weight in weights.items():
            with torch.device("meta"):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            self.add_module(name, linear)

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

"""How near two models are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near two models' logits are: share of equal top tokens, and errors of single logits."""

    top1: float
    mean_abs_err: float
    max_abs_err: float


def compare_logits(a: Tensor, b: Tensor) -> Agreement:
    """Agreement of two models' logits, both [..., vocabulary].

    A vocabulary that is padded in one of them is compared as far as the other goes.
    """
    common = min(a.shape[-1], b.shape[-1])
    a, b = a[..., :common].float(), b[..., :common].float()
    error = (a - b).abs()
    same = a.argmax(-1) == b.argmax(-1)
    return Agreement(same.float().mean().item(), error.mean().item(), error.max().item())

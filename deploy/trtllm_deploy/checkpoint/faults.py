"""What is wrong with one tensor of a checkpoint, given the original's: the cause in a line.

Comes in: a weight as the checkpoint has it (scales applied, ranks joined) and as the original has
it, or the range of a rounded activation and what was measured. Goes out: sentences. Knows nothing
of files, models or prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rounding moves the size of a block of weights by some percent, a scale that is off by two by 2.
_SCALE_LOW, _SCALE_HIGH = 0.7, 1.4
_ROW_ERROR = 0.02  # bfloat16 rounds by 0.4 % at most
_ALIKE = 0.9  # cosine of a weight and its quantized form; of two unrelated weights it is near 0


@dataclass(frozen=True, slots=True)
class Split:
    """How a joined weight is spread: over which ``ranks``, along which dimension.

    ``block`` is the number of input channels that share a scale: 0 for the whole tensor of a rank,
    -1 for an output channel.
    """

    ranks: Sequence[int]
    dim: int
    block: int


def weight_error(ours: Tensor, theirs: Tensor) -> float:
    """Size of the difference over size of the original (Frobenius norms)."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def not_finite(name: str, ours: Tensor, theirs: Tensor) -> str | None:
    """Which of the two holds NaN or Inf: no comparison shows it where both do."""
    holders = {"the original": theirs, "the checkpoint": ours}
    bad = [who for who, held in holders.items() if not held.isfinite().all()]
    return f"{name} of {' and '.join(bad)} holds NaN or Inf" if bad else None


def outer_faults(name: str, ours: Tensor, theirs: Tensor) -> Iterator[str]:
    """Embedding, last norm or head, row by row: prompts touch few rows, and none is quantized."""
    if bad := not_finite(name, ours, theirs):
        yield bad
    elif ours.shape != theirs.shape:
        yield f"{name} has shape {list(ours.shape)}, the original {list(theirs.shape)}"
    else:
        size = theirs.reshape(len(theirs), -1).norm(dim=1)
        error = (ours - theirs).reshape(len(theirs), -1).norm(dim=1)
        off = error > _ROW_ERROR * (size + size.mean())
        if off.any():
            yield f"{int(off.sum())} of {len(off)} rows of {name} aren't the original's"


def weight_faults(name: str, ours: Tensor, theirs: Tensor, split: Split) -> Iterator[str]:
    """Ranks in each other's place, or scales that are off, in a [output, input] weight."""
    if ours.shape != theirs.shape:
        yield f"{name} has shape {list(ours.shape)}, the original {list(theirs.shape)}"
        return
    parts, expected = (each.chunk(len(split.ranks), split.dim) for each in (ours, theirs))
    like = torch.tensor([[_cosine(part, other) for other in expected] for part in parts])
    if len(parts) > 1 and bool((like.diagonal() < _ALIKE).any()):
        place = like.argmax(1)
        moved = [i for i, j in enumerate(place.tolist()) if i != j and like[i, j] > _ALIKE]
        if moved:
            ranks = " and ".join(f"rank{split.ranks[i]}.safetensors" for i in moved)
            yield f"{ranks} hold each other's part of {name}: ranks are swapped"
            return
    for rank, part, other in zip(split.ranks, parts, expected, strict=True):
        yield from _scale_faults(f"{name} in rank{rank}.safetensors", part, other, split.block)


def _scale_faults(where: str, ours: Tensor, theirs: Tensor, block: int) -> Iterator[str]:
    """Blocks that are a multiple of the original; one sentence for all of a tensor."""
    if block == 0:
        ours, theirs = ours.reshape(1, -1), theirs.reshape(1, -1)
    elif block > 0:
        ours, theirs = ours.reshape(-1, block), theirs.reshape(-1, block)
    size = theirs.square().sum(1)
    ratio = (ours * theirs).sum(1) / size.clamp(min=1e-20)
    alike = torch.nn.functional.cosine_similarity(ours, theirs, dim=1) > _ALIKE
    off = alike & ((ratio < _SCALE_LOW) | (ratio > _SCALE_HIGH)) & (size > 1e-6 * size.mean())
    if off.any():
        worst = ratio[off][(ratio[off].log().abs()).argmax()].item()
        many = (
            f"{int(off.sum())} of {len(off)} weight scales are"
            if len(off) > 1
            else "the weight scale is"
        )
        yield f"{where}: {many} off by a factor of {worst:.3g}"


def activation_fault(name: str, range_: float, measured: float | None, seen: float) -> str | None:
    """A wrong scale of a linear's input.

    ``range_`` is the largest value that the rounded input can have, ``measured`` what calibration
    saw (None: unknown), ``seen`` what the verification prompts gave.
    """
    if measured is not None and measured > 0 and not 0.9 < range_ / measured < 1.1:
        return f"{name}: the activation scale is off by a factor of {range_ / measured:.3g}"
    if measured is None and seen > 1.5 * range_:
        return (
            f"{name}: the activation scale is too small: inputs reach {seen / range_:.3g} times"
            " its range"
        )
    return None


def _cosine(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return 0.0
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-20))

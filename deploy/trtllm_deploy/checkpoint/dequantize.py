"""Quantized weights of a TensorRT-LLM checkpoint as the engine's kernels see them, in float32.

Comes in: a stored weight and its scales. Goes out: numbers. Knows nothing of files or names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def weight_only_int8(weight: Tensor) -> Tensor:
    """A [..., output, input] weight quantized to int8 per output channel and back, in float32.

    As TensorRT-LLM does when it loads a W8A16 checkpoint (symmetric_quantize in
    kernels/cutlass_kernels/cutlass_preprocessors.cpp): scale = absmax / 128, 127 at most, the
    scale kept in the weight's own type.
    """
    scale = weight.float().abs().amax(-1, keepdim=True) / 128
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


def _per_expert(scale: Tensor, stored: Tensor) -> Tensor:
    """One scale, or one for each of the experts that are stacked in ``stored``."""
    return scale.reshape(-1, 1, 1) if stored.dim() == 3 else scale


DEQUANTIZE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "FP8": lambda stored, scale: stored.float() * _per_expert(scale, stored),
    "W8A8_SQ_PER_CHANNEL": lambda stored, scale: stored.float() * scale[:, None],
    "W4A16_AWQ": dequantize_int4,
    "W4A8_AWQ": dequantize_int4,  # modelopt rounds these to e4m3 once more: 2 % of an output
}

"""The precisions a checkpoint can have, as data: how modelopt makes each, what the engine reads.

Comes in: a name from a deployment file. Goes out: what the checkpoint stage does for it and which
``quantization.quant_algo`` stands in the checkpoint's config.json. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from client.errors import UserError


@dataclass(frozen=True, slots=True)
class Precision:
    """One precision.

    ``dtype`` is that of activations and of unquantized weights. ``modelopt_config`` names a preset
    of ``modelopt.torch.quantization``; None exports full-precision weights. ``calibrated`` says
    that activations are measured on prompts. ``group_size`` is the number of input channels that
    share a weight scale, 0 for none. ``meaning`` is for people.
    """

    name: str
    dtype: str
    modelopt_config: str | None
    calibrated: bool
    quant_algo: str | None
    group_size: int
    meaning: str


PRECISIONS: Mapping[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("fp16", "float16", None, False, None, 0, "float16 throughout"),
        Precision("bf16", "bfloat16", None, False, None, 0, "bfloat16 throughout"),
        Precision(
            "fp8",
            "float16",
            "FP8_DEFAULT_CFG",
            True,
            "FP8",
            0,
            "e4m3 weights and activations, one scale per tensor, from calibration",
        ),
        # As TensorRT-LLM's own quantize.py: full-precision weights, quantized by trtllm-build.
        Precision(
            "int8_wo",
            "float16",
            None,
            False,
            "W8A16",
            0,
            "int8 weights, one scale per output channel; float16 activations",
        ),
        Precision(
            "int8_sq",
            "float16",
            "INT8_SMOOTHQUANT_CFG",
            True,
            "W8A8_SQ_PER_CHANNEL",
            0,
            "SmoothQuant: int8 weights per output channel, int8 activations per tensor",
        ),
        Precision(
            "int4_awq",
            "float16",
            "INT4_AWQ_CFG",
            True,
            "W4A16_AWQ",
            128,
            "AWQ: int4 weights, one scale per 128 input channels; float16 activations",
        ),
    )
}


def find_precision(name: str) -> Precision:
    """The precision of that name.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision '{name}'", fix=f"one of: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]

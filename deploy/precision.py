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
    share a weight scale, 0 for none. ``min_top1`` is the share of positions at which a checkpoint
    must have the original's top token to pass verification; a deployment file may say otherwise.
    ``as_hf`` says that TensorRT-LLM's LLM API loads it from a Hugging Face checkpoint that modelopt
    exports. ``meaning`` is for people.
    """

    name: str
    dtype: str
    modelopt_config: str | None
    calibrated: bool
    quant_algo: str | None
    group_size: int
    min_top1: float
    as_hf: bool
    meaning: str

    @property
    def wants_fp8(self) -> bool:
        """Whether its kernels need a GPU that multiplies e4m3."""
        return self.quant_algo in ("FP8", "W4A8_AWQ")


PRECISIONS: Mapping[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("fp16", "float16", None, False, None, 0, 0.999, True, "float16 throughout"),
        Precision("bf16", "bfloat16", None, False, None, 0, 0.97, True, "bfloat16 throughout"),
        Precision(
            "fp8",
            "float16",
            "FP8_DEFAULT_CFG",
            True,
            "FP8",
            0,
            0.95,
            True,
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
            0.97,
            False,
            "int8 weights, one scale per output channel; float16 activations",
        ),
        Precision(
            "int8_sq",
            "float16",
            "INT8_SMOOTHQUANT_CFG",
            True,
            "W8A8_SQ_PER_CHANNEL",
            0,
            0.9,
            False,
            "SmoothQuant: int8 weights per output channel, int8 activations per tensor",
        ),
        Precision(
            "int4_awq",
            "float16",
            "INT4_AWQ_CFG",
            True,
            "W4A16_AWQ",
            128,
            0.9,
            True,
            "AWQ: int4 weights, one scale per 128 input channels; float16 activations",
        ),
        Precision(
            "w4a8_awq",
            "float16",
            "W4A8_AWQ_BETA_CFG",
            True,
            "W4A8_AWQ",
            128,
            0.9,
            False,
            "AWQ weights as int4_awq has them, e4m3 activations",
        ),
    )
}


_KV_MIN_TOP1 = 0.97  # a quantized KV cache alone may cost so much


def least_top1(precision: Precision, kv_cache_dtype: str | None) -> float:
    """The share of equal top tokens to ask for where the deployment file says nothing."""
    return min(precision.min_top1, _KV_MIN_TOP1) if kv_cache_dtype else precision.min_top1


def find_precision(name: str) -> Precision:
    """The precision of that name.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision '{name}'", fix=f"one of: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]

"""The precisions a checkpoint can have, as data: how modelopt makes each, what the engine reads.

Comes in: a name from a deployment file. Goes out: what the checkpoint stage does for it and which
``quantization.quant_algo`` stands in the checkpoint's config.json. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llm_perf.errors import UserError
from trtllm_deploy.machine.data import load_data


@dataclass(frozen=True, slots=True)
class Precision:
    """One precision.

    ``dtype`` is that of activations and of unquantized weights. ``modelopt_config`` names a preset
    of ``modelopt.torch.quantization``; None exports full-precision weights. ``group_size`` is the
    number of input channels that share a weight scale, 0 for none. ``min_top1`` is the share of
    positions at which a checkpoint must have the original's top token to pass verification; a
    deployment file may say otherwise. ``as_hf`` says that TensorRT-LLM's LLM API loads it from a
    Hugging Face checkpoint that modelopt exports. ``like`` names the precision that differs only in
    its dtype. ``meaning`` is for people.
    """

    name: str
    meaning: str
    min_top1: float
    dtype: str = "float16"
    modelopt_config: str | None = None
    quant_algo: str | None = None
    group_size: int = 0
    as_hf: bool = True
    like: str | None = None

    @property
    def calibrated(self) -> bool:
        """Whether activations are measured on prompts."""
        return self.modelopt_config is not None

    @property
    def wants_fp8(self) -> bool:
        """Whether its kernels need a GPU that multiplies e4m3."""
        return self.quant_algo in ("FP8", "W4A8_AWQ")


def _read() -> dict[str, Precision]:
    said = load_data("spec/precisions.yaml")
    return {
        name: Precision(name, **{**said.get(fields.get("like"), {}), **fields})
        for name, fields in said.items()
    }


PRECISIONS: Mapping[str, Precision] = _read()


_KV_MIN_TOP1 = 0.97  # a quantized KV cache alone may cost so much


def least_top1(precision: Precision, kv_cache_dtype: str | None) -> float:
    """The share of equal top tokens to ask for where the deployment file says nothing."""
    return min(precision.min_top1, _KV_MIN_TOP1) if kv_cache_dtype else precision.min_top1


def find_precision(name: str) -> Precision:
    """The precision of that name. Raises UserError: there is none; lists those there are."""
    if name not in PRECISIONS:
        raise UserError(f"unknown precision '{name}'", fix=f"one of: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]

"""What a model's config.json shows that no checkpoint can be made of it.

Comes in: the config, with what files beside it say of quantization, and what is wanted. Goes out:
a sentence and what mends it, or None. Pure: the same judgement for a local folder, a file named
under ``shape:`` and a model on the hub of which nothing else is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.spec.divisible import indivisible
from trtllm_deploy.spec.precision import Precision

CheckpointKind = Literal["trtllm", "hf"]


class Fault(NamedTuple):
    """What is wrong with a model for what is asked of it, and how to mend it."""

    what: str
    fix: str


def source_fault(
    config: Mapping[str, Any], kind: CheckpointKind, precision: Precision, tp: int, pp: int
) -> Fault | None:
    """Why the model can't become this checkpoint, split over tp x pp GPUs.

    Raises KeyError for a field that is missing.
    """
    if fault := _quantized(config):
        return fault
    if kind == "hf" and ("architectures" not in config or _unknown(config)):  # the LLM API says
        return None
    return _unknown(config) or _unsplit(config, precision, tp, pp)


def _quantized(config: Mapping[str, Any]) -> Fault | None:
    """Weights that are quantized already: modelopt and TensorRT-LLM's scripts start from 16 bits.

    compressed-tensors was once written under a name of its own (transformers, quantizers/auto.py).
    """
    said: Any = config.get("quantization_config") or config.get("compression_config")
    if not said:
        return None
    known = said if isinstance(said, Mapping) else {}
    method = str(known.get("quant_method") or "compressed-tensors")
    bits = known.get("bits") or known.get("w_bit")
    how = f"{method}, {bits} bits" if bits else method
    return Fault(
        f"its weights are quantized already ({how})", "name the 16-bit model that it was made from"
    )


def _unknown(config: Mapping[str, Any]) -> Fault | None:
    names = config["architectures"]
    name = names[0] if isinstance(names, list) and names else "none"
    if name in ARCHITECTURES:
        return None
    known = ", ".join(ARCHITECTURES)
    return Fault(f"architecture '{name}' isn't supported", f"one of: {known}; or 'backend: llmapi'")


def _unsplit(config: Mapping[str, Any], precision: Precision, tp: int, pp: int) -> Fault | None:
    wrong = indivisible(config, precision, tp, pp)
    return Fault(wrong, "choose other 'tp:' and 'pp:'") if wrong else None

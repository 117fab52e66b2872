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
    if fault := _quantized(config) or _miscounted(config):
        return fault
    if kind == "hf" and ("architectures" not in config or _unknown(config)):  # the LLM API says
        return None
    return (
        _unknown(config)
        or (_unlike(config, precision, pp) if kind == "trtllm" else None)
        or _unsplit(config, precision, tp, pp)
    )


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


_COUNTS = (
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "vocab_size",
)
_OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim")
_MOST = 2**31 - 1


def _miscounted(config: Mapping[str, Any]) -> Fault | None:
    """A size of the model that is no size: 0, a text, null, a list."""
    for name in (*_COUNTS, *_OPTIONAL_COUNTS):
        count = config.get(name, 1)
        absent = count is None and name in _OPTIONAL_COUNTS
        if not absent and (type(count) is not int or not 0 < count <= _MOST):
            what = f"its config.json says {name} is {_shown(count)}, which is no size"
            return Fault(what, "take config.json anew from where the model comes from")
    return None


def _shown(value: object) -> str:
    if type(value) is int:
        return str(value) if abs(value) <= _MOST else "beyond 2^31"
    return "null" if value is None else f"a {type(value).__name__}"


def _unknown(config: Mapping[str, Any]) -> Fault | None:
    names = config["architectures"]
    name = str(names[0]) if isinstance(names, list) and names else "none"
    if name in ARCHITECTURES:
        return None
    known = ", ".join(ARCHITECTURES)
    return Fault(f"architecture '{name}' isn't supported", f"one of: {known}; or 'backend: llmapi'")


def _unlike(config: Mapping[str, Any], precision: Precision, pp: int) -> Fault | None:
    """What the architecture's models may have, or be made in, and TensorRT-LLM's class hasn't."""
    name = config["architectures"][0]
    ours = ARCHITECTURES[name]
    if precision.quant_algo in ours.without:
        return Fault(f"no {precision.name} checkpoint can be made of {name}", "remove it")
    if pp > 1 and not ours.pp:
        return Fault(f"TensorRT-LLM's {name} has no pipeline stages", "write 'pp: 1', and more tp")
    said = {**(config.get("rope_parameters") or {}), **config}
    only = dict(ours.only)
    if not ours.head_size:
        only["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    for field, value in only.items():
        if said.get(field) not in (None, value):
            return Fault(
                f"TensorRT-LLM's {name} has no {field} {said[field]}", "write 'backend: llmapi'"
            )
    return None


def _unsplit(config: Mapping[str, Any], precision: Precision, tp: int, pp: int) -> Fault | None:
    wrong = indivisible(config, precision, tp, pp)
    return Fault(wrong, "choose other 'tp:' and 'pp:'") if wrong else None

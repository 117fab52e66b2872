"""How far each layer of a model looks back, by its Hugging Face config.

A TensorRT-LLM checkpoint has no field for it: Triton's max_attention_window_size says it to the
engine, as NVIDIA's examples/llama/README.md (Mistral) does to its run.py. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# model types that have sliding_window in their config and yet use it only where this says so
_ASKED = "use_sliding_window"
_ONLY_IF_ASKED = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
# the one layer in so many that sees everything (transformers' configuration_<type>.py)
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}


def attention_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The tokens that each layer attends to, itself included; None for all there are.

    Empty where no layer has a window, or the config doesn't say how many layers there are.
    """
    window, kind = config.get("sliding_window"), config.get("model_type")
    layers = config.get("num_hidden_layers")
    if type(window) is not int or type(layers) is not int or window < 1:
        return ()
    if not config.get(_ASKED, kind not in _ONLY_IF_ASKED):
        return ()
    said = config.get("layer_types")
    every = config.get("sliding_window_pattern") or _FULL_EVERY.get(str(kind))
    if isinstance(said, list):
        slides = [each == "sliding_attention" for each in said]
    elif type(every) is int and every > 0:
        slides = [(index + 1) % every != 0 for index in range(layers)]
    else:  # Qwen's first layers see everything
        first = config.get("max_window_layers", 0) if kind in _ONLY_IF_ASKED else 0
        slides = [index >= first for index in range(layers)]
    return tuple(window if each else None for each in slides) if any(slides) else ()


def narrowest(config: Mapping[str, Any]) -> int | None:
    """The smallest window of any layer; None where all see everything."""
    return min((each for each in attention_windows(config) if each is not None), default=None)

"""transformers' attention, as TensorRT-LLM's engines compute it.

Comes in: queries, keys and values of a module. Goes out: the same, with keys and values rounded as
the engine's cache keeps them, and scores capped where the model caps them: transformers' sdpa
functions leave the cap out. Knows nothing of checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trtllm_deploy.checkpoint.tensors import KvRounding

_FP8_MAX = 448.0  # largest e4m3 value
_ATTENTIONS = ("sdpa", "paged|sdpa")


def attend_as_engines() -> None:
    """Replace transformers' functions, once.

    It chooses them by name, for the whole process; so the function of that name looks at the
    module, and does nothing new for one that neither caps nor rounds.
    """
    for name in _ATTENTIONS:
        function = ALL_ATTENTION_FUNCTIONS[name]
        if not getattr(function, "as_engines", False):
            ALL_ATTENTION_FUNCTIONS[name] = _as_engines(function)


def _as_engines(function: Callable[..., Any]) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
    ) -> Any:
        rounding = getattr(module, "kv_rounding", None)
        if isinstance(rounding, KvRounding):
            key = round_to(key, rounding.kind, rounding.k_scale)
            value = round_to(value, rounding.kind, rounding.v_scale)
        if more.get("softcap") is None:
            return function(module, query, key, value, mask, **more)
        return _capped(module, query, key, value, mask, **more), None

    attend.as_engines = True  # type: ignore[attr-defined]
    return attend


def _capped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
) -> Tensor:
    """Attention [batch, tokens, heads, size] whose scores are softcap x tanh(score / softcap)."""
    cache = more.get("cache")
    if cache is not None:  # of continuous batching (transformers' integrations/sdpa_paged.py)
        places = {name: more[name] for name in ("read_index", "write_index")}
        key, value = (
            each.transpose(0, 1).unsqueeze(0)
            for each in cache.update(
                key_states=key, value_states=value, layer_idx=module.layer_idx, **places
            )
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * more["scaling"]
    scores = torch.tanh(scores / more["softcap"]) * more["softcap"]
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    found: Tensor = (weights @ value).transpose(1, 2).contiguous()
    return found


def round_to(x: Tensor, kind: str, scale: float) -> Tensor:
    """``x`` rounded to ``scale`` times the nearest e4m3 (fp8) or integer (int8) value, clipped."""
    steps = x.float() / scale
    if kind == "fp8":
        steps = steps.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float()
    else:
        steps = steps.round().clamp(-128, 127)
    return (steps * scale).to(x.dtype)

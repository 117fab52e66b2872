"""Values as JSON has them, which has no number for infinity, and none for what isn't one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def spelt(value: float) -> float | str | None:
    """As JSON can have it: infinity in letters; nothing for what two of them leave undefined."""
    return None if math.isnan(value) else str(value) if math.isinf(value) else value


def json_text(value: object, indent: int | None = None) -> str:
    """The value as JSON that any parser takes; without ``indent`` on one line."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:  # a metrics page may say NaN
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    """The same without what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return spelt(value) if isinstance(value, float) else value

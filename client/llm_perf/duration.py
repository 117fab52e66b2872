"""Lengths of time as people write them: ``90``, ``1.5h``, ``1m30s``, ``500ms``."""

from __future__ import annotations

import re
from typing import Final

UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_ONE = rf"([0-9]{{1,12}}(?:\.[0-9]{{1,12}})?)\s*({'|'.join(sorted(UNITS, key=len, reverse=True))})"
_PART: Final = re.compile(_ONE)
_WHOLE: Final = re.compile(rf"(?:{_ONE}\s*)+")
_BARE: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


def parse_duration(text: str) -> float:
    """Read a length of time, in seconds where no unit is given; raises ``ValueError``."""
    text = text.strip()
    if _BARE.fullmatch(text):
        return float(text)
    if _WHOLE.fullmatch(text):
        return sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))
    raise ValueError(f"{text!r} is no length of time: write it like 90, 1m30s or 500ms")


def spell_duration(seconds: float) -> str:
    """Write a length of time for the eye: ``45 s``, ``33 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

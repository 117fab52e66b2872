"""Axes: values to pixels, with round ticks; and numbers as they are written beside them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says, and the values that it has to hold."""

    label: str
    values: Sequence[float]
    log: bool = False
    zero: bool = True  # a linear one begins there
    top: float | None = None  # a linear one ends there
    blank: bool = False  # without ticks


@dataclass(frozen=True, slots=True)
class Scale:
    """Values ``low`` to ``high`` on pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; one that is outside stands at the border."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, some five of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5)):
                all_of_them = [f * 10.0**d for d in decades for f in factors]
                found = [each for each in all_of_them if self.low <= each <= self.high]
                if len(found) >= 4 or (len(found) == 3 and len(factors) < 3):
                    return found[:: math.ceil(len(found) / 8)]
        step = round_step((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [each * step for each in range(first, last + 1)]


def round_step(about: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= about * 0.999)


def scale(axis: Axis, start: float, end: float) -> Scale:
    """Hold the axis' values between two pixels, with round ends where it is linear."""
    known = [each for each in axis.values if math.isfinite(each) and (each > 0 or not axis.log)]
    low, high = min(known, default=1.0), max(known, default=10.0)
    if axis.log:
        low, high = (low / 1.15, high * 1.15) if high > low * 1.05 else (low / 2, high * 2)
        return Scale(low, high, start, end, log=True)
    low = min(low, 0.0) if axis.zero and not axis.blank else low
    if axis.top is not None and low >= axis.top:  # as where every score is 1
        low = axis.top - (abs(axis.top) / 10 or 1.0)
    if high - low <= abs(low) * 1e-9:
        high = low + (abs(low) or 1.0)
    if axis.blank:
        return Scale(low, high, start, end)
    step = round_step(((high if axis.top is None else axis.top) - low) / 5 or 1.0)
    high = axis.top if axis.top is not None else step * math.ceil(high / step + 0.05)
    return Scale(step * math.floor(low / step), high, start, end)


def number(value: float) -> str:
    """Three digits that count, or all of a whole number."""
    if value == 0 or not 1e-6 <= abs(value) < 1e15:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text

"""Lengths in tokens, as people write them (``128`` or ``128±16``) and as they are drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from client.errors import UserError

_WRITTEN: Final = re.compile(r"([0-9]{1,9})(?:(?:±|\+-|\+/-)([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Normally distributed whole numbers, never below 1; ``spread`` is the standard deviation."""

    mean: int
    spread: int = 0

    def __str__(self) -> str:
        return f"{self.mean}±{self.spread}" if self.spread else str(self.mean)

    def draw(self, n: int, random: np.random.Generator, least: int = 1) -> list[int]:
        """Draw ``n`` lengths, none below ``least``."""
        drawn = np.rint(random.normal(self.mean, self.spread, n))
        return [int(each) for each in np.maximum(drawn, least)]


def parse_lengths(text: str, flag: str) -> Lengths:
    """Read ``N``, ``N±S`` or ``N+-S``; raises ``UserError`` naming ``flag``."""
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or int(match[1]) < 1:
        raise UserError(
            f"{text!r} is no length", where=flag, fix="write tokens like 128, or 128±16 (128+-16)"
        )
    return Lengths(int(match[1]), int(match[2] or 0))

"""How requests are offered to the server: here, a number of them always in flight.

Values only. The runner decides how a load becomes requests in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from client.errors import UserError


@dataclass(frozen=True, slots=True)
class Concurrency:
    """A closed loop: the next request is sent when one of ``n`` in flight has ended."""

    n: int

    @property
    def name(self) -> str:
        """The load's name in tables and file names."""
        return f"concurrency{self.n}"


Load: TypeAlias = Concurrency


def parse_concurrencies(text: str) -> tuple[Concurrency, ...]:
    """Read ``1,4,8``.

    Raises ``UserError`` for anything but distinct whole numbers above zero.
    """
    fix = "write whole numbers above 0, each once, like 1,4,8"
    loads: list[Concurrency] = []
    for word in text.split(","):
        word = word.strip()
        if not (word.isascii() and word.isdigit() and int(word) > 0):
            raise UserError(f"{word!r} is no concurrency", where="--concurrency", fix=fix)
        if Concurrency(int(word)) in loads:
            raise UserError(f"{word} is there twice", where="--concurrency", fix=fix)
        loads.append(Concurrency(int(word)))
    return tuple(loads)

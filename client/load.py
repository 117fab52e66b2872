"""How requests are offered to the server, as values: a load, and how much of it.

A closed loop keeps a number of requests in flight; an open loop sends at times that were drawn
before the start, whether the server keeps up or not. ``schedule`` turns a load into times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from client.errors import UserError

ARRIVALS = ("constant", "poisson", "gamma")


@dataclass(frozen=True, slots=True)
class Concurrency:
    """A closed loop: the next request is sent when one of ``n`` in flight has ended.

    With ``ramp_s`` the ``n`` start one by one, evenly over so many seconds.
    """

    n: int
    ramp_s: float = 0.0

    @property
    def name(self) -> str:
        """The load's name in file names."""
        return f"concurrency{self.n}"

    @property
    def title(self) -> str:
        """The load's name for the eye."""
        return f"concurrency {self.n}"

    def to_json(self) -> dict[str, Any]:
        """Give the load as it stands in exports."""
        return {"kind": "concurrency", "value": self.n, "ramp_s": self.ramp_s}


@dataclass(frozen=True, slots=True)
class Rate:
    """An open loop: ``per_s`` requests a second on average, all at once where it is infinite.

    ``constant`` gaps are equal, ``poisson`` gaps exponential, ``gamma`` gaps of shape
    ``burstiness``: below 1 burstier than Poisson, above 1 more even. All are drawn from ``seed``.
    With ``ramp_s`` the rate grows linearly from 0 over so many seconds.
    """

    per_s: float
    arrival: str = "poisson"
    burstiness: float = 1.0
    seed: int = 0
    ramp_s: float = 0.0

    def __post_init__(self) -> None:
        """Check what has no meaning together; raises ``UserError``."""
        if self.arrival not in ARRIVALS:
            raise UserError(
                f"unknown arrival {self.arrival!r}", fix=f"use one of: {', '.join(ARRIVALS)}"
            )
        if self.burstiness != 1 and self.arrival != "gamma":
            raise UserError(
                f"{self.arrival} arrivals have no burstiness", fix="use --arrival gamma with it"
            )

    @property
    def name(self) -> str:
        """The load's name in file names."""
        return f"rate{self.per_s:g}"

    @property
    def title(self) -> str:
        """The load's name for the eye."""
        return f"rate {self.per_s:g}/s" if math.isfinite(self.per_s) else "all at once"

    def to_json(self) -> dict[str, Any]:
        """Give the load as it stands in exports; an infinite rate is ``None``, as JSON has none."""
        return {
            "kind": "request_rate",
            "value": self.per_s if math.isfinite(self.per_s) else None,
            "arrival": self.arrival,
            "burstiness": self.burstiness,
            "seed": self.seed,
            "ramp_s": self.ramp_s,
        }


@dataclass(frozen=True, slots=True)
class Trace:
    """An open loop that follows the prompts' own times (``at_s``), the first at the start."""

    name = "trace"
    title = "trace"

    def to_json(self) -> dict[str, Any]:
        """Give the load as it stands in exports."""
        return {"kind": "trace", "value": None}


Load: TypeAlias = Concurrency | Rate | Trace


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a load: the data set once, unless a number or a time says otherwise.

    ``requests`` repeats or cuts the data set; with ``duration_s`` none is sent later than that
    (and those in flight are waited for); with both, what ends first. The first ``warmup_requests``,
    or those of the first ``warmup_s`` seconds, are sent under the same load ahead of the measured
    ones and stay out of all figures; they ask the data set's last prompts, backwards.
    """

    requests: int | None = None
    duration_s: float | None = None
    warmup_requests: int = 0
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        """Check what has no meaning together; raises ``UserError``."""
        if self.warmup_requests and self.warmup_s:
            raise UserError("a warm-up has a number of requests or of seconds, not both")

    def to_json(self) -> dict[str, Any]:
        """Give the extent as it stands in exports."""
        return {
            "requests": self.requests,
            "duration_s": self.duration_s,
            "warmup_requests": self.warmup_requests,
            "warmup_s": self.warmup_s,
        }


ONCE = Extent()
"""The data set once, without warm-up."""


def parse_concurrencies(text: str, ramp_s: float = 0.0) -> tuple[Concurrency, ...]:
    """Read ``1,4,8``.

    Raises ``UserError`` for anything but distinct whole numbers above zero.
    """
    fix = "write whole numbers above 0, each once, like 1,4,8"
    numbers = _read_list(text, _whole, "concurrency", fix)
    return tuple(Concurrency(n, ramp_s) for n in numbers)


def parse_rates(text: str) -> tuple[float, ...]:
    """Read ``0.5,2,inf``, requests a second.

    Raises ``UserError`` for anything but distinct numbers above zero.
    """
    fix = "write numbers above 0, each once, like 0.5,2,4, or inf"
    return _read_list(text, _positive, "request-rate", fix)


_Number = TypeVar("_Number", int, float)


def _read_list(
    text: str, read: Callable[[str], _Number | None], name: str, fix: str
) -> tuple[_Number, ...]:
    numbers: list[_Number] = []
    for word in (word.strip() for word in text.split(",")):
        number = read(word)
        if number is None:
            raise UserError(f"{word!r} is no {name}", where=f"--{name}", fix=fix)
        if number in numbers:
            raise UserError(f"{word} is there twice", where=f"--{name}", fix=fix)
        numbers.append(number)
    return tuple(numbers)


def _whole(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and int(word) > 0 else None


def _positive(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if number > 0 else None  # NaN is not above 0 either

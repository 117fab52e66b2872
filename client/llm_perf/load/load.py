"""How requests are offered to the server, as values: a load, how much of it, with what conditions.

A closed loop keeps a number of requests in flight; an open loop sends at times that were drawn
before the start, whether the server keeps up or not. ``schedule`` turns a load into times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llm_perf.errors import UserError
from llm_perf.load.progress import Watch

if TYPE_CHECKING:
    from llm_perf.figures.goodput import Goodput

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
        drawn = asdict(self)
        per_s = drawn.pop("per_s")
        value = per_s if math.isfinite(per_s) else None
        return {"kind": "request_rate", "value": value, **drawn}


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
    (and those in flight are waited for); with both, what ends first. ``warmup_requests``, or those
    of ``warmup_s`` seconds, are sent under the same load, ramp and all, and answered before the
    first measured one is sent. They stay out of all figures, and ask other prompts: the data set's
    last, backwards, each with another beginning.
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
        return asdict(self)


ONCE = Extent()
"""The data set once, without warm-up."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How to measure."""

    request_timeout_s: float = 300.0
    watch: Watch | None = None  # told of progress twice a second, in a thread; may end the load
    extent: Extent = ONCE
    max_in_flight: int = 10_000  # of an open loop: what is due beyond waits, and its times show it
    stop_after_failures: int | None = None
    give_up_after_s: float = 10.0  # of refusals with nothing answered
    max_answer_bytes: int = 2**20  # kept of one answer, beside 1 KiB for each token asked for
    journal: Path | None = None  # where each finished request is kept
    resume: bool = False  # ask only what the journal lacks
    resume_anyway: bool = False  # also where what was finished is another server's
    # processes that share the load, None: the load decides (workers_for); more than one are
    # spawned, so a script that asks for them needs its __main__ guard
    workers: int | None = 1
    ray: str | None = None  # address of a cluster to run them on, None of them: one per machine
    interruptible: bool = False  # on the main thread: the first Ctrl-C ends the load in order
    defaults: Mapping[str, int] = field(default_factory=dict)  # for prompts that say nothing
    unique_prefix: bool = False  # each prompt begins with a tag of its own
    score: str = "exact"  # a name of llm_perf.figures.accuracy.SCORERS
    goodput: Goodput | None = None
    server_metrics_url: str | None = None
    server_metrics_every_s: float = 1.0


DEFAULTS = Conditions()
"""What a run has that says nothing else."""


def parse_concurrencies(text: str, ramp_s: float = 0.0) -> tuple[Concurrency, ...]:
    """Read ``1,4,8``.

    Raises ``UserError`` for anything but distinct whole numbers above zero.
    """
    fix = "write whole numbers above 0, each once, like 1,4,8"
    read = _read_list(text, r"[0-9]+", "concurrency", fix)
    return tuple(Concurrency(int(n), ramp_s) for n in read)


def parse_rates(text: str) -> tuple[float, ...]:
    """Read ``0.5,2,inf``, requests a second.

    Raises ``UserError`` for anything but distinct numbers above zero.
    """
    return _read_list(
        text, r".*", "request-rate", "write numbers above 0, each once, like 0.5,2,4, or inf"
    )


def _read_list(text: str, written: str, name: str, fix: str) -> tuple[float, ...]:
    numbers: list[float] = []
    for word in (word.strip() for word in text.split(",")):
        try:
            number = float(word if re.fullmatch(written, word) else "")
        except ValueError:
            number = 0.0
        if not number > 0:  # nor is NaN
            raise UserError(f"{word!r} is no {name}", where=f"--{name}", fix=fix)
        if number in numbers:
            raise UserError(f"{word} is there twice", where=f"--{name}", fix=fix)
        numbers.append(number)
    return tuple(numbers)

"""A search made real: its runs measured one by one and kept in a ledger, or read from there.

Who measures is handed in. A search that was killed and is begun again with the same question,
target, prompts and seed asks for the same runs, so those in the ledger are not made twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

import numpy as np

from llm_perf.errors import UserError
from llm_perf.figures.goodput import Goodput
from llm_perf.figures.metrics import DEFINITIONS
from llm_perf.ledger.ledger import append_measurement, read_measurements
from llm_perf.ledger.measurement import Planned, Target
from llm_perf.load.load import Concurrency, Conditions, Extent, Load, Rate
from llm_perf.load.progress import Progress, Watch
from llm_perf.record import Record
from llm_perf.results.run import Run
from llm_perf.search.hopeless import Hopeless
from llm_perf.search.hunt import Hunt, SpentError, hunt
from llm_perf.search.question import Answer, Ask, Question
from llm_perf.search.seen import Criterion, Requests, Seen, look
from llm_perf.transports import Endpoint
from llm_perf.workload.workload import Workload

Measure: TypeAlias = Callable[[Endpoint, Workload, Load, Conditions], Run]
OnRun: TypeAlias = Callable[[Ask, Seen, bool], None]
"""Told of each run, what it showed, and whether the ledger had it."""
_SPENT: Final = "the budget is spent"
_POISSON: Final = Rate(1.0)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a search measures: the server as it is asked and as the ledger knows it, what is sent.

    ``folder`` has the ledger; ``arrivals`` gives kind and burstiness of the gaps at a rate, its
    other values don't count. ``versions`` and ``gpu`` go into the ledger as they are.
    """

    endpoint: Endpoint
    target: Target
    workload: Workload
    folder: Path
    conditions: Conditions
    arrivals: Rate = _POISSON
    study: str = ""
    versions: Mapping[str, Any] | None = None
    gpu: Mapping[str, Any] | None = None


def search(question: Question, site: Site, measure: Measure, on_run: OnRun | None = None) -> Answer:
    """Find the highest load within the limits; blocks.

    Raises ``UserError`` as measuring does, or when the server is gone in the middle, and
    ``KeyboardInterrupt``; the same call then goes on where it was.
    """
    known = {each["id"]: each["search"] or {} for each in read_measurements(site.folder)}
    hunting = hunt(question)
    spent_s = 0.0
    try:
        ask = next(hunting)
        while True:
            planned = _planned(question, site, ask)
            read = known.get(planned.id, {})
            seen = before = _before(read, question)
            if before is None and not _cut_before(read, question):
                seen = _measured(question, site, planned, measure, question.budget_s - spent_s)
            if seen is None:
                return _told_that_it_is_spent(hunting)
            if on_run:
                on_run(ask, seen, before is not None)
            spent_s += seen.duration_s
            ask = hunting.send(seen)
    except StopIteration as found:
        answer: Answer = found.value
        return answer


def searched(question: Question, site: Site) -> Answer | None:
    """The answer as the site's ledger has it; ``None`` where a run is missing there."""

    def missing(*_: object) -> Run:
        raise _MissingError

    try:
        return search(question, site, missing)
    except _MissingError:
        return None


class _MissingError(Exception):
    """A run isn't in the ledger."""


def _told_that_it_is_spent(hunting: Hunt) -> Answer:
    try:
        hunting.throw(SpentError())
    except StopIteration as found:
        answer: Answer = found.value
        return answer
    raise AssertionError("a hunt without a budget asks for nothing")


def _planned(question: Question, site: Site, ask: Ask) -> Planned:
    load: Load = Concurrency(int(ask.value))
    if ask.vary == "request_rate":
        load = replace(site.arrivals, per_s=ask.value, seed=ask.seed)
    return Planned(
        site.target,
        load,
        site.workload,
        Extent(ask.requests),
        ask.seed,
        ask.repetition,
        kind="probe",
        unique_prefix=site.conditions.unique_prefix,
        study=site.study,
        gpu=site.gpu,
        versions=site.versions or {},
        search={
            "limits": [str(each.limit) for each in question.criteria],
            "vary": question.vary,
            "mode": question.mode.name,
            "stage": ask.stage,
            "number": ask.number,
        },
    )


def _before(read: Mapping[str, Any], question: Question) -> Seen | None:
    """What the ledger has of a run, if it was looked at for the same limits."""
    limits = [str(each.limit) for each in question.criteria]
    seen = read.get("seen")
    return Seen.from_json(seen) if seen and read.get("limits") == limits else None


def _cut_before(read: Mapping[str, Any], question: Question) -> bool:
    """Whether no larger budget than this ended the run in its middle."""
    return question.budget_s <= float(read.get("cut_by_budget_s", -1.0))


def _measured(
    question: Question, site: Site, planned: Planned, measure: Measure, left_s: float
) -> Seen | None:
    """Make a run and keep it; ``None`` where the budget ended it."""
    limits = [each.limit for each in question.criteria]
    per_request = tuple(
        replace(each, statistic=None) for each in limits if each.metric in DEFINITIONS
    )
    began = monotonic()
    conditions = replace(
        site.conditions,
        extent=planned.extent,
        goodput=Goodput(per_request) if per_request else None,
        watch=_watching(
            site.conditions.watch,
            Hopeless(limits) if isinstance(planned.load, Rate) else None,
            began + left_s,
        ),
    )
    run = measure(site.endpoint, site.workload, planned.load, conditions)
    hopeless = run.stopped if run.stopped and run.stopped.startswith("hopeless") else None
    if run.stopped == _SPENT:
        cut = {**(planned.search or {}), "cut_by_budget_s": question.budget_s}
        append_measurement(site.folder, replace(planned, search=cut).measured(run))
        return None
    if run.stopped == "interrupted":
        raise KeyboardInterrupt
    if run.stopped and not hopeless:
        raise UserError(
            f"the search ended at {planned.load.title}: {run.stopped}",
            fix="see to the server; the same command goes on from there",
        )
    seen = look_at(question, run, monotonic() - began, hopeless)
    kept = replace(planned, search={**(planned.search or {}), "seen": seen.to_json()})
    append_measurement(site.folder, kept.measured(run))
    return seen


def _watching(watch: Watch | None, hopeless: Hopeless | None, until: float) -> Watch:
    def look(seen: Progress) -> str | None:
        if watch:
            watch(seen)
        if monotonic() > until:
            return _SPENT
        return hopeless.look(seen) if hopeless else None

    return look


def look_at(question: Question, run: Run, duration_s: float, hopeless: str | None = None) -> Seen:
    """What a run showed; ``duration_s`` is what it took of the budget."""
    records = list(run.records)
    scores = run.accuracy.values if run.accuracy else (None,) * len(records)
    order = sorted(range(len(records)), key=lambda i: records[i].scheduled_ns)
    load, throughput = run.load, run.metrics["request_throughput"]
    return look(
        question.criteria,
        Requests(
            at=np.array([records[i].scheduled_ns * 1e-9 for i in order]),
            values=[
                np.array([_value(each, records[i], scores[i]) for i in order])
                for each in question.criteria
            ],
            ok=np.array([records[i].ok for i in order]),
            ttft=np.array([_ms(records[i].ttft_ns) for i in order]),
        ),
        drained=load.n if isinstance(load, Concurrency) else 0,
        throughput=_number(throughput.get("steady") or throughput["avg"]),
        in_flight=_number(run.metrics["requests_in_flight"]["avg"]),
        duration_s=duration_s,
        hopeless=hopeless,
        client_bound=run.health is not None and run.health.client_bound,
        offered=1.0 if isinstance(load, Concurrency) else _offered(records),
    )


def _offered(records: Sequence[Record]) -> float:
    """By how much of the rate that was due requests left: a client may be late, or full."""
    left = [each for each in records if each.sent_ns]
    due, sent = (
        max(times, default=0) - min(times, default=0)
        for times in ([each.scheduled_ns for each in left], [each.sent_ns for each in left])
    )
    return min(due / sent, 1.0) if sent else 1.0


def _value(criterion: Criterion, record: Record, score: float | None) -> float:
    if criterion.limit.metric == "score":
        return math.nan if score is None else score
    values = DEFINITIONS[criterion.limit.metric].of(record)
    return values[0] if len(values) else math.nan


def _ms(nanoseconds: float | None) -> float:
    return math.nan if nanoseconds is None else nanoseconds * 1e-6


def _number(value: float | int | str | None) -> float:
    return float(value) if isinstance(value, float | int) else 0.0

"""``compare``: servers measured in alternation, and what the others differ in from the first.

In: subjects, an offer, the GPUs. Out: changes with their intervals, drifts, what to say of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from llm_perf import api
from trtllm_deploy.study.blocks import Offer, Study, Subject, measure_blocks
from trtllm_deploy.study.room import gpus_apart

_LONGER = 2  # times the requests, where each block takes a start, and so many fewer blocks


@dataclass(frozen=True, slots=True)
class Pair:
    """The first subject against one of the others."""

    name: str
    changes: tuple[api.Change, ...]
    blocks: int


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of it: ``pairs`` with the first, sentences about all, who failed and why."""

    first: str
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)
    measurements: dict[str, list[api.Measurement]] = field(default_factory=dict)


def compare(
    subjects: Sequence[Subject],
    offer: Offer,
    blocks: int,
    study: Study,
    gpus: Sequence[str],
    *,
    fits: bool = True,
) -> Compared:
    """Measure the subjects in alternation and say what the others differ in from the first.

    ``gpus`` are those of this machine; ``fits``: its memory has room for all at once.
    """
    apart = gpus_apart([each.gpus for each in subjects], gpus) if fits else None
    remarks = []
    if apart is None:
        offer = replace(offer, requests=_LONGER * offer.requests)
        blocks = max(2, ceil(blocks / _LONGER))
        remarks.append(
            "the servers don't fit here at once, so that each was started twice and measured in"
            f" two stays: {blocks} longer blocks, and drift counts for more"
        )
    came, failed = measure_blocks(subjects, offer, range(blocks), study, apart)
    first = subjects[0].name
    pairs = tuple(
        Pair(each, tuple(api.block_changes(came[first], came[each], study.folder)), blocks)
        for each in came
        if first in came and each != first
    )
    remarks += [*_drifts(came), *_warnings(came)]
    return Compared(first, pairs, tuple(remarks), failed, came)


def _drifts(came: dict[str, list[api.Measurement]]) -> Iterator[str]:
    for name, measured in came.items():
        told = [
            f"{metric} {moved.percent:+.1f} % ({moved.low:+.1f} to {moved.high:+.1f})"
            for metric, moved in api.drifts(measured)
        ]
        if told:
            yield f"drift of {name} from the first block to the last: {', '.join(told)}"


def _warnings(came: dict[str, list[api.Measurement]]) -> Iterator[str]:
    for name, measured in came.items():
        failed, asked = (
            sum(each[key] for each in measured) for key in ("requests_failed", "requests_ok")
        )
        if failed:
            yield f"{name}: {failed} of {failed + asked} requests failed; figures are of the others"
        if any((each["client"] or {}).get("client_bound") for each in measured):
            yield f"{name}: the client was the bottleneck, so these figures are not the server's"
        seen = dict.fromkeys(note for each in measured for note in each["notes"])
        yield from (f"{name}: {note}" for note in seen if "left out what the server" in note)
    lengths = {name: _osl(measured) for name, measured in came.items()}
    known = [each for each in lengths.values() if each]
    if known and max(known) > 1.02 * min(known):
        told = ", ".join(f"{name} {osl:.1f}" for name, osl in lengths.items() if osl)
        yield f"answers differ in length (tokens on average: {told}): give --osl to have them alike"


def _osl(measured: Sequence[api.Measurement]) -> float | None:
    values = [each["workload"]["osl_avg"] for each in measured if each["workload"]["osl_avg"]]
    return sum(values) / len(values) if values else None

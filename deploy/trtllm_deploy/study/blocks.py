"""Servers measured in alternation: the same prompts at the same times to each, block after block.

In: who is measured and what is offered. Out: measurements by server, each in the ledger before the
next begins; what is there already isn't measured again, a block that was cut is, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from llm_perf import UserError, api
from trtllm_deploy.study.alternation import orders, stays
from trtllm_deploy.study.up import Up

_WARM_SHARE = 10  # one of so many requests of a block goes before it, unmeasured
_LOOK_S = 0.2  # between two looks at a server's metrics; TensorRT-LLM's are new every 0.1 s


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured. ``up`` makes it answer, on the GPUs it is given (``gpus`` is how many)."""

    name: str
    target: api.Target
    workload: api.Workload
    up: Callable[[Sequence[str]], AbstractContextManager[Up]]
    gpus: int = 0


def warmup_of(requests: int) -> int:
    """How many requests go before a block of so many, unmeasured."""
    return max(1, requests // _WARM_SHARE)


@dataclass(frozen=True, slots=True)
class Offer:
    """What each block offers: ``requests`` of the prompts, other ones in each block.

    ``load`` draws its arrivals from ``seed`` and the block's number.
    """

    load: api.Load
    requests: int
    warmup: int = 0
    seed: int = 0
    request_timeout_s: float = 300.0
    score: str = "exact"

    def planned(self, subject: Subject, number: int, study: str) -> api.Planned:
        """One block, before it is measured."""
        seed = self.seed + number
        load = replace(self.load, seed=seed) if isinstance(self.load, api.Rate) else self.load
        return api.Planned(
            subject.target,
            load,
            subject.workload.part(number * self.requests, self.requests),
            api.Extent(requests=self.requests, warmup_requests=self.warmup),
            seed=seed,
            repetition=number,
            kind="block",
            study=study,
        )


@dataclass(frozen=True, slots=True)
class Study:
    """Where measurements are kept, and who is told what happens.

    ``again``: what was measured before is measured anew.
    """

    name: str
    folder: Path
    say: Callable[[str], None]
    again: bool = False


Came = dict[str, list[api.Measurement]]


def measure_blocks(
    subjects: Sequence[Subject],
    offer: Offer,
    numbers: range,
    study: Study,
    gpus: Sequence[tuple[str, ...]] | None,
) -> tuple[Came, dict[str, str]]:
    """Measure the blocks of these numbers; measurements by subject, and why some couldn't be.

    ``gpus`` are those of each subject where all are up at once, ``None`` where one is at a time.
    Who fails is left out of what follows.
    """
    run = _Blocks(subjects, offer, numbers, study)
    if gpus is not None:
        run.together(gpus)
    else:
        run.one_by_one()
    came = {
        each.name: [
            run.done[each.name, number] for number in numbers if (each.name, number) in run.done
        ]
        for each in subjects
        if each.name not in run.failed
    }
    return came, run.failed


class _Blocks:
    def __init__(
        self, subjects: Sequence[Subject], offer: Offer, numbers: range, study: Study
    ) -> None:
        self._subjects, self._offer, self._study = subjects, offer, study
        self._numbers = numbers
        self.failed: dict[str, str] = {}
        self._planned = {
            (each.name, number): offer.planned(each, number, study.name)
            for each in subjects
            for number in numbers
        }
        kept = {} if study.again else {x["id"]: x for x in api.read_measurements(study.folder)}
        whole = api.finished(kept.values())
        self.done: dict[tuple[str, int], api.Measurement] = {
            key: kept[planned.id] for key, planned in self._planned.items() if planned.id in whole
        }

    def together(self, gpus: Sequence[tuple[str, ...]]) -> None:
        """All are up; in each block one after the other, in turns."""
        todo = [
            number
            for number in self._numbers
            if any((each.name, number) not in self.done for each in self._subjects)
        ]
        if not todo:
            return
        with ExitStack() as stack:
            up: dict[str, Up] = {}
            for each, own in zip(self._subjects, gpus, strict=True):
                if (came := self._start(stack, each, own)) is not None:
                    up[each.name] = came
            for number, order in zip(
                self._numbers, orders(len(self._subjects), len(self._numbers)), strict=True
            ):
                for place in order if number in todo else ():
                    self._measure(self._subjects[place], number, up)

    def one_by_one(self) -> None:
        """Only one is up at a time, each of them twice."""
        for place, part in stays(len(self._subjects), len(self._numbers)):
            subject = self._subjects[place]
            numbers = [self._numbers[each] for each in part]
            if all((subject.name, number) in self.done for number in numbers):
                continue
            with ExitStack() as stack:
                if subject.name in self.failed:
                    continue
                up = self._start(stack, subject, ())
                for number in numbers if up else ():
                    self._measure(subject, number, {subject.name: up} if up else {})

    def _start(self, stack: ExitStack, subject: Subject, gpus: Sequence[str]) -> Up | None:
        self._study.say(f"starting {subject.name}")
        try:
            return stack.enter_context(subject.up(gpus))
        except UserError as error:
            self._fail(subject, min(self._numbers), str(error))
            return None

    def _measure(self, subject: Subject, number: int, up: Mapping[str, Up]) -> None:
        if subject.name in self.failed or subject.name not in up:
            return
        place = up[subject.name]
        planned = self._planned[subject.name, number].at(place.endpoint)
        with api.show_progress(f"  block {number} of {subject.name}") as watch:
            conditions = api.Conditions(
                self._offer.request_timeout_s,
                watch,
                extent=planned.extent,
                score=self._offer.score,
                server_metrics_every_s=_LOOK_S,
            )
            try:
                run = api.measure(
                    place.endpoint, planned.workload, planned.load, place.conditions(conditions)
                )
            except UserError as error:
                self._fail(subject, number, str(error))
                return
        file = Path("blocks") / f"{planned.id}.json"
        api.write_run(run, self._study.folder / file)
        line = planned.measured(run, {"requests": str(file.with_suffix(".jsonl"))})
        api.append_measurement(self._study.folder, line)
        self.done[subject.name, number] = line

    def _fail(self, subject: Subject, number: int, why: str) -> None:
        """Note it in the ledger; a failed one is tried again the next time."""
        self.failed[subject.name] = why
        failed = self._planned[subject.name, number].failed(why)
        api.append_measurement(self._study.folder, failed)
        self._study.say(f"{subject.name}: {why}")

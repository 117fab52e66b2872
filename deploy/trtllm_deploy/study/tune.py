"""``tune``: the search of :mod:`tuner` against servers, and what it came to as a table and a patch.

In: a deployment file with a ``tune:`` block, how a point is planned and built. Out: measurements in
the ledger, changes against the baseline, evidence, the best point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from llm_perf import UserError, api
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.studies import TuneSpec
from trtllm_deploy.study.blocks import Offer, Study, Subject, measure_blocks
from trtllm_deploy.study.evidence import EngineLimits, read_evidence
from trtllm_deploy.study.room import fit_in_memory, folder_bytes, gpus_apart
from trtllm_deploy.study.space import Point, Setting, Space
from trtllm_deploy.study.tuner import Blocks, Ending, Search, Seen, Tuner
from trtllm_deploy.study.up import served, target_of
from trtllm_deploy.workspace.folder import Workspace

_OF_CAPACITY = 0.8  # of what a closed loop gets through, where no rate was shown in time
_WARM_SHARE = 10  # one of so many requests of a block goes before it, unmeasured


@dataclass(frozen=True, slots=True)
class Placed:
    """A point as a cell: its plan, and the deployment file that has it alone."""

    plan: CellPlan
    file: DeploymentFile
    limits: EngineLimits


@dataclass(frozen=True, slots=True)
class Ways:
    """How a point becomes something to measure, and who is told.

    ``place`` plans a point and ``unfit`` says why the memory plan excludes it; both raise UserError
    for values that the file can't have. ``build`` makes what cells lack and says why some can't be
    made, by cell name. ``gpus`` are those of this machine.
    """

    place: Callable[[Point], Placed]
    unfit: Callable[[Point], str | None]
    build: Callable[[Sequence[Placed]], Mapping[str, str]]
    gpus: tuple[str, ...] = ()


@dataclass(slots=True)
class Tuned:
    """What tuning came to, with the measurements of each point that could be measured."""

    ending: Ending
    baseline: Point
    offer: Offer
    came: dict[Point, list[api.Measurement]] = field(default_factory=dict)


def space_of(spec: TuneSpec) -> Space:
    """The settings of a ``tune:`` block."""
    settings = []
    for name, values in spec.settings.items():
        if isinstance(values, str):
            low, _, high = values.partition("..")
            settings.append(Setting(name, (int(low),), int(high)))
        else:
            settings.append(Setting(name, tuple(values)))
    return Space(tuple(settings))


def cost(measured: api.Measurement, limits: Sequence[api.Limit]) -> float:
    """What a block costs, on a log scale: the less the better.

    At a given rate how near it comes to the worst kept of the limits, or how far it is beyond;
    in a closed loop (or without limits) its throughput, and what it is beyond the limits. Requests
    that fail cost what they are of all.
    """
    ok, failed = measured["requests_ok"], measured["requests_failed"]
    if not ok:
        return math.inf
    ratios = [_ratio(measured, limit) for limit in limits]
    lost = -math.log(ok / (ok + failed))
    if ratios and measured["load"]["kind"] == "request_rate":
        return max(ratios) + lost
    speed = measured["metrics"].get("output_token_throughput", {}).get("avg")
    if not isinstance(speed, (int, float)) or speed <= 0:
        return math.inf
    return max([0.0, *ratios]) - math.log(speed) + lost


def _ratio(measured: api.Measurement, limit: api.Limit) -> float:
    """How near a figure is to its limit: 0 at it, below within; infinite where there is none."""
    if limit.metric == "score":
        value = (measured["score"] or {}).get("value")
    else:
        value = measured["metrics"].get(limit.metric, {}).get(limit.statistic or "avg")
    if not isinstance(value, (int, float)) or value <= 0 or limit.value <= 0:
        within = isinstance(value, (int, float)) and limit.holds(value)
        return -math.inf if within else math.inf
    ratio = math.log(value / limit.value)
    return ratio if limit.upper else -ratio


def _unfit(blocks: Sequence[api.Measurement], limits: Sequence[api.Limit]) -> str | None:
    """The limit on the score that a point breaks: no load mends that."""
    scores = [each["score"]["value"] for each in blocks if each["score"]]
    mean = sum(scores) / len(scores) if scores else None
    for limit in limits:
        if limit.metric == "score" and mean is not None and not limit.holds(mean):
            return f"its score, {mean:.3f}, breaks {limit}"
    return None


def tune(
    file: DeploymentFile,
    spec: TuneSpec,
    limits: Sequence[api.Limit],
    ways: Ways,
    workspace: Workspace,
    study: Study,
) -> Tuned:
    """Run the search to its end. Raises UserError where the baseline can't be measured at all."""
    return _Tuning(file, spec, limits, ways, workspace, study).run()


class _Tuning:
    def __init__(
        self,
        file: DeploymentFile,
        spec: TuneSpec,
        limits: Sequence[api.Limit],
        ways: Ways,
        workspace: Workspace,
        study: Study,
    ) -> None:
        self._file, self._spec, self._limits = file, spec, limits
        self._ways, self._workspace, self._study = ways, workspace, study
        self._placed: dict[Point, Placed] = {}
        self._space = space_of(spec)
        load: api.Load = api.Concurrency(spec.concurrency or 1)
        if spec.request_rate is not None:
            load = api.Rate(spec.request_rate)
        self._offer = Offer(load, spec.requests, max(1, spec.requests // _WARM_SHARE))
        self.came: dict[Point, list[api.Measurement]] = {}

    def run(self) -> Tuned:
        searches = self._spec.concurrency is None and self._spec.request_rate is None
        tuner = Tuner(self._space, self._ways.unfit, self._spec.blocks, searches=searches)
        steps = tuner.steps()
        try:
            asked = next(steps)
            while True:
                if isinstance(asked, Search):
                    asked = steps.send(self._search(asked.point))
                else:
                    asked = steps.send(self._measure(asked))
        except StopIteration as ended:
            ending: Ending = ended.value
        baseline = self._space.baseline
        if baseline not in self.came:
            why = ending.excluded.get(baseline, "it wasn't measured")
            raise UserError(f"the baseline ({baseline}) can't be measured: {why}")
        return Tuned(ending, baseline, self._offer, self.came)

    def _search(self, point: Point) -> float | None:
        """The highest rate of a point, for comparing at where it is the baseline's."""
        say = self._study.say
        say(f"looking for the highest rate of {point}")
        if self._build([point]):
            return None
        answer = self._answer(self._subject(point))
        rate = answer.about or (answer.low.value if answer.low else None)
        say(f"{point}: {f'{rate:.3g}/s' if rate else f'no rate was shown: {answer.ended}'}")
        if point == self._space.baseline:
            at = rate or _OF_CAPACITY * (answer.capacity or 0)
            self._offer = replace(self._offer, load=api.Rate(at) if at else api.Concurrency(1))
            say(f"comparing at {self._offer.load.title}")
        return rate

    def _answer(self, subject: Subject) -> api.Answer:
        criteria = tuple(api.Criterion(each) for each in self._limits if each.metric != "score")
        question = api.Question(criteria, budget_s=self._spec.budget)
        with subject.up(self._ways.gpus[: subject.gpus]) as up:
            target = replace(
                subject.target,
                url=up.endpoint.url,
                protocol=up.endpoint.protocol,
                model=up.endpoint.model,
            )
            conditions = api.Conditions(
                self._offer.request_timeout_s, server_metrics_url=up.metrics_url
            )
            site = api.Site(
                up.endpoint,
                target,
                subject.workload,
                self._study.folder,
                conditions,
                study=self._study.name,
            )
            return api.search_limits(question, site)

    def _measure(self, asked: Blocks) -> dict[Point, Seen]:
        failed = self._build(asked.points)
        points = [each for each in asked.points if each not in failed]
        answer = {point: Seen(failed=why) for point, why in failed.items()}
        if not points:
            return answer
        subjects = [self._subject(each) for each in points]
        came, lost = measure_blocks(
            subjects, self._offer, asked.numbers, self._study, self._room(points)
        )
        for point, subject in zip(points, subjects, strict=True):
            if subject.name in lost:
                answer[point] = Seen(failed=lost[subject.name])
                continue
            blocks = came[subject.name]
            kept = self.came.setdefault(point, [])
            kept += blocks
            evidence = read_evidence(kept, self._placed[point].limits, *self._lengths(subject))
            costs = [cost(each, self._limits) for each in blocks]
            answer[point] = Seen(
                dict(zip(asked.numbers, costs, strict=True)),
                evidence,
                unfit=_unfit(kept, self._limits),
            )
            self._study.say(f"{point}: {evidence.verdict} ({evidence})")
        return answer

    def _build(self, points: Sequence[Point]) -> dict[Point, str]:
        """Plan and make what lacks; why it can't be, by point."""
        failed = {}
        for point in points:
            if point not in self._placed:
                try:
                    self._placed[point] = self._ways.place(point)
                except UserError as error:
                    failed[point] = str(error)
        placed = {point: self._placed[point] for point in points if point not in failed}
        unbuilt = self._ways.build(list(placed.values()))
        names = {point: each.plan.cell.name for point, each in placed.items()}
        return failed | {point: unbuilt[name] for point, name in names.items() if name in unbuilt}

    def _subject(self, point: Point) -> Subject:
        placed = self._placed[point]
        plan, file, space = placed.plan, placed.file, self._workspace
        measure = self._file.deployment.measure
        data = self._spec.data or (measure.data if measure else None)
        if data is None:
            raise UserError(
                "there are no prompts to tune with",
                where=self._file.path,
                fix="name a jsonl in tune.data or measure.data",
            )
        limit = self._spec.max_tokens or (measure.max_tokens if measure else None)
        workload = api.load_workload(
            self._file.resolve(data), space.artifact(plan.fetch), limit or plan.cell.osl
        )
        up = partial(served, plan, file, space)
        gpus = plan.cell.world_size if self._ways.gpus else 0
        return Subject(str(point), target_of(plan, file), workload, up, gpus)

    def _lengths(self, subject: Subject) -> tuple[float, float]:
        prompts = subject.workload.prompts
        known = [each.input_tokens for each in prompts if each.input_tokens is not None]
        most = [each.max_tokens for each in prompts]
        return (sum(known) / len(known) if known else 0.0), sum(most) / len(most)

    def _room(self, points: Sequence[Point]) -> list[tuple[str, ...]] | None:
        plans = [self._placed[each].plan for each in points]
        if not self._ways.gpus:
            weights = [folder_bytes(self._workspace.artifact(each.checkpoint)) for each in plans]
            return [()] * len(plans) if fit_in_memory(weights) else None
        return gpus_apart([each.cell.world_size for each in plans], self._ways.gpus)

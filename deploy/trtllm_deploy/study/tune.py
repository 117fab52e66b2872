"""``tune``: the search of :mod:`tuner` against servers, and what it came to as a table and a patch.

In: a deployment file with a ``tune:`` block, how a point is planned and built. Out: measurements in
the ledger, changes against the baseline, evidence, the best point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from llm_perf import UserError, api
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.studies import TuneSpec
from trtllm_deploy.study.blocks import Offer, Study, Subject, measure_blocks, warmup_of
from trtllm_deploy.study.evidence import EngineLimits, read_evidence
from trtllm_deploy.study.price import price, rehearse, seconds
from trtllm_deploy.study.room import fit_in_memory, folder_bytes, gpus_apart
from trtllm_deploy.study.space import Point, Setting, Space
from trtllm_deploy.study.tuner import Blocks, Ending, Found, Search, Seen, Tuner
from trtllm_deploy.study.up import NOT_UP, Up, served, target_of
from trtllm_deploy.study.worth import cost, unfit
from trtllm_deploy.workspace.folder import Workspace

_OF_CAPACITY = 0.8  # of what a closed loop gets through, where no run kept the limits in time


@dataclass(frozen=True, slots=True)
class Placed:
    """A point as a cell: its plan, and the deployment file that has it alone."""

    plan: CellPlan
    file: DeploymentFile
    limits: EngineLimits


@dataclass(frozen=True, slots=True)
class Ways:
    """How a point becomes something to measure, and who is told.

    ``place`` plans a point, and raises UserError for values that the file can't have; ``unfit``
    says why the memory plan excludes it. ``build`` makes what it lacks, or says why it can't be
    made. ``expected`` are tokens/s by the roofline, 0 where it doesn't tell. ``gpus`` are those of
    this machine.
    """

    place: Callable[[Point], Placed]
    unfit: Callable[[Point], str | None]
    build: Callable[[Placed], str | None]
    expected: Callable[[Point], float] = lambda _: 0.0
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


def tuner_of(spec: TuneSpec, ways: Ways) -> Tuner:
    """The search that a ``tune:`` block asks for."""
    searches = spec.concurrency is None and spec.request_rate is None
    space = space_of(spec)
    return Tuner(space, ways.unfit, spec.blocks, searches=searches, expected=ways.expected)


@dataclass(slots=True)
class Tuning:
    """One search on servers."""

    file: DeploymentFile
    spec: TuneSpec
    limits: Sequence[api.Limit]
    ways: Ways
    workspace: Workspace
    study: Study
    came: dict[Point, list[api.Measurement]] = field(default_factory=dict)
    _placed: dict[Point, Placed] = field(default_factory=dict)
    _tuner: Tuner = field(init=False)
    _offer: Offer = field(init=False)

    def __post_init__(self) -> None:
        """Begin with the load that is given; one that is searched for takes its place."""
        spec = self.spec
        self._tuner = tuner_of(spec, self.ways)
        load: api.Load = api.Concurrency(spec.concurrency or 1)
        if spec.request_rate is not None:
            load = api.Rate(spec.request_rate)
        self._offer = Offer(load, spec.requests, warmup_of(spec.requests))

    def run(self) -> Tuned:
        """Go to its end. Raises UserError where the baseline can't be measured at all."""
        steps = self._tuner.steps()
        try:
            asked = next(steps)
            while True:
                if isinstance(asked, Search):
                    asked = steps.send(self._search(asked.point))
                else:
                    asked = steps.send(self._measure(asked))
        except StopIteration as ended:
            ending: Ending = ended.value
        baseline = self._tuner.space.baseline
        if baseline not in self.came:
            why = ending.excluded.get(baseline, "it wasn't measured")
            raise UserError(f"the baseline ({baseline}) can't be measured: {why}")
        return Tuned(ending, baseline, self._offer, self.came)

    def _search(self, point: Point) -> Found | None:
        """The highest rate of a point, for comparing at where it is the baseline's."""
        say = self.study.say
        say(f"looking for the highest rate of {point}")
        if self._build(point):
            return None
        try:
            answer = self._answer(self._subject(point))
        except UserError as error:
            say(f"{point}: {error}")
            self._tuner.lessons.learn(point, str(error))
            return None
        found = None
        if answer.interval and answer.about:
            found = Found(answer.about, *answer.interval)
        elif answer.least:
            found = Found(answer.least, answer.least)
        say(f"{point}: {f'{found.about:.3g}/s' if found else 'no rate was shown'}: {answer.ended}")
        if point == self._tuner.space.baseline:
            perhaps = answer.single[0] or _OF_CAPACITY * (answer.capacity or 0)
            perhaps = min([perhaps, *(each.value for each in answer.probes)])  # tried, not shown
            at = found.about if found else perhaps
            self._offer = replace(self._offer, load=api.Rate(at) if at else api.Concurrency(1))
            say(f"comparing at {self._offer.load.title}")
        return found

    def _answer(self, subject: Subject) -> api.Answer:
        criteria = tuple(api.Criterion(each) for each in self.limits if each.metric != "score")
        question = api.Question(criteria, budget_s=self.spec.budget)
        site = api.Site(
            NOT_UP,
            subject.target,
            subject.workload,
            self.study.folder,
            api.Conditions(self._offer.request_timeout_s),
            study=self.study.name,
        )
        if (answer := api.searched(question, site)) is not None:
            return answer

        def told(ask: api.Ask, seen: api.Seen, before: bool) -> None:
            load = f"{ask.value:.4g} {'in flight' if ask.vary == 'concurrency' else 'requests/s'}"
            known = ", from the ledger" if before else ""
            self.study.say(f"  {load}: {seen.attainment:.0%} within the limits{known}")

        with (
            subject.up(self.ways.gpus[: subject.gpus]) as up,
            api.show_progress("  search") as watch,
        ):
            conditions = up.conditions(replace(site.conditions, watch=watch))
            target = subject.target.at(up.endpoint)
            site = replace(site, endpoint=up.endpoint, target=target, conditions=conditions)
            return api.search_limits(question, site, told)

    def _measure(self, asked: Blocks) -> dict[Point, Seen]:
        failed = {each: why for each in asked.points if (why := self._build(each))}
        points = [each for each in asked.points if each not in failed]
        answer = {point: Seen(failed=why) for point, why in failed.items()}
        if not points:
            return answer
        first = not self.came
        subjects = [self._subject(each) for each in points]
        came, lost = measure_blocks(
            subjects, self._offer, asked.numbers, self.study, self._room(points)
        )
        for point, subject in zip(points, subjects, strict=True):
            if subject.name in lost:
                answer[point] = Seen(failed=lost[subject.name])
                continue
            blocks = came[subject.name]
            kept = self.came.setdefault(point, [])
            kept += blocks
            evidence = read_evidence(kept, self._placed[point].limits, *self._lengths(subject))
            costs = [cost(each, self.limits) for each in blocks]
            answer[point] = Seen(
                dict(zip(asked.numbers, costs, strict=True)),
                evidence,
                unfit=unfit(kept, self.limits),
            )
            self.study.say(f"{point}: {evidence.verdict} ({evidence})")
        if first and (took := seconds(self.came.get(self._tuner.space.baseline, []))):
            asked_for = rehearse(tuner_of(self.spec, self.ways))
            self.study.say(price(asked_for, self.spec, took))
        return answer

    def _build(self, point: Point) -> str | None:
        """Plan a point and make what it lacks; why it can't be. What failed before teaches."""
        if why := self._tuner.lessons.against(point):
            return why
        try:
            if point not in self._placed:
                self._placed[point] = self.ways.place(point)
            why = self.ways.build(self._placed[point])
        except UserError as error:
            why = str(error)
        if why:
            self._tuner.lessons.learn(point, why)
        return why

    def _subject(self, point: Point) -> Subject:
        placed = self._placed[point]
        plan, file, space = placed.plan, placed.file, self.workspace
        measure = self.file.deployment.measure
        data = self.spec.data or (measure.data if measure else None)
        if data is None:
            raise UserError(
                "there are no prompts to tune with",
                where=self.file.path,
                fix="name a jsonl in tune.data or measure.data",
            )
        limit = self.spec.max_tokens or (measure.max_tokens if measure else None)
        workload = api.load_workload(
            self.file.resolve(data), space.artifact(plan.fetch), limit or plan.cell.osl
        )
        gpus = plan.cell.world_size if self.ways.gpus else 0
        return Subject(str(point), target_of(plan, file), workload, partial(self._up, point), gpus)

    @contextmanager
    def _up(self, point: Point, gpus: Sequence[str]) -> Iterator[Up]:
        """Serve a point, unless one that asks for no more didn't start."""
        if why := self._tuner.lessons.against(point):
            raise UserError(why)
        placed = self._placed[point]
        with ExitStack() as stack:
            try:
                up = stack.enter_context(served(placed.plan, placed.file, self.workspace, gpus))
            except UserError as error:
                self._tuner.lessons.learn(point, str(error))
                raise
            yield up

    def _lengths(self, subject: Subject) -> tuple[float, float]:
        prompts = subject.workload.prompts
        known = [each.input_tokens for each in prompts if each.input_tokens is not None]
        most = [each.max_tokens for each in prompts]
        return (sum(known) / len(known) if known else 0.0), sum(most) / len(most)

    def _room(self, points: Sequence[Point]) -> list[tuple[str, ...]] | None:
        plans = [self._placed[each].plan for each in points]
        if not self.ways.gpus:
            weights = [folder_bytes(self.workspace.artifact(each.checkpoint)) for each in plans]
            return [()] * len(plans) if fit_in_memory(weights) else None
        return gpus_apart([each.cell.world_size for each in plans], self.ways.gpus)

"""Measuring built cells: each is served, asked under each load, and written into the ledger.

A cell is a stage as the build's are, and runs where they run: on its own GPUs beside others, one at
a time where there are none. What the ledger has isn't measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

from llm_perf import api
from llm_perf.errors import UserError
from trtllm_deploy.builds.build import Outcome, StageRun
from trtllm_deploy.builds.executor import Executor, Make, OnLine
from trtllm_deploy.builds.progress import BuildProgress
from trtllm_deploy.plan.plan import CellPlan, Stage
from trtllm_deploy.store.leases import Lease
from trtllm_deploy.study.asked import Asked
from trtllm_deploy.study.searched import Searches
from trtllm_deploy.study.up import Up, served

OpenExecutor: TypeAlias = Callable[[Make], Executor]


def measure_cells(
    outcome: Outcome,
    asked: Asked,
    executor: OpenExecutor,
    watcher: BuildProgress,
    *,
    again: bool = False,
    fail_fast: bool = False,
) -> list[api.Measurement]:
    """Measure what was built and isn't in the ledger; the study's measurements, in its order.

    What fails is a measurement too, that says why, and the rest goes on; with ``fail_fast`` no cell
    begins after one that failed. ``again``: what the ledger has is measured once more. Raises
    UserError: the prompts can't be read, or the ledger written.
    """
    results = asked.workspace.results
    plans = (*outcome.built, *filter(asked.knows, outcome.unbuilt))
    planned = {plan.cell.name: asked.of(plan) for plan in plans}
    before = {each["id"]: each for each in api.read_measurements(results)}
    had = frozenset() if again else api.finished(before.values())
    searches = Searches.of(asked)
    todo = {
        stage.key: plan
        for plan in outcome.built
        if any(each.id not in had for each in planned[plan.cell.name]) or searches.left(plan)
        for stage in [_stage(plan)]
    }
    failed = {plan.cell.name: _why_unbuilt(plan, outcome.failures) for plan in outcome.unbuilt}
    with Lease(asked.workspace.store.root) as lease:
        lease.hold((stage.kind, stage.key) for plan in plans for stage in plan.stages)
        stages = [_stage(plan) for plan in todo.values()]
        every = [each for some in planned.values() for each in some]
        watcher.planned({}, stages, sum(each.id in had for each in every))
        if stages:
            with executor(Measurer(asked, todo, again=again)) as opened:
                run = StageRun(stages, asked.workspace, opened, watcher, fail_fast=fail_fast)
                run.to_the_end()
            failed |= {todo[key].cell.name: error for key, error in run.failures.items()}
    now = {each["id"]: each for each in api.read_measurements(results)}
    for name, error in failed.items():
        for each in planned.get(name, ()):
            kept = now.get(each.id)
            made = kept and kept["status"] == "ok" and not (again and kept == before.get(each.id))
            if not made:
                now[each.id] = each.failed(error)
                api.append_measurement(results, now[each.id])
    return [now[each.id] for each in every if each.id in now]


def _stage(plan: CellPlan) -> Stage:
    made_from = {"repository": plan.repository.key}
    key = f"{plan.repository.key[:8]}-{plan.cell.name}"  # two cells may serve the same
    return Stage("measure", key, made_from, plan.cell, plan.cell.name, gpus=plan.cell.world_size)


def _why_unbuilt(plan: CellPlan, failures: Mapping[str, str]) -> str:
    found = (failures[stage.key] for stage in plan.stages if stage.key in failures)
    return next(found, "it isn't built: the build was given up")


@contextmanager
def _alone(folder: Path, on_line: OnLine) -> Iterator[None]:
    """Have a cell for oneself, and take away what a kill left half-written of its files.

    A run that was killed has its cell until its server has ended.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_line("another run measures it; waiting")
        lock.acquire()
    try:
        for left in folder.glob(".*.json*.????????"):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@dataclass(frozen=True, slots=True)
class Measurer:
    """Measures a cell, in whatever process it is called; ``plans`` by the key of their stage."""

    asked: Asked
    plans: Mapping[str, CellPlan]
    again: bool = False

    def __call__(self, stage: Stage, on_line: OnLine) -> bool:
        """Measure what the ledger lacks. Raises UserError: the server doesn't come up."""
        asked, plan = self.asked, self.plans[stage.key]
        folder = asked.workspace.results / plan.cell.name
        folder.mkdir(parents=True, exist_ok=True)
        gpus = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        with _alone(folder, on_line):
            measured = api.read_measurements(asked.workspace.results)
            had = frozenset() if self.again else api.finished(measured)
            left = [each for each in asked.of(plan, counted=True) if each.id not in had]
            searches = Searches.of(asked)
            questions = searches.left(plan)
            while left or questions:
                on_line("starts its server")
                with served(plan, asked.file, asked.workspace, gpus) as up:
                    left = self._offer(plan, up, left, on_line)
                    while questions and not left:
                        searches.search(questions[0], plan, up, on_line)
                        del questions[0]
        return True

    def _offer(
        self, plan: CellPlan, up: Up, planned: list[api.Planned], on_line: OnLine
    ) -> list[api.Planned]:
        """Measure until a load ends badly; what is left then gets a server that starts anew."""
        asked, results = self.asked, self.asked.workspace.results
        for number, each in enumerate(planned):
            each = each.at(up.endpoint)
            try:
                run = self._measure(up, each, on_line)
            except UserError as error:
                if number:  # perhaps the load before was the server's end
                    return planned[number:]
                api.append_measurement(results, each.failed(str(error)))
                on_line(f"{self._title(each)}: failed: {error}\n")
                return planned[1:]
            path = Path(each.target.name) / f"{each.load.name}-{each.id[:8]}.json"
            api.write_run(run, results / path)
            files = {"requests": str(path.with_suffix(".jsonl"))}
            measured = replace(each, prediction=asked.predicted(plan, run)).measured(run, files)
            api.append_measurement(results, measured)
            failed = f", {run.requests_failed} failed" if run.requests_failed else ""
            on_line(f"{self._title(each)}: {run.requests_ok} requests ok{failed}\n")
            if measured["status"] != "ok":
                return planned[number + 1 :]
        return []

    def _title(self, each: api.Planned) -> str:
        several = self.asked.settings.repetitions > 1
        return f"{each.load.title}{f', repetition {each.repetition + 1}' if several else ''}"

    def _measure(self, up: Up, each: api.Planned, on_line: OnLine) -> api.Run:
        settings, title = self.asked.settings, self._title(each)

        def watch(seen: api.Progress) -> None:
            failed = f", {seen.broken} failed" if seen.broken else ""
            on_line(f"{title}: {seen.done}/{seen.total}, {seen.in_flight} in flight{failed}")

        conditions = api.Conditions(settings.request_timeout, watch, extent=each.extent)
        return api.measure(up.endpoint, each.workload, each.load, up.conditions(conditions))

"""Making what the plan asks for and the store lacks: the schedule meets an executor.

Here the build's state changes: artifacts, names, logs of failures. What a stage does is
:mod:`trtllm_deploy.builds.make`; where it runs is the executor's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from trtllm_deploy.builds.critical_path import Schedule, Task
from trtllm_deploy.builds.estimate import UNKNOWN_S, estimate
from trtllm_deploy.builds.executor import Ended, Executor, Line
from trtllm_deploy.plan.plan import CellPlan, Stage, distinct
from trtllm_deploy.store.leases import Lease
from trtllm_deploy.workspace.folder import Workspace

if TYPE_CHECKING:
    from trtllm_deploy.builds.progress import BuildProgress

_LOOK_EVERY_S = 1.0  # so that Ctrl-C and clocks on the screen are never far behind

_NOTHING: Mapping[str, str] = MappingProxyType({})
OpenExecutor: TypeAlias = Callable[[], Executor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a build ended: artifacts made, errors by key, the cells that are built, and not."""

    made: int
    failures: Mapping[str, str]
    built: tuple[CellPlan, ...]
    unbuilt: tuple[CellPlan, ...]


def build(
    plans: Sequence[CellPlan],
    workspace: Workspace,
    executor: OpenExecutor,
    watcher: BuildProgress,
    *,
    fail_fast: bool = False,
    rejected: Mapping[str, str] = _NOTHING,
) -> Outcome:
    """Make every missing artifact, then name the cells that are whole.

    A stage that fails takes along what depends on it; the rest goes on, unless ``fail_fast``.
    ``executor`` is opened only if there is something to make. Cells on a checkpoint that is
    ``rejected``, with the error, aren't built.
    """
    with Lease(workspace.store.root) as lease:
        lease.hold((stage.kind, stage.key) for each in plans for stage in each.stages)
        good = [each for each in plans if each.checkpoint.key not in rejected]
        outcome = _build(good, workspace, executor, watcher, fail_fast=fail_fast)
    bad = tuple(each for each in plans if each.checkpoint.key in rejected)
    return replace(
        outcome,
        failures={**rejected, **outcome.failures},
        unbuilt=(*outcome.unbuilt, *bad),
    )


def _build(
    plans: Sequence[CellPlan],
    workspace: Workspace,
    executor: OpenExecutor,
    watcher: BuildProgress,
    *,
    fail_fast: bool,
) -> Outcome:
    stages = distinct(plans)
    missing = [stage for stage in stages if not workspace.has(stage)]
    store = workspace.store
    kinds = {stage.kind for stage in missing}
    history = (manifest for kind in kinds for manifest in store.manifests(kind))
    seconds = estimate(missing, history)
    watcher.planned(seconds, missing, len(stages) - len(missing))
    made, failures, unmade = 0, dict[str, str](), set[str]()
    if missing:
        with executor() as opened:
            run = StageRun(missing, workspace, opened, watcher, plans, seconds, fail_fast=fail_fast)
            run.to_the_end()
            made, failures, unmade = run.made, run.failures, run.unmade
    built: list[CellPlan] = []
    unbuilt: list[CellPlan] = []
    for each in plans:
        whole = not any(stage.key in unmade for stage in each.stages)
        (built if whole else unbuilt).append(each)
        if whole:
            workspace.name(each)
    return Outcome(made, failures, tuple(built), tuple(unbuilt))


class StageRun:
    """Stages that are carried out: made by a build, or measured by a study.

    ``plans`` are the cells to name once they are whole, ``seconds`` are estimates by key.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        workspace: Workspace,
        executor: Executor,
        watcher: BuildProgress,
        plans: Iterable[CellPlan] = (),
        seconds: Mapping[str, float] = MappingProxyType({}),
        *,
        fail_fast: bool = False,
    ) -> None:
        self._stages = {stage.key: stage for stage in stages}
        self._cells = {each.repository.key: each for each in plans}
        self._workspace, self._executor, self._watcher = workspace, executor, watcher
        tasks = [
            Task(stage.key, stage.inputs, stage.gpus, seconds.get(stage.key, UNKNOWN_S[stage.kind]))
            for stage in stages
        ]
        self._schedule = Schedule(tasks, executor.nodes)
        self._fail_fast = fail_fast
        self.unmade = set(self._stages)
        self._hopeless = False
        self.made = 0
        self.failures: dict[str, str] = {}

    def to_the_end(self) -> None:
        """Start what is ready, listen to what runs, until there is neither."""
        while not self._schedule.done:
            for task, node in self._schedule.start(time.monotonic()):
                stage = self._stages[task.key]
                self._watcher.started(stage)
                self._executor.start(stage, node, task.gpus)
            for event in self._executor.wait(_LOOK_EVERY_S):
                if isinstance(event, Line):
                    self._watcher.line(self._stages[event.key], event.text)
                elif event.error is None:
                    self._finish(event)
                else:
                    self._fail(event, event.error)
            self._watcher.tick()

    def _finish(self, event: Ended) -> None:
        stage = self._stages[event.key]
        self._schedule.finish(event.key)
        self.unmade.discard(event.key)
        self.made += event.made
        self._workspace.failure(stage).unlink(missing_ok=True)
        if event.key in self._cells:  # now, for a build may be cut
            self._workspace.name(self._cells[event.key])
        self._watcher.finished(stage, event.made)

    def _fail(self, event: Ended, error: str) -> None:
        stage = self._stages[event.key]
        given_up = self._schedule.fail(event.key, stop=self._fail_fast or event.hopeless)
        self._watcher.given_up([self._stages[key] for key in given_up])
        if event.hopeless and self._hopeless:
            self._watcher.given_up([stage])  # as the stage before it, for the same reason
            return
        self._hopeless = self._hopeless or event.hopeless
        self.failures[event.key] = error
        self._workspace.note_failure(stage, error)
        self._watcher.failed(stage, error)

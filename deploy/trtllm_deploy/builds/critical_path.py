"""Who runs when, and on which node: ready stages, longest way to the end first.

Pure: tasks with estimated seconds go in, decisions come out. Time is a number that the caller
brings along. Knows nothing of processes, of which GPU of a node is free, or of what a task does.

List scheduling by critical path, with one reservation (EASY backfilling, Lifka 1995): when the
most urgent task needs more GPUs than are free, GPUs are kept for it, and others may only start
where they don't make it later. Without that, wide tasks would wait for all narrow ones.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Task:
    """One stage to run. ``inputs`` are keys of tasks; what is no task is there already.

    ``gpus`` are needed on one node while it runs; a task without GPUs takes one of the node's CPU
    slots. ``seconds`` is an estimate.
    """

    key: str
    inputs: tuple[str, ...]
    gpus: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: how many GPUs it has, and how many tasks without a GPU it may run at once."""

    name: str
    gpus: int
    cpus: int


class Start(NamedTuple):
    """A decision: start the task on the node, now."""

    task: Task
    node: Node


class _Running(NamedTuple):
    task: Task
    node: int
    ends: float


class _Reservation(NamedTuple):
    """GPUs kept for the most urgent task: from when, and how many it will leave over then."""

    node: int
    begins: float
    spare: int


def fit(task: Task, nodes: Iterable[Node]) -> Task:
    """The task with at most as many GPUs as the largest node has.

    Checkpoints are also made without GPUs, and trtllm-build makes ranks one after the other.
    """
    return replace(task, gpus=min(task.gpus, max(node.gpus for node in nodes)))


def urgencies(tasks: Iterable[Task]) -> dict[str, float]:
    """Seconds from the start of each task to the end of the longest chain behind it."""
    by_key = {task.key: task for task in tasks}
    longest_behind = dict.fromkeys(by_key, 0.0)
    urgency: dict[str, float] = {}
    order = TopologicalSorter({key: task.inputs for key, task in by_key.items()}).static_order()
    for key in reversed(list(order)):
        if task := by_key.get(key):
            urgency[key] = task.seconds + longest_behind[key]
            for needed in task.inputs:
                if needed in longest_behind:
                    longest_behind[needed] = max(longest_behind[needed], urgency[key])
    return urgency


class Schedule:
    """The state of one build: call ``start``, run what it says, report ``finish`` or ``fail``."""

    def __init__(self, tasks: Iterable[Task], nodes: Sequence[Node]) -> None:
        self._tasks = {task.key: fit(task, nodes) for task in tasks}
        self._nodes = tuple(nodes)
        self._free_gpus = [node.gpus for node in nodes]
        self._free_cpus = [node.cpus for node in nodes]
        self._urgency = urgencies(self._tasks.values())
        self._missing = {
            task.key: {key for key in task.inputs if key in self._tasks}
            for task in self._tasks.values()
        }
        self._needed_by: dict[str, list[str]] = {key: [] for key in self._tasks}
        for key, missing in self._missing.items():
            for needed in missing:
                self._needed_by[needed].append(key)
        self._running: dict[str, _Running] = {}
        self._ready: tuple[list[str], list[str]] = ([], [])  # without and with GPUs
        for key, missing in self._missing.items():
            if not missing:
                self._make_ready(key)

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is left to start."""
        return not self._running and not any(self._ready)

    def start(self, now: float) -> list[Start]:
        """What to start at ``now`` (seconds on any clock); counts as running from here on."""
        return [*self._start_on_gpus(now), *self._start_on_cpus(now)]

    def finish(self, key: str) -> None:
        """The task is done: what needs it may become ready."""
        self._release(key)
        for other in self._needed_by[key]:
            missing = self._missing.get(other)  # none: given up
            if missing is not None:
                missing.discard(key)
                if not missing:
                    self._make_ready(other)

    def fail(self, key: str, *, stop: bool = False) -> list[str]:
        """The task failed: returns what is given up with it, which will never be started.

        That is what depends on it, or with ``stop`` all that hasn't been started.
        """
        self._release(key)
        if stop:
            given_up = [each for each in self._missing if each not in self._running]
            for queue in self._ready:
                queue.clear()
        else:
            given_up = self._all_behind(key)
        for other in given_up:
            del self._missing[other]
        return given_up

    def _all_behind(self, key: str) -> list[str]:
        found: dict[str, None] = {}
        behind = [key]
        while behind:
            for other in self._needed_by[behind.pop()]:
                if other in self._missing and other not in found:
                    found[other] = None
                    behind.append(other)
        return list(found)

    def _make_ready(self, key: str) -> None:
        queue = self._ready[self._tasks[key].gpus > 0]
        insort(queue, key, key=lambda each: -self._urgency[each])

    def _release(self, key: str) -> None:
        task, node, _ = self._running.pop(key)
        del self._missing[key]
        (self._free_gpus if task.gpus else self._free_cpus)[node] += task.gpus or 1

    def _run(self, key: str, node: int, now: float) -> Start:
        task = self._tasks[key]
        (self._free_gpus if task.gpus else self._free_cpus)[node] -= task.gpus or 1
        self._running[key] = _Running(task, node, now + task.seconds)
        return Start(task, self._nodes[node])

    def _start_on_cpus(self, now: float) -> list[Start]:
        queue, started = self._ready[False], []
        while queue and max(self._free_cpus) > 0:
            node = self._free_cpus.index(max(self._free_cpus))
            started.append(self._run(queue.pop(0), node, now))
        return started

    def _start_on_gpus(self, now: float) -> list[Start]:
        queue, started, left = self._ready[True], [], []
        kept: _Reservation | None = None
        for position, key in enumerate(queue):
            if not any(self._free_gpus):
                left += queue[position:]
                break
            task = self._tasks[key]
            node = self._node_for(task, kept, now)
            if node is not None:
                if kept and kept.node == node and now + task.seconds > kept.begins:
                    kept = kept._replace(spare=kept.spare - task.gpus)
                started.append(self._run(key, node, now))
                continue
            left.append(key)
            kept = kept or self._reserve(task, now)
        queue[:] = left
        return started

    def _node_for(self, task: Task, kept: _Reservation | None, now: float) -> int | None:
        """The fullest node that has room, so that wide tasks find room elsewhere."""
        fitting = [
            (free, node)
            for node, free in enumerate(self._free_gpus)
            if free >= task.gpus
            and not (
                kept
                and kept.node == node
                and task.gpus > kept.spare
                and now + task.seconds > kept.begins
            )
        ]
        return min(fitting)[1] if fitting else None

    def _reserve(self, task: Task, now: float) -> _Reservation:
        """When and where the task can start at the earliest, if all goes as estimated."""
        best: _Reservation | None = None
        for node, free in enumerate(self._free_gpus):
            ends = sorted(
                (max(each.ends, now), each.task.gpus)
                for each in self._running.values()
                if each.node == node and each.task.gpus
            )
            for end, gpus in ends:
                free += gpus
                if free >= task.gpus and (best is None or end < best.begins):
                    best = _Reservation(node, end, free - task.gpus)
                    break
        assert best is not None  # fit() saw to it that some node is large enough
        return best


def lower_bound(tasks: Iterable[Task], nodes: Sequence[Node]) -> float:
    """Seconds that no schedule can beat: the longest chain, or the work over the slots."""
    tasks = [fit(task, nodes) for task in tasks]
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    return max(
        max(urgencies(tasks).values(), default=0.0),
        sum(task.seconds * task.gpus for task in tasks) / max(gpus, 1),
        sum(task.seconds for task in tasks if not task.gpus) / max(cpus, 1),
    )

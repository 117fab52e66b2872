from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_deploy.builds.critical_path import Node, Schedule, Task, fit, lower_bound, urgencies

EIGHT = (Node("here", gpus=8, cpus=4),)


class Simulated(NamedTuple):
    """How a build would go: seconds in all, and when each task starts, on which node."""

    makespan: float
    starts: Mapping[str, tuple[float, Node]]


def simulate(
    tasks: Iterable[Task], nodes: Sequence[Node], seconds: Mapping[str, float] | None = None
) -> Simulated:
    """Play a build. ``seconds`` are true durations where they differ from the estimates."""
    schedule = Schedule(tasks, nodes)
    seconds, now = seconds or {}, 0.0
    starts: dict[str, tuple[float, Node]] = {}
    ends: list[tuple[float, str]] = []
    while not schedule.done:
        for task, node in schedule.start(now):
            starts[task.key] = (now, node)
            heapq.heappush(ends, (now + seconds.get(task.key, task.seconds), task.key))
        now, key = heapq.heappop(ends)
        schedule.finish(key)
    return Simulated(now, starts)


@st.composite
def builds(draw: st.DrawFn) -> list[Task]:
    """Tasks that need some of those before them."""
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, 14))):
        before = [task.key for task in tasks]
        inputs = draw(st.lists(st.sampled_from(before), unique=True, max_size=3)) if before else []
        gpus, seconds = draw(st.integers(0, 9)), draw(st.integers(0, 50))
        tasks.append(Task(str(number), tuple(inputs), gpus, seconds))
    return tasks


nodes = st.lists(
    st.builds(Node, st.just("node"), gpus=st.integers(0, 8), cpus=st.integers(1, 3)), min_size=1
)


@given(builds(), nodes)
def test_every_task_runs_once_after_its_inputs_and_within_the_room(
    tasks: list[Task], nodes: list[Node]
) -> None:
    seconds = {task.key: task.seconds for task in tasks}
    result = simulate(tasks, nodes)
    assert set(result.starts) == set(seconds)
    for task in tasks:
        for needed in task.inputs:
            assert result.starts[needed][0] + seconds[needed] <= result.starts[task.key][0]
    for moment, _ in result.starts.values():
        for node in nodes:
            _assert_room(tasks, node, moment, result.starts, nodes)


def _assert_room(
    tasks: list[Task],
    node: Node,
    moment: float,
    starts: object,
    nodes: Sequence[Node],
) -> None:
    assert isinstance(starts, dict)
    then = [
        fit(task, nodes)
        for task in tasks
        if starts[task.key][1] is node
        and starts[task.key][0] <= moment < starts[task.key][0] + task.seconds
    ]
    assert sum(task.gpus for task in then) <= node.gpus
    assert sum(not task.gpus for task in then) <= node.cpus


@given(builds(), nodes)
def test_no_schedule_beats_the_lower_bound(tasks: list[Task], nodes: list[Node]) -> None:
    assert simulate(tasks, nodes).makespan >= lower_bound(tasks, nodes) - 1e-9


@given(builds(), st.data())
def test_a_failed_task_takes_along_what_depends_on_it_and_nothing_else(
    tasks: list[Task], data: st.DataObject
) -> None:
    doomed = data.draw(st.sampled_from(tasks)).key
    schedule, ran, given_up = Schedule(tasks, EIGHT), [], []
    while not schedule.done:
        running = [each.task.key for each in schedule.start(len(ran))]
        while running:
            key = running.pop()
            ran.append(key)
            if key == doomed:
                given_up = schedule.fail(key)
            else:
                schedule.finish(key)
            running += [each.task.key for each in schedule.start(len(ran))]
    depend = {doomed}
    for task in tasks:
        if depend & set(task.inputs):
            depend.add(task.key)
    assert set(given_up) == depend - {doomed}
    assert sorted([*ran, *given_up]) == sorted(task.key for task in tasks)


@given(builds())
def test_after_a_stop_what_runs_is_awaited_and_nothing_more_is_started(tasks: list[Task]) -> None:
    schedule = Schedule(tasks, EIGHT)
    running = [each.task.key for each in schedule.start(0)]
    given_up = schedule.fail(running.pop(), stop=True)
    for key in running:
        assert schedule.start(1) == []
        schedule.finish(key)
    assert schedule.start(2) == []
    assert schedule.done
    assert len(given_up) + len(running) + 1 == len(tasks)


def test_the_longest_way_to_the_end_goes_first() -> None:
    tasks = [
        Task("short", (), 1, 5),
        Task("first of a chain", (), 1, 2),
        Task("second of a chain", ("first of a chain",), 1, 9),
    ]
    assert urgencies(tasks) == {"short": 5, "first of a chain": 11, "second of a chain": 9}
    starts = simulate(tasks, [Node("one", 1, 1)]).starts
    assert sorted(starts, key=lambda key: starts[key][0]) == [
        "first of a chain",
        "second of a chain",
        "short",
    ]


def test_a_wide_task_is_not_starved_by_narrow_ones() -> None:
    narrow = [Task(f"narrow {number}", (), 1, 10) for number in range(40)]
    result = simulate([*narrow, Task("wide", (), 8, 30)], EIGHT)
    assert result.starts["wide"][0] <= 10


def test_a_short_task_slips_into_the_gap_before_a_wide_one() -> None:
    schedule = Schedule(
        [Task("long", (), 7, 100), Task("wide", (), 8, 90), Task("short", (), 1, 50)], EIGHT
    )
    assert [each.task.key for each in schedule.start(0)] == ["long", "short"]


def test_a_task_that_would_delay_the_wide_one_waits() -> None:
    schedule = Schedule(
        [Task("long", (), 7, 100), Task("wide", (), 8, 120), Task("late", (), 1, 90)], EIGHT
    )
    assert [each.task.key for each in schedule.start(0)] == ["wide"]
    schedule.finish("wide")
    assert [each.task.key for each in schedule.start(120)] == ["long", "late"]


def test_wide_tasks_find_a_whole_node_for_narrow_ones_fill_up_one() -> None:
    two = (Node("a", 4, 1), Node("b", 4, 1))
    schedule = Schedule([Task("one", (), 1, 9), Task("two", (), 1, 8), Task("wide", (), 4, 7)], two)
    placed = {task.key: node.name for task, node in schedule.start(0)}
    assert placed["one"] == placed["two"] != placed["wide"]


def test_without_gpus_stages_run_on_cores() -> None:
    laptop = (Node("laptop", gpus=0, cpus=2),)
    schedule = Schedule([Task(str(number), (), 1, 60) for number in range(3)], laptop)
    assert len(schedule.start(0)) == 2


def test_64_builds_on_8_gpus_end_within_5_percent_of_the_lower_bound() -> None:
    checkpoints = [Task(f"checkpoint {n}", (), 1, 200 + 37 * n % 150) for n in range(16)]
    builds = [
        Task(f"build {n}", (f"checkpoint {n % 16}",), 1, 120 + 71 * n % 480) for n in range(64)
    ]
    tasks = [*checkpoints, *builds]
    assert simulate(tasks, EIGHT).makespan <= 1.05 * lower_bound(tasks, EIGHT)


def test_tasks_that_need_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        Schedule([Task("a", ("b",), 0, 1), Task("b", ("a",), 0, 1)], EIGHT)

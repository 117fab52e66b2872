"""Both executors, with real processes: this machine's, and those of a Ray cluster of two nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_perf.errors import UserError
from tests.deploy.matrix import GPUS, Matrix
from tests.processes import command_line
from trtllm_deploy.builds.critical_path import Node
from trtllm_deploy.builds.executor import Ended, Executor, Line
from trtllm_deploy.builds.local import LocalExecutor, visible_gpus
from trtllm_deploy.builds.ray_cluster import RayExecutor, cluster_gpus, connect
from trtllm_deploy.machine.gpu import gpus
from trtllm_deploy.plan.plan import Stage, StageKind
from trtllm_deploy.spec.deployment_file import Cell

CELL = Cell("tiny", "fp16", 1, 1, 128, 64, 4)


def stage(key: str, kind: StageKind = "engine") -> Stage:
    return Stage(kind, key, {}, CELL, key)


@dataclass(frozen=True)
class Make:
    """What a stage does in these tests is the name of a method, before the first space."""

    folder: Path

    def __call__(self, stage: Stage, on_line: Callable[[str], None]) -> bool:
        made: bool = getattr(self, stage.key.split()[0])(stage.key, on_line)
        return made

    def look(self, key: str, on_line: Callable[[str], None]) -> bool:
        on_line(f"sees {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        time.sleep(0.3)
        return True

    def have(self, key: str, on_line: Callable[[str], None]) -> bool:
        return False

    def refuse(self, key: str, on_line: Callable[[str], None]) -> bool:
        raise UserError("no such flag", where="build.maxx")

    def crash(self, key: str, on_line: Callable[[str], None]) -> bool:
        raise KeyError("a bug")

    def die(self, key: str, on_line: Callable[[str], None]) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    def hang(self, key: str, on_line: Callable[[str], None]) -> bool:
        (self.folder / "half made").touch()
        (self.folder / "pid").write_text(str(os.getpid()))
        try:
            on_line("hangs")
            while True:
                time.sleep(0.1)
        finally:
            (self.folder / "half made").unlink()


@dataclass(frozen=True)
class OnRay:
    address: str
    matrix: Matrix


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    """Two Ray nodes of local processes, with four GPUs each that exist only as numbers.

    On these machines trtllm-build and nvidia-smi are stand-ins.
    """
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    matrix = Matrix(tmp_path_factory.mktemp("ray"), batches=3, seconds=1)
    before = dict(os.environ)
    os.environ.update(matrix.environment)
    os.environ["PYTHONPATH"] += f":{Path(__file__).parent}"  # Ray's workers import this module
    nodes: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 4})
    nodes.add_node(num_cpus=2, num_gpus=4)
    os.environ.clear()
    os.environ.update(before)
    try:
        connect(nodes.address)
        yield OnRay(nodes.address, matrix)
    finally:
        ray.shutdown()
        nodes.shutdown()


Open = Callable[[], Any]


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "local":
        return lambda: LocalExecutor(Make(tmp_path), ("0", "1", "2", "3"), jobs=2)
    request.getfixturevalue("cluster")
    return lambda: RayExecutor(Make(tmp_path), tmp_path)


def events_until_end(executor: Executor, ends: int) -> tuple[list[Line], list[Ended]]:
    lines: list[Line] = []
    ended: list[Ended] = []
    while len(ended) < ends:
        for event in executor.wait(30):
            lines.append(event) if isinstance(event, Line) else ended.append(event)
    return lines, ended


def outcome(executor: Executor, key: str) -> Ended:
    executor.start(stage(key), executor.nodes[0], 1)
    return events_until_end(executor, 1)[1][0]


def test_each_stage_sees_the_gpus_it_was_given_and_no_other(executor: Open) -> None:
    with executor() as opened:
        node = opened.nodes[0]
        for key, gpus in (("look a", 1), ("look b", 2), ("look c", 1)):
            opened.start(stage(key), node, gpus)
        lines, ended = events_until_end(opened, 3)
    seen = {line.key: line.text.removeprefix("sees ").split(",") for line in lines}
    assert {key: len(gpus) for key, gpus in seen.items()} == {"look a": 1, "look b": 2, "look c": 1}
    assert sorted(gpu for gpus in seen.values() for gpu in gpus) == ["0", "1", "2", "3"]
    assert all(each.made and each.error is None for each in ended)


def test_a_stage_without_gpus_sees_none(executor: Open) -> None:
    with executor() as opened:
        opened.start(stage("look"), opened.nodes[0], 0)
        lines, _ = events_until_end(opened, 1)
    assert [line.text for line in lines] == ["sees "]


def test_gpus_are_given_again_after_use(executor: Open) -> None:
    with executor() as opened:
        for _ in range(3):
            opened.start(stage("look"), opened.nodes[0], 4)
            lines, _ = events_until_end(opened, 1)
            assert lines[0].text == "sees 0,1,2,3"


def test_what_was_there_counts_as_not_made(executor: Open) -> None:
    with executor() as opened:
        assert outcome(opened, "have") == Ended("have", made=False)


def test_an_error_of_the_user_comes_back_as_its_one_line(executor: Open) -> None:
    with executor() as opened:
        assert outcome(opened, "refuse").error == "build.maxx: no such flag"


def test_a_bug_fails_its_stage_and_not_the_build(executor: Open) -> None:
    with executor() as opened:
        assert outcome(opened, "crash").error == "KeyError: 'a bug'"
        assert outcome(opened, "look").error is None


def test_a_process_that_dies_is_a_stage_that_failed(executor: Open) -> None:
    with executor() as opened:
        error = outcome(opened, "die").error
        assert error is not None
        assert "killed" in error or "died" in error
        assert outcome(opened, "look").error is None


def test_a_worker_that_dies_idle_is_replaced(tmp_path: Path) -> None:
    with LocalExecutor(Make(tmp_path), ("0",), jobs=1) as opened:
        assert outcome(opened, "have").error is None
        worker = max(psutil.Process().children(recursive=True), key=psutil.Process.create_time)
        worker.kill()
        assert opened.wait(30) == []
        assert outcome(opened, "look").made


def test_leaving_lets_stages_clean_up_and_ends_their_processes(
    executor: Open, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), executor() as opened:
        opened.start(stage("hang"), opened.nodes[0], 1)
        while not any(isinstance(event, Line) for event in opened.wait(30)):
            pass
        assert (tmp_path / "half made").exists()
        raise KeyboardInterrupt
    assert not (tmp_path / "half made").exists()
    assert not _works_on_it(int((tmp_path / "pid").read_text()))


def _works_on_it(pid: int) -> bool:
    """Ours are gone then; Ray keeps its processes for later tasks."""
    with suppress(psutil.NoSuchProcess):
        return command_line(psutil.Process(pid))[:1] not in ([], ["ray::IDLE"])
    return False


def test_ray_knows_the_nodes_of_its_cluster(cluster: OnRay, tmp_path: Path) -> None:
    with RayExecutor(Make(tmp_path), tmp_path) as opened:
        assert [(node.gpus, node.cpus) for node in opened.nodes] == [(4, 2), (4, 2)]


def test_ray_runs_a_stage_on_the_node_that_was_chosen(cluster: OnRay, tmp_path: Path) -> None:
    with RayExecutor(Make(tmp_path), tmp_path) as opened:
        for node in opened.nodes:
            opened.start(stage(f"look {node.name}"), node, 4)
        _, ended = events_until_end(opened, 2)
    assert all(each.made for each in ended)


def test_plans_are_for_the_gpus_of_the_cluster_and_not_of_this_machine(cluster: OnRay) -> None:
    assert [gpu.name for gpu in cluster_gpus()] == ["NVIDIA H100 80GB HBM3"] * GPUS
    assert gpus() == ()


def test_a_matrix_builds_on_a_ray_cluster_with_each_checkpoint_made_once(cluster: OnRay) -> None:
    matrix = cluster.matrix
    done = matrix.run("--ray", cluster.address)
    assert done.returncode == 0, done.stderr
    calls = matrix.calls()
    assert calls.pop("trtllm-build") == matrix.cells == 12
    assert set(calls.values()) == {1}
    assert len(list((matrix.workspace / "engines").iterdir())) == 12
    assert "artifacts were there already" in matrix.run("--ray", cluster.address).stdout
    assert matrix.calls()["trtllm-build"] == 12


class Interrupted(Make):
    """Has Ctrl-C, and the end of the terminal, come while its worker begins."""

    def __reduce__(self) -> tuple[object, ...]:
        return _interrupted, (self.folder, os.getpid())


def _interrupted(folder: Path, by: int) -> Make:
    if os.getpid() != by:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
    return Make(folder)


def test_a_worker_that_begins_leaves_ctrl_c_to_the_build(tmp_path: Path) -> None:
    with LocalExecutor(Interrupted(tmp_path), ("0",)) as opened:
        assert outcome(opened, "have") == Ended("have", made=False)


def test_an_interrupted_build_on_a_cluster_leaves_a_clean_store(
    cluster: OnRay, tmp_path: Path
) -> None:
    matrix = Matrix(tmp_path)
    running = matrix.start("--ray", cluster.address)
    while not matrix.half_made():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert matrix.half_made() == []
    assert matrix.damaged() == []


def test_a_cluster_that_does_not_answer_is_one_clear_line() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        connect("127.0.0.1:1")


def test_gpus_come_from_the_option_then_the_environment_then_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1 2; do echo $i, NVIDIA H100, 81559, 9.0; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(None) == ("0", "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert visible_gpus(None) == ("1", "2")
    assert visible_gpus("0") == ("0",)
    with pytest.raises(UserError, match="there is no GPU 7; choose from 0, 1, 2"):
        visible_gpus("7")
    with pytest.raises(UserError, match="twice"):
        visible_gpus("1,1")


def test_local_stages_without_gpus_are_as_many_as_jobs(tmp_path: Path) -> None:
    assert LocalExecutor(Make(tmp_path), (), jobs=3).nodes == (Node("this machine", 0, 3),)

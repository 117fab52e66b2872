"""Builds as processes, with stand-ins for what needs NVIDIA's container."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.deploy.matrix import Matrix, kill_tree, tree
from tests.processes import command_line


def test_each_checkpoint_is_made_once_and_every_cell_gets_its_names(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, models=2, precisions=("fp16", "fp8", "int8_wo"), batches=2)
    done = matrix.run()
    assert done.returncode == 0, done.stderr
    calls = matrix.calls()
    assert calls.pop("trtllm-build") == matrix.cells == 12
    assert set(calls.values()) == {1}
    assert len(calls) == 2 * 3
    for folder in ("engines", "ensemble_models"):
        names = list((matrix.workspace / folder).iterdir())
        assert len(names) == 12
        assert all((name / "manifest.json").is_file() for name in names)


def test_a_build_of_what_is_there_makes_nothing(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, models=1, batches=1)
    matrix.run()
    before = matrix.calls()
    again = matrix.run()
    assert again.returncode == 0
    assert "7 artifacts were there already" in again.stdout
    assert matrix.calls() == before


def test_stages_share_no_gpu_while_they_run(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, models=1, precisions=("fp16",), batches=4, seconds=1, tp=4)
    running = matrix.start()
    most: set[frozenset[str]] = set()
    while running.poll() is None:
        now = [_gpus(each) for each in tree(running.pid) if _is_build(each)]
        used = [gpu for gpus in now for gpu in gpus]
        assert len(used) == len(set(used)), f"one GPU for two: {now}"
        most.add(frozenset(used))
        time.sleep(0.05)
    assert running.returncode == 0
    assert max(map(len, most)) == 8


def _is_build(process: psutil.Process) -> bool:
    return any(part.endswith("bin/trtllm-build") for part in command_line(process))


def _gpus(process: psutil.Process) -> list[str]:
    try:
        return process.environ().get("CUDA_VISIBLE_DEVICES", "").split(",")
    except psutil.Error:
        return []


def test_a_failed_build_fails_its_cells_and_the_others_go_on(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, models=1, precisions=("fp16",), batches=3)
    fault = {"TRT_STANDIN_FAULT": "oom", "TRT_STANDIN_FAULT_IN": "--max_batch_size 4"}
    done = matrix.run(**fault)
    assert done.returncode == 2
    assert len(list((matrix.workspace / "engines").iterdir())) == 2
    first, last = done.stderr.splitlines()
    assert "ran out of memory" in first
    assert "1 of 3 cells aren't built" in last
    assert matrix.run().returncode == 0
    assert len(list((matrix.workspace / "engines").iterdir())) == 3
    assert matrix.calls()["trtllm-build"] == 4


def test_fail_fast_starts_nothing_more(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, models=1, precisions=("fp16",), batches=6)
    done = matrix.run(
        "--fail-fast", "--gpus", "0,1", TRT_STANDIN_FAULT="die"
    )  # one engine at a time
    assert done.returncode == 2
    assert matrix.calls()["trtllm-build"] == 1
    assert "6 of 6 cells aren't built" in done.stderr


def test_an_engine_that_lacks_a_rank_is_no_engine(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, models=1, precisions=("fp16",), batches=1)
    done = matrix.run(TRT_STANDIN_FAULT="lose_rank")
    assert done.returncode == 2
    assert "rank1.engine" in done.stderr
    assert list((matrix.workspace / "store" / "engine").glob("[!.]*")) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_a_clean_store_and_no_process(
    tmp_path: Path, how: signal.Signals
) -> None:
    matrix = Matrix(tmp_path, seconds=20)
    running = matrix.start()
    matrix.wait_for_calls(3)
    processes = tree(running.pid)
    assert matrix.half_made()
    if how == signal.SIGINT:
        os.killpg(running.pid, how)  # as a terminal does, to all in its foreground
    else:
        running.send_signal(how)
    assert running.wait(30) == 130
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    assert matrix.half_made() == []


def test_stages_end_with_a_build_that_is_killed_alone(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, seconds=20)
    running = matrix.start()
    matrix.wait_for_calls(3)
    processes = tree(running.pid)
    running.kill()
    running.wait()
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert matrix.half_made() == []


def test_killed_builds_go_on_and_end_with_what_one_build_makes(tmp_path: Path) -> None:
    whole = Matrix(tmp_path / "whole", batches=3)
    assert whole.run().returncode == 0
    killed = Matrix(tmp_path / "killed", batches=3, seconds=1)
    draw = random.Random(11)
    for _ in range(3):
        before = killed.calls().total()
        running = killed.start()
        killed.wait_for_calls(before + 2)
        time.sleep(draw.uniform(0, 1))
        assert running.poll() is None
        kill_tree(running.pid)
        running.wait()
        assert killed.damaged() == []
    assert killed.run().returncode == 0
    assert killed.digests() == whole.digests()
    assert killed.damaged() == []
    assert killed.half_made() == []


def test_two_builds_at_once_make_nothing_twice(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, seconds=0.3)
    builds = [matrix.start(), matrix.start()]
    assert [build.wait(120) for build in builds] == [0, 0]
    calls = matrix.calls()
    assert calls.pop("trtllm-build") == matrix.cells
    assert set(calls.values()) == {1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 600 KiB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], check=False).returncode:
        pytest.skip("can't mount a small file system here")
    yield folder  # type: ignore[misc]
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_clear_line_and_a_rerun_goes_on(
    tmp_path: Path, small_disk: Path
) -> None:
    matrix = Matrix(tmp_path / "matrix", models=3, precisions=("fp16", "bf16", "fp8"), batches=2)
    matrix.workspace = small_disk / "workspace"
    done = matrix.run()
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if "cells aren't built" not in line]
    assert len(told) == 1
    assert "the store can't be written: No space left on device; make room" in told[0]
    assert matrix.half_made() == []
    assert matrix.damaged() == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert matrix.run().returncode == 0
    assert matrix.calls().total() >= matrix.cells + 9


def test_a_read_only_store_is_one_clear_line(tmp_path: Path, small_disk: Path) -> None:
    matrix = Matrix(tmp_path / "matrix")
    matrix.workspace = small_disk / "workspace"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = matrix.run()
    assert done.returncode == 2
    assert done.stderr.count("Read-only file system") == 1
    assert "Traceback" not in done.stderr

"""The commands as a person uses them; builds with stand-ins are in test_build.py."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tests.deploy.matrix import GPUS, Matrix
from trtllm_deploy.builds.progress import BuildProgress
from trtllm_deploy.cli import main as cli
from trtllm_deploy.cli.options import Where, planned
from trtllm_deploy.plan.plan import Stage
from trtllm_deploy.spec.deployment_file import Cell
from trtllm_deploy.workspace import gather

CELL = "model0_fp16_tp2_pp1_isl64_osl64_bs1"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Say = Callable[..., Said]


MIG = "GPU 0: x (UUID: GPU-0abc-1)\n  MIG 3g.40gb     Device  0: (UUID: MIG-1111-2)\n"


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    """Two cells that are built with stand-ins."""
    matrix = Matrix(tmp_path, models=1, precisions=("fp16",), batches=2)
    for name, value in matrix.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return matrix


@pytest.fixture
def say(matrix: Matrix, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command of trtllm-deploy on the matrix."""

    def say(command: str, *arguments: str, workspace: bool = True) -> Said:
        where = ["--workspace", str(matrix.workspace)] if workspace else []
        monkeypatch.setattr("sys.argv", ["trtllm-deploy", command, *arguments, *where])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return say


def test_status_shows_what_is_there_failed_and_missing(matrix: Matrix, say: Say) -> None:
    file = str(matrix.file)
    assert say("status", file).out.count("missing") == 8
    matrix.run(TRT_STANDIN_FAULT="oom", TRT_STANDIN_FAULT_IN="--max_batch_size 2")
    said = say("status", file)
    assert re.search(rf"{CELL} +│ there +│ there +│ there +│ there", said.out)
    assert re.search(r"_bs2 +│ there +│ there +│ failed +│ missing", said.out)
    assert "trtllm-build ran out of memory" in said.out.splitlines()[-1]


def test_logs_shows_what_the_commands_of_a_cell_said(matrix: Matrix, say: Say) -> None:
    file = str(matrix.file)
    said = say("logs", file, CELL)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "has no logs" in said.err
    matrix.run()
    said = say("logs", file, CELL)
    assert "writes" in said.out
    assert "TensorRT-LLM version" in said.out
    paths = say("logs", file, CELL, "--paths").out.split()
    assert len(paths) == 2
    assert all(Path(path).is_file() for path in paths)


def test_logs_of_a_misspelt_cell_names_the_nearest(matrix: Matrix, say: Say) -> None:
    said = say("logs", str(matrix.file), CELL.replace("model0", "modle0"))
    assert said.code == 2
    assert f"did you mean '{CELL}'?" in said.err


def test_why_names_the_flag_that_changed(matrix: Matrix, say: Say) -> None:
    matrix.run()
    file = str(matrix.file)
    assert "will be made" not in say("why", file, CELL).out
    matrix.file.write_text(matrix.file.read_text() + "build: {max_num_tokens: 4096}\n")
    lines = say("why", file, CELL).out.splitlines()
    assert lines == [
        "fetch      is there",
        "checkpoint is there",
        "engine     will be made",
        # 4096, cut as trtllm-build cuts it: to max_seq_len x max_batch_size
        "           build_config.max_num_tokens: not set → 128",
        "repository will be made",
        "           its engine changed",
    ]


def test_what_set_changed_shows_wherever_a_cell_is_told_of(matrix: Matrix, say: Say) -> None:
    file = str(matrix.file)
    assert "nothing is set" in say("set", file, CELL).out
    assert say("set", file, CELL, "max_queue_size=7").code == 0
    change = "max_queue_size=7"
    assert f"set      {CELL}: {change}" in say("status", file).out
    assert f"set        {change}, in place of the file's" in say("why", file, CELL).out
    assert f"{CELL}: set to {change}, in place of the file's" in say("plan", file).out
    assert say("set", file, CELL).out == f"{change}\n"
    assert say("set", file, CELL, "max_queue_size=").code == 0
    assert change not in say("plan", file).out


def test_a_checkpoint_serves_where_its_tools_are_not(
    matrix: Matrix, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix.run()
    file = str(matrix.file)
    assert "checkpoint 0 of" in say("plan", file).out
    other = {"nvidia-modelopt": "0.1", "transformers": "4.1", "torch": "2.1"}
    monkeypatch.setattr(gather, "_version", other.__getitem__)
    assert "checkpoint 0 of" not in say("plan", file).out  # other tools make it anew
    assert say("serve", file, CELL, "--print").code == 0  # but serve takes what is there
    monkeypatch.setattr(gather, "_version", lambda _: "not installed")
    assert "checkpoint 0 of" in say("plan", file).out


def test_gc_says_what_it_would_delete_and_deletes_only_when_told(matrix: Matrix, say: Say) -> None:
    matrix.run()
    file = str(matrix.file)
    assert "0 folders" in say("gc", file).out
    matrix.file.write_text(matrix.file.read_text().replace("- 2\n", "- 16\n"))
    said = say("gc", file)
    assert re.findall(r"would delete (\w+)", said.out) == ["engine", "repository"]
    assert say("gc").out == said.out  # the file that was built here is known
    assert say("gc", file, "--yes").out.startswith("deleted engine")
    assert "0 folders" in say("gc", file).out
    assert [path.name for path in (matrix.workspace / "engines").iterdir()] == [CELL]


def test_gc_without_any_file_deletes_nothing(say: Say) -> None:
    said = say("gc", "--yes")
    assert said.code == 2
    assert "name FILES" in said.err


def test_gc_keeps_what_a_file_needed_that_is_not_there_until_told(matrix: Matrix, say: Say) -> None:
    matrix.run()
    moved = matrix.file.rename(matrix.file.with_name("moved.yaml"))
    other = matrix.file.with_name("other.yaml")
    other.write_text(moved.read_text().replace("  - 2\n", ""))
    engines = matrix.workspace / "engines"
    for files in ((), (str(other),)):
        said = say("gc", *files, "--yes")
        assert said.code == 0
        assert f"artifacts of {matrix.file}, which isn't there (--forget {matrix.file})" in said.out
        assert "0 folders" in said.out
        assert len(list(engines.iterdir())) == 2
    said = say("gc", str(other), "--forget", str(matrix.file), "--yes")
    assert re.findall(r"deleted (\w+)", said.out) == ["engine", "repository"]
    assert said.out.count(f", of {matrix.file}") == 2
    assert [path.name for path in engines.iterdir()] == [CELL]
    assert say("gc", "--forget", "/nowhere.yaml").code == 2


def test_gc_refuses_where_it_cannot_know_which_engines_are_needed(
    matrix: Matrix, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix.run()
    monkeypatch.setenv("TRT_STANDIN_GPUS", "")
    said = say("gc", str(matrix.file), "--yes")
    assert said.code == 2
    assert "depends on the GPUs" in said.err
    assert len(list((matrix.workspace / "engines").iterdir())) == 2


def test_gpus_that_are_not_there_are_refused(matrix: Matrix, say: Say) -> None:
    said = say("build", str(matrix.file), "--gpus", f"0,{GPUS}")
    assert said.code == 2
    assert f"there is no GPU {GPUS}" in said.err


@pytest.mark.parametrize(
    ("called", "uuid", "memory", "mig"),
    [
        ("GPU-0abc", "GPU-0abc-1", "81559", "[N/A]"),
        ("0", "GPU-0abc-1", "[Insufficient Permissions]", "[N/A]"),
        ("MIG-1111", "GPU-0abc-1", "81559", "Enabled"),
    ],
)
def test_the_same_card_has_the_same_engine_however_it_is_named(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch, called: str, uuid: str, memory: str, mig: str
) -> None:
    def keys() -> set[str]:
        asked = planned(matrix.file, matrix.workspace, Where(None, None, None))
        return {stage.key for each in asked.plans for stage in each.stages}

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = keys()
    _, name, _, capability = os.environ["TRT_STANDIN_GPUS"].splitlines()[0].split(", ")
    listing = ", ".join(["0", name, memory, capability, uuid, mig])
    monkeypatch.setenv("TRT_STANDIN_GPUS", listing)
    monkeypatch.setenv("TRT_STANDIN_MIG", MIG)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", called)
    assert keys() == before


def test_a_driver_that_fails_is_said_and_plans_no_other_engine(
    matrix: Matrix, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    mismatch = "Failed to initialize NVML: Driver/library version mismatch"
    monkeypatch.setenv("TRT_STANDIN_COMPLAINT", mismatch)
    monkeypatch.setenv("TRT_STANDIN_CODE", "18")
    said = say("plan", str(matrix.file))
    assert said.code == 2
    assert f"nvidia-smi fails: {mismatch}" in said.err
    said = say("doctor", workspace=False)
    assert said.code == 1
    assert f"error nvidia-smi: it fails: {mismatch}" in said.out


def test_a_plan_tells_memory_for_the_gpus_at_hand_or_as_asked(matrix: Matrix, say: Say) -> None:
    file = str(matrix.file)
    assert "2 fits" in say("plan", file).out
    assert "2 doesn't fit" in say("plan", file, "--gpu-memory", "0.5GiB").out
    assert say("plan", file, "--gpu-memory", "much").code == 2
    assert "at best" in say("plan", file, "--gpu", "l4").out
    assert say("plan", file, "--gpu", "h99").code == 2


def test_a_dry_run_prints_every_command_and_makes_nothing(matrix: Matrix, say: Say) -> None:
    script = say("build", str(matrix.file), "--dry-run").out
    assert script.startswith("#!/bin/sh")
    assert len(re.findall(r"^trtllm-build ", script, re.MULTILINE)) == 2
    assert not (matrix.workspace / "store" / "engine").exists()


def test_releases_are_listed_and_compared(say: Say) -> None:
    assert {"0.11.0", "1.2"} <= set(say("releases", workspace=False).out.split())
    assert "max_seq_len" in say("releases", "0.11.0", "1.2", workspace=False).out


def test_a_workspace_that_cannot_be_written_is_one_line(
    matrix: Matrix, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30), "/read/only")

    monkeypatch.setattr("trtllm_deploy.workspace.gather.gather", refuse)
    said = say("build", str(matrix.file))
    assert (said.code, said.err) == (2, "trtllm-deploy: /read/only: Read-only file system\n")


def stage(key: str, gpus: int = 1) -> Stage:
    cell = Cell("tiny", "fp16", 1, 1, 128, 64, 4)
    return Stage("engine", key, {}, cell, f"title of {key}", gpus=gpus)


def test_the_live_view_has_a_row_per_stage_with_its_last_line() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=30, _environ={})
    with BuildProgress(console) as progress:
        progress.planned({"a": 3700.0}, [stage("a"), stage("b")], had=3)
        progress.started(stage("a"))
        progress.line(stage("a"), "[TRT] 40 % of it")
        progress.tick()
        progress.started(stage("b"))
        progress.failed(stage("b"), "out of memory")
        progress.finished(stage("a"), made=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"engine title of a +running +0:00 +1:01:\d\d +\[TRT\] 40 % of it", shown)
    assert re.search(r"engine title of b +waiting", shown)
    assert "failed engine    title of b: out of memory" in shown
    assert "made  engine     title of a" in shown


def test_without_a_terminal_starts_and_ends_are_plain_lines() -> None:
    out = io.StringIO()
    with BuildProgress(Console(file=out, width=120)) as progress:
        progress.planned({"a": 1.0, "b": 1.0}, [stage("a"), stage("b")], had=0)
        progress.started(stage("a"))
        progress.line(stage("a"), "40 %")
        progress.line(stage("a"), "a [load]: 8 requests ok\n")
        progress.tick()
        progress.started(stage("b"))
        progress.failed(stage("a"), "out of [memory]")
        progress.given_up([stage("b")])
    assert out.getvalue().splitlines() == [
        "start engine     title of a",
        "      engine     title of a  a [load]: 8 requests ok",
        "start engine     title of b",
        "failed engine    title of a: out of [memory]",
        "given up with it: 1 stages",
    ]


def test_a_file_that_can_not_be_written_is_one_line(matrix: Matrix, say: Say) -> None:
    said = say("render", "slurm", str(matrix.file), CELL, "-o", str(matrix.workspace / "no/file"))
    assert said.code == 2
    assert said.err == f"trtllm-deploy: {matrix.workspace}/no/file: No such file or directory\n"


def test_a_wrong_option_names_the_help_of_its_command(say: Say) -> None:
    assert say("serve", "--timeout", "0").err.endswith("(see trtllm-deploy serve --help)\n")
    assert say("nothing", workspace=False).err.endswith("(see trtllm-deploy --help)\n")


def test_what_compare_refuses_it_refuses_before_it_builds(matrix: Matrix, say: Say) -> None:
    cells = [CELL, CELL.replace("bs1", "bs2")]
    for wrong, fix in (("--score", "use one of: exact"), ("--concurrency", "give one of them")):
        words = {"--score": "exat", "--concurrency": "2"}[wrong]
        said = say("compare", str(matrix.file), *cells, wrong, words, "--request-rate", "1")
        assert (said.code, fix in said.err) == (2, True)
    assert not (matrix.workspace / "store" / "checkpoint").exists()

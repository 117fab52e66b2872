from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_deploy.check.failures import diagnose, failures, first_errors, unwrapped

EXCERPTS = [
    (tuple(names.split(", ")) if names != "nothing" else (), text.splitlines())
    for names, text in re.findall(
        r"^=== (.+)\n([\s\S]*?)(?=^=== |\Z)",
        Path(__file__).with_name("failure_logs.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
]
NAMES = {each.why: each.name for each in failures()}
NORMAL = """\
W1122 07:24:42.373792 20294 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory pool will not be available: CUDA driver version is insufficient for CUDA runtime version"
I1122 07:24:42.373861 20294 cuda_memory_manager.cc:117] "CUDA memory pool disabled"
E1122 07:24:42.373896 20294 server.cc:241] "CudaDriverHelper has not been initialized."
I1122 07:24:42.375374 20294 model_lifecycle.cc:472] "loading: postprocessing:1"
I1122 07:24:42.457643 20294 model_lifecycle.cc:839] "successfully loaded 'preprocessing'"
Loading weights: 100%|##########| 51/51 [00:00<00:00, 39975.61it/s]
E1122 07:24:45.263461 20294 ensemble_scheduler.cc:1468] "unable to create stream for ensemble: CUDA driver version is insufficient for CUDA runtime version"
I1122 07:24:45.263546 20294 model_lifecycle.cc:839] "successfully loaded 'ensemble'"
Error: Failed to initialize NVML
W1122 07:24:45.264284 20294 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
I1122 07:24:45.265439 20294 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:37105"
Signal (15) received.
I1122 07:24:49.451237 20294 server.cc:305] "Waiting for in-flight requests to complete."
E1122 07:24:53.374468 20294 main.cc:535] "failed to stop server: Internal - Exit timeout expired. Exiting immediately."
""".splitlines()  # noqa: E501 - the quickstart's server on a machine without GPU


@pytest.mark.parametrize(
    ("names", "lines"), EXCERPTS, ids=[f"{n}-{'+'.join(e[0])}" for n, e in enumerate(EXCERPTS)]
)
def test_a_log_is_told_by_its_causes_roots_first(names: tuple[str, ...], lines: list[str]) -> None:
    assert tuple(NAMES[each.why] for each in diagnose(lines)) == names


def test_every_pattern_matches_an_excerpt_of_its_cause() -> None:
    for failure in failures():
        logs = ["\n".join(unwrapped(lines)) for names, lines in EXCERPTS if failure.name in names]
        for pattern in failure.says:
            assert any(re.search(pattern, log, re.MULTILINE) for log in logs), pattern


def test_every_text_can_be_filled_from_each_of_its_patterns() -> None:
    assert len(NAMES) == len(failures())
    for failure in failures():
        wanted = set(re.findall(r"{(\w+)}", failure.what + failure.fix))
        for pattern in failure.says:
            assert wanted <= set(re.compile(pattern).groupindex), failure.name
        assert failure.what and failure.why and failure.fix and failure.source


def test_a_finding_says_where_and_what_with_the_values_of_the_log() -> None:
    _, lines = EXCERPTS[0]
    (found,) = diagnose(lines, "serve.log")
    assert found.where == "serve.log:4"
    assert found.what == "the engine was built with another TensorRT (237) than the one here (228)"
    lines = next(lines for names, lines in EXCERPTS if names == ("placeholder_left",))
    (found,) = diagnose(lines)
    assert found.what.startswith("line 51 of /models/tensorrt_llm/config.pbtxt ")


def test_the_log_of_a_server_that_runs_tells_nothing() -> None:
    assert diagnose(NORMAL) == []
    assert diagnose([]) == []


def test_a_wrapped_table_is_read_as_one_line_in_its_place() -> None:
    table = [
        "| Model | Version | Status                |",
        "| a     | 1       | UNAVAILABLE: no kerne |",
        "|       |         | l image is available  |",
        "|       |         | for execution on the  |",
        "|       |         | device                |",
        "|       |         | 1  0x7f92 a backtrace |",
        "| b     | 1       | READY                 |",
    ]
    read = list(unwrapped(table))
    assert len(read) == len(table)
    assert "no kernel image is available for execution on the device " in read[1]
    assert read[2:5] == ["", "", ""]
    assert read[5].startswith("1  0x7f92")
    (found,) = diagnose(table, "log")
    assert found.where == "log:2"


@given(st.lists(st.text(alphabet="| a1\n", max_size=12), max_size=12))
def test_unwrapping_leaves_as_many_lines_as_there_were(lines: list[str]) -> None:
    assert len(list(unwrapped(lines))) == len(lines)


def test_a_consequence_comes_after_its_cause_also_where_it_was_logged_first() -> None:
    lines = ["Stub process 'm_0' is not healthy.", "ModuleNotFoundError: No module named 'x'"]
    assert [NAMES[each.why] for each in diagnose(lines)] == ["python_module", "stub"]


@given(st.lists(st.text(), max_size=5))
def test_any_text_is_a_log(lines: list[str]) -> None:
    assert isinstance(diagnose(lines), list)
    assert len(first_errors(lines)) <= 2


@given(
    st.sampled_from(EXCERPTS),
    st.lists(st.text(max_size=20), max_size=4),
    st.sampled_from(["", "triton-1  | ", "[1,0]<stderr>:", "{x} "]),
)
def test_what_stands_before_each_line_of_a_failure_does_not_matter(
    excerpt: tuple[tuple[str, ...], list[str]], noise: list[str], tag: str
) -> None:
    names, lines = excerpt
    found = diagnose([*noise, *[f"{tag}{line}" for line in lines]])
    assert set(names) <= {NAMES[each.why] for each in found}


def test_first_errors_are_those_that_the_others_follow_from() -> None:
    assert first_errors([*NORMAL, 'E1122 07:22:14.6 1 m.cc:6] "failed to load\\n\\nAt:\\n x"']) == [
        "failed to load"
    ]
    rank = "[1,0]<stderr>:[TensorRT-LLM][ERROR] Assertion failed: x"
    assert first_errors(["I1", rank, rank, "ValueError: y", "OSError: z"]) == [
        "Assertion failed: x",
        "ValueError: y",
    ]
    assert first_errors(["one", "two", "three", ""]) == ["two", "three"]


def _doctor(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trtllm_deploy.cli.main", "doctor", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_the_command_tells_one_cause_of_several_ranks_once(tmp_path: Path) -> None:
    logs = []
    for rank in range(2):
        log = tmp_path / f"rank{rank}.log"
        log.write_text("starting\nCUDA out of memory. Tried\n", encoding="utf-8")
        logs.append(str(log))
    answer = _doctor(*logs)
    assert answer.returncode == 1
    assert answer.stdout.count("error ") == 1
    assert f"{logs[0]}:2: a GPU has no memory left" in answer.stdout
    findings = json.loads(_doctor("--json", *logs).stdout)["findings"]
    assert [each["level"] for each in findings] == ["error"]


def test_the_command_shows_the_first_errors_of_a_log_it_does_not_know() -> None:
    answer = _doctor("-", text='E1122 07:22:14.6 1 m.cc:6] "something new"\nbye\n')
    assert answer.returncode == 1
    assert _doctor("-", text="bye\n").returncode == 0
    assert "nothing known" in answer.stdout
    assert "something new" in answer.stdout
    assert "bye" not in answer.stdout


def test_no_escape_sequence_of_a_log_or_a_repository_reaches_the_terminal(tmp_path: Path) -> None:
    hostile = "a\x1b]0;owned\x07\x1b[2Jb\x9b"
    known, unknown = tmp_path / "known\x1b[2J.log", tmp_path / "unknown\x1b[2J.log"
    known.write_text(f"ModuleNotFoundError: No module named '{hostile}'\n", encoding="utf-8")
    unknown.write_text(f"E1 1 x] {hostile}\n{hostile}\n", encoding="utf-8")
    model = tmp_path / "repository/evil\x1b[2J"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('backend: "python" max_batch_size: \x1b[2J')
    for words in (
        ["doctor", str(known), str(unknown)],
        ["doctor", "--json", str(known)],
        ["check", str(model.parent)],
    ):
        command = [sys.executable, "-m", "trtllm_deploy.cli.main", *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode == 1
        shown = answer.stdout + answer.stderr
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown
        assert all(each.isprintable() or each == "\n" for each in shown)


def test_a_log_that_is_not_there_is_an_error_of_the_user(tmp_path: Path) -> None:
    answer = _doctor(str(tmp_path / "none.log"))
    assert answer.returncode == 2
    assert "none.log" in answer.stderr
    assert "Traceback" not in answer.stderr

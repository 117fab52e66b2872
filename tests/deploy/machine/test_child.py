from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_perf.errors import UserError
from tests.processes import lives, until
from trtllm_deploy.machine.child import CommandFailedError, run_command


def run(folder: Path, code: str) -> list[str]:
    lines: list[str] = []
    run_command([sys.executable, "-c", code], log_file=folder / "log", on_line=lines.append)
    return lines


def test_lines_go_to_the_log_and_to_who_asks(tmp_path: Path) -> None:
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr)"
    assert run(tmp_path, code) == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_failure_says_the_line_that_names_the_error(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError) as caught:
        run(tmp_path, "print('ValueError: no such thing'); print('bye'); raise SystemExit(3)")
    error = caught.value
    assert "ended with exit code 3: ValueError: no such thing" in str(error)
    assert (error.returncode, error.out_of_memory) == (3, False)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_failed_script_goes_by_its_own_name(tmp_path: Path) -> None:
    script = tmp_path / "quantize.py"
    script.write_text("raise SystemExit(1)")
    with pytest.raises(UserError, match=r"quantize\.py ended with exit code 1: it said nothing"):
        run_command([sys.executable, str(script)], log_file=tmp_path / "log")


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
        "(In allocateAsync at defaultAllocator.cpp:48, out of memory)",
        "what():  std::bad_alloc",
    ],
)
def test_lack_of_memory_is_recognised(tmp_path: Path, line: str) -> None:
    with pytest.raises(CommandFailedError) as caught:
        run(tmp_path, f"print({line!r}); print('more'); raise SystemExit(1)")
    assert caught.value.out_of_memory


def test_a_killed_child_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match="was killed, perhaps for lack of memory"):
        run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_an_absent_command_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no trtllm-biuld here"):
        run_command(["trtllm-biuld"], log_file=tmp_path / "log")


def test_the_child_and_what_it_started_end_when_the_caller_gives_up(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600']);"
        "print(child.pid, flush=True); child.wait()"
    )
    seen: list[int] = []

    def give_up(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command([sys.executable, "-c", code], log_file=tmp_path / "log", on_line=give_up)
    gone(seen[0])


def test_the_child_dies_with_a_killed_caller(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trtllm_deploy.machine.child import run_command;"
        "run_command([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True);"
        " time.sleep(600)'], log_file=Path(sys.argv[1]), on_line=lambda x: print(x, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        child = int(caller.stdout.readline())
        os.kill(caller.pid, signal.SIGKILL)
    gone(child)


def gone(pid: int) -> None:
    """Wait until a process is no more, at most as long as a slow machine takes."""
    assert until(lambda: not lives(pid)), f"process {pid} is still there"

"""Running one child process to its end: its lines go to a log, its failure becomes an error.

The child has a process group of its own, so that what it starts ends with it, and it ends with
the process that called. Knows nothing of what the child does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.machine.environment import clean_environment
from trtllm_deploy.machine.supervise import ending_with_parent

_TAIL = 20  # lines of output among which an error's cause is looked for

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|requested amount of GPU memory|std::bad_alloc",
    re.IGNORECASE,
)


class CommandFailedError(UserError):
    """A child process failed; ``out_of_memory`` says whether that was why."""

    def __init__(  # defaults: pickle gives it ``what`` alone
        self,
        what: str,
        log_file: Path | None = None,
        returncode: int = 1,
        out_of_memory: bool = False,
    ) -> None:
        super().__init__(what, where=log_file)
        self.returncode = returncode
        self.out_of_memory = out_of_memory


def run_command(
    command: Sequence[str],
    *,
    log_file: Path,
    on_line: Callable[[str], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    append: bool = False,
) -> None:
    """Run ``command`` until it ends; each line of its output goes to ``log_file`` and ``on_line``.

    ``environment`` is all that the child sees; where it is left out, ``clean_environment``. Raises
    UserError: there is no such executable; CommandFailedError: it ended with another exit code than
    0, or by a signal.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=_TAIL)
    out_of_memory = False
    with (
        log_file.open("a" if append else "w", encoding="utf-8") as log,
        _started(command, environment, cwd) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                log.write(line)
                log.flush()
                out_of_memory = out_of_memory or bool(_OUT_OF_MEMORY.search(line))
                tail.append(line.rstrip())
                on_line(line.rstrip())
            child.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        raise CommandFailedError(
            f"{_name(command)} {_how(child.returncode)}: {_said(tail)}",
            log_file,
            child.returncode,
            out_of_memory or child.returncode == -signal.SIGKILL,
        )


def _started(
    command: Sequence[str], environment: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            list(command),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=clean_environment() if environment is None else environment,
            start_new_session=True,
            preexec_fn=ending_with_parent(),
        )
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]} here",
            fix="run this in the TensorRT-LLM container (docs/container.md)",
        ) from None
    except PermissionError:
        raise UserError("can't be executed", where=command[0]) from None


def _name(command: Sequence[str]) -> str:
    """What people know it as: the script, not its interpreter."""
    is_script = len(command) > 1 and command[1].endswith(".py")
    return Path(command[1] if is_script else command[0]).name


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, perhaps for lack of memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _said(tail: Sequence[str]) -> str:
    """The line that most likely says why: the last that names an error, else the last of all."""
    lines = [line.strip() for line in tail if line.strip()]
    errors = [line for line in lines if re.search(r"error|exception|assert", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1][:300]

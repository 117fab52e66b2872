"""Processes as tests meet them: they may end, or be zombies, while they are looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

MARK = "TRTLLM_DEPLOY_TESTS"
"""In the environment of all that the tests start; its value is the process of the tests."""


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def command_line(process: psutil.Process) -> list[str]:
    """Its words; none of one that is gone or a zombie."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def name(process: psutil.Process) -> str:
    """Its name; none of one that is gone."""
    with suppress(psutil.Error):
        return process.name()
    return ""


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it; none where it is gone."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def marked(variable: str, value: str) -> Iterator[psutil.Process]:
    """Those with a value in their environment, whoever their parent is by now."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(variable) == value:
                yield process


def left_behind() -> list[str]:
    """What the tests of this process started and what still runs, as command lines.

    Python's own helpers for child processes end with this process.
    """
    ours = (" ".join(command_line(each)) for each in marked(MARK, str(os.getpid())))
    return [words for words in ours if words and "from multiprocessing" not in words]

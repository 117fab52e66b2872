"""Work beside the event loop while a block runs: in a thread, again and again, or in a process."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from llm_perf.ending import ENDING, unheard_by_children

_Self = TypeVar("_Self", bound="Background")


class Background(ABC):
    """Acts at the start of its block, every ``every_s`` seconds in a thread, and at the end."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    @abstractmethod
    def act(self) -> None:
        """Do it once; never called twice at a time."""

    def __enter__(self: _Self) -> _Self:
        self.act()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(self._every_s):
            self.act()
        self.act()


@contextmanager
def child(target: Callable[..., object], *arguments: Any) -> Iterator[Connection]:
    """Run ``target(*arguments, pipe)`` in a new process; gives our end of the pipe.

    It ignores ``ENDING``, but has to end when the pipe closes; else it is killed 5 s later.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    with unheard_by_children(ENDING):
        process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()

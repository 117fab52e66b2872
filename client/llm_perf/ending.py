"""Ctrl-C, kill and a closed terminal: heard where hearing them is safe, and alike.

An exception out of a signal handler rises in whatever code runs. In an event loop that is any
callback, whose errors the loop prints and forgets; in a process that begins, its imports.
A signal that is ignored from the start, as ``nohup`` has it, stays so.
"""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import TypeAlias

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler: TypeAlias = Callable[[int, FrameType | None], object]


_FINALIZE = weakref.finalize.__call__.__code__
_came = False


def end_like_ctrl_c() -> None:
    """Have each of ``ENDING`` raise ``KeyboardInterrupt`` in the main thread, from now on.

    Where the interpreter would forget it, in a finalizer, the next ``raising_later`` raises it.
    """
    for each in ENDING:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _end)


def _end(_number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    while frame is not None:
        if frame.f_code is _FINALIZE or frame.f_code.co_name == "__del__":
            return
        frame = frame.f_back
    raise KeyboardInterrupt


@contextmanager
def raising_later(wake: Callable[[], object]) -> Iterator[None]:
    """Keep what handlers of ``ENDING`` raise to the end of the block, and have it raised there.

    ``wake`` is called between any two instructions of the main thread, to have the block end; in
    other threads nothing is heard anyway.
    """
    if _came:
        raise KeyboardInterrupt
    raised: list[BaseException] = []

    def wrapped(before: Handler) -> Handler:
        def hear(number: int, _frame: FrameType | None) -> None:
            try:
                before(number, None)  # wherever it is, here it may raise
            except BaseException as error:
                raised.append(error.with_traceback(None))
                wake()

        return hear

    try:
        with _hearing(wrapped):
            yield
    finally:
        if raised:
            raise raised[0] from None


@contextmanager
def hearing_first(hear: Callable[[], object]) -> Iterator[None]:
    """Have the first of ``ENDING`` call ``hear`` instead of its handler; the next is as before."""
    heard = False

    def wrapped(before: Handler) -> Handler:
        def first(number: int, frame: FrameType | None) -> None:
            nonlocal heard
            if heard:
                before(number, frame)
            else:
                heard = True
                hear()

        return first

    with _hearing(wrapped):
        yield


@contextmanager
def _hearing(wrapped: Callable[[Handler], Handler]) -> Iterator[None]:
    """Put handlers around those of Python; what the block changes of them stays."""
    ours: dict[signal.Signals, tuple[Handler, Handler]] = {}
    if threading.current_thread() is threading.main_thread():
        for each in ENDING:
            if callable(before := signal.getsignal(each)):
                ours[each] = before, wrapped(before)
                signal.signal(each, ours[each][1])
    try:
        yield
    finally:
        for each, (before, hear) in ours.items():
            if signal.getsignal(each) is hear:
                signal.signal(each, before)


@contextmanager
def unheard_by_children(signals: Collection[signal.Signals]) -> Iterator[None]:
    """Have processes that begin in the block ignore ``signals`` from their first instruction on.

    Ctrl-C goes to all processes of a terminal. Here the signals wait until the block is over:
    Linux doesn't drop one that is ignored while it is blocked, unless another thread takes it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # it unblocks SIGINT when it begins
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    before = {each: signal.signal(each, signal.SIG_IGN) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

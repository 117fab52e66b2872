"""The event loop of a run, and waking it up at a given nanosecond.

It is uvloop where that is installed (extra ``fast``), else asyncio's own. The loops' own timers
are rounded up to a millisecond; a Linux timer file descriptor (timerfd_create(2)) wakes the same
loop some 50 µs after its time. ``perf_counter`` is CLOCK_MONOTONIC there, so due times need no
conversion.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from functools import partial
from time import get_clock_info, perf_counter_ns
from typing import Any, TypeVar

from llm_perf.ending import raising_later

T = TypeVar("T")
_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_NS = 10**9


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end. Not to be called from a running loop.

    What a handler of ``ENDING`` raises meanwhile cancels ``main``, and is raised when it is over.
    """
    woken = False
    cancel: Callable[[], object] | None = None

    def wake() -> None:
        nonlocal woken
        woken = True
        if cancel:
            with suppress(RuntimeError):  # the loop is closed: it is over
                cancel()

    async def cancelled_by_signals() -> T:
        nonlocal cancel
        task = asyncio.current_task()
        assert task
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        if woken:
            task.cancel()
        return await main

    with closing(main), raising_later(wake):
        return _run(cancelled_by_signals())


def _run(main: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    result: T = uvloop.run(main)
    return result


class _Spec(ctypes.Structure):
    """``struct itimerspec``: the interval (none), then the time."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")
    )


class Pacer:
    """One sleeper on the running loop; close it when done."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer = -1
        if sys.platform == "linux" and "MONOTONIC" in get_clock_info("perf_counter").implementation:
            self._libc = ctypes.CDLL(None, use_errno=True)
            flags = os.O_NONBLOCK | os.O_CLOEXEC
            self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, flags)
        if self._timer >= 0:
            self._loop.add_reader(self._timer, self._fire)

    async def until(self, due_ns: int) -> None:
        """Return at ``due_ns`` of ``perf_counter_ns``; at once when that is past."""
        left = due_ns - perf_counter_ns()
        if left <= 0:
            return
        if self._timer < 0:
            await asyncio.sleep(left / _NS)
            return
        self._waiter = self._loop.create_future()
        spec = _Spec(0, 0, *divmod(due_ns, _NS))
        self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(spec), None)
        await self._waiter

    def _fire(self) -> None:
        os.read(self._timer, 8)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Give the timer back."""
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1

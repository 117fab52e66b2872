"""Waking up an event loop at a given nanosecond: a due time in, the return of control out.

asyncio's own timers are rounded up to the millisecond of ``epoll_wait``; a Linux timer file
descriptor (timerfd_create(2)) wakes the same loop some 50 µs after its time. ``perf_counter`` is
CLOCK_MONOTONIC there, so due times need no conversion.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from time import get_clock_info, perf_counter_ns

_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_NS = 10**9


class _Spec(ctypes.Structure):
    """``struct itimerspec``: the interval (none), then the time."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Pacer:
    """One sleeper on the running loop; close it when done."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer = -1
        if sys.platform == "linux" and "MONOTONIC" in get_clock_info("perf_counter").implementation:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
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

"""Turns at the event loop: a few steps between two looks at the sockets, however many wait.

Hundreds of streams that begin or end together would else keep the loop from reading answers until
the last of them is served, and those would be stamped late. Sends go before whatever can wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

AT_ONCE = 8  # some 0.2 ms
_MOST_LEFT = 4096  # steps that wait: a bound for the memory where sends never cease
Step: TypeAlias = Callable[[], None]


class Turns:
    """Hands out turns to send in the order in which they were asked for; other steps come after."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._later: deque[Step] = deque()
        self._due = False

    async def turn(self) -> None:
        """Wait until it is this one's turn to send."""
        loop = asyncio.get_running_loop()
        self._call(loop)
        if self._left > 0:
            self._left -= 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def later(self, step: Step) -> None:
        """Have a step taken when nobody waits to send, in the order of calls; it may not raise."""
        self._later.append(step)
        if len(self._later) > _MOST_LEFT:
            self._later.popleft()()
        self._call(asyncio.get_running_loop())

    def catch_up(self) -> None:
        """Take all steps that wait, now."""
        while self._later:
            self._later.popleft()()

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._due:
            self._due = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = AT_ONCE
        while self._waiting and self._left > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._left -= 1
        for _ in range(min(self._left, len(self._later))):
            self._later.popleft()()
        self._due = False
        if self._waiting or self._later:
            self._call(loop)

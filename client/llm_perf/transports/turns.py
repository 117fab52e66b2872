"""Turns at the event loop: a few steps between two looks at the sockets, however many wait.

Hundreds of streams that begin or end together would else keep the loop from reading answers until
the last of them is served, and those would be stamped late.
"""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 8  # some 0.2 ms


class Turns:
    """Hands out turns in the order in which they were asked for."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = False

    async def turn(self) -> None:
        """Wait until it is this one's turn."""
        loop = asyncio.get_running_loop()
        if not self._due:
            self._due = True
            loop.call_soon(self._next, loop)
        if self._left > 0:
            self._left -= 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = AT_ONCE
        while self._waiting and self._left > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._left -= 1
        self._due = bool(self._waiting)
        if self._due:
            loop.call_soon(self._next, loop)

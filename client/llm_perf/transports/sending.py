"""Flow control of one HTTP/2 connection's sending side (RFC 9113 §5.2): bodies in, frames out.

Most bodies fit into the windows and go out at once; the rest waits here for WINDOW_UPDATE.
"""

from __future__ import annotations

from llm_perf.transports import frames as h2


class Outbox:
    """What the server allows us to send, and what waits for it to allow more."""

    def __init__(self) -> None:
        self._window = h2.DEFAULT_WINDOW
        self._initial = h2.DEFAULT_WINDOW
        self._frame_limit = h2.DEFAULT_FRAME
        self._windows: dict[int, int] = {}  # of streams with a rest
        self._rests: dict[int, memoryview] = {}

    def put(self, number: int, body: bytes) -> bytes:
        """The frames of a new stream's body that may go out now."""
        size = len(body)
        if size <= min(self._frame_limit, self._window, self._initial):
            self._window -= size
            return h2.frame(h2.DATA, h2.END_STREAM, number, body)
        self._windows[number] = self._initial
        self._rests[number] = memoryview(body)
        return self._take(number)

    def more(self) -> bytes:
        """The frames that the windows allow by now, of all that waits."""
        return b"".join([self._take(number) for number in list(self._rests)])

    def forget(self, number: int) -> bool:
        """Drop a stream's rest; says whether there was one."""
        self._windows.pop(number, None)
        return self._rests.pop(number, None) is not None

    def widen(self, number: int, amount: int) -> None:
        """Take a WINDOW_UPDATE of a stream, or of the connection (0)."""
        if number == 0:
            self._window += amount
        elif number in self._windows:
            self._windows[number] += amount

    def set(self, key: int, value: int) -> None:
        """Take a setting; a smaller initial window may leave streams with less than none, §6.9.2.

        Raises ``ValueError`` for what the RFC doesn't allow: it could make us wait forever.
        """
        if key == h2.INITIAL_WINDOW:
            if value > h2.LARGEST:
                raise ValueError("a window over the limit")
            change, self._initial = value - self._initial, value
            self._windows = {each: left + change for each, left in self._windows.items()}
        elif key == h2.MAX_FRAME:
            if not h2.DEFAULT_FRAME <= value < 2**24:
                raise ValueError("a frame size out of bounds")
            self._frame_limit = value

    def _take(self, number: int) -> bytes:
        rest, frames = self._rests[number], []
        while (
            rest
            and (room := min(self._window, self._windows[number], self._frame_limit, len(rest))) > 0
        ):
            part, rest = rest[:room], rest[room:]
            self._window -= room
            self._windows[number] -= room
            frames.append(h2.frame(h2.DATA, 0 if rest else h2.END_STREAM, number, bytes(part)))
        self._rests[number] = rest
        if not rest:
            self.forget(number)
        return b"".join(frames)

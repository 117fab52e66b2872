"""Finished requests on disk before the next second, so that a cut run can be finished later.

A jsonl file: a head that says what is measured, then a line per finished request with its number,
its times and the raw bytes of its messages. Several processes may append to one file; a line that
a crash left half-written is skipped.
"""

from __future__ import annotations

import base64
import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from time import sleep
from typing import Any

from llm_perf.background import Background
from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status

_PLAIN = ("request_id", "scheduled_ns", "sent_ns", "end_ns")
_EVERY_S = 0.4
_YIELD_S = 50e-6  # long enough for a thread that waits for the interpreter to get it


def encode(number: int, seen: Exchange) -> bytes:
    """Write one finished request as a line; some 40 µs for an answer of 64 messages."""
    line = {
        "number": number,
        **{name: getattr(seen, name) for name in _PLAIN},
        "failure": seen.failure and (seen.failure[0].value, seen.failure[1]),
        "message_ns": [at for at, _ in seen.messages],
        "message_sizes": [len(message) for _, message in seen.messages],
        "messages": base64.b64encode(b"".join(message for _, message in seen.messages)).decode(),
    }
    return json.dumps(line).encode() + b"\n"


def decode(raw: bytes) -> tuple[int, Exchange]:
    """Read what ``encode`` wrote; raises ``ValueError`` or ``KeyError`` for anything else."""
    line = json.loads(raw)
    data = base64.b64decode(line["messages"])
    ends = list(accumulate(line["message_sizes"]))
    parts = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    failure = line["failure"]
    return line["number"], Exchange(
        **{name: line[name] for name in _PLAIN},
        messages=list(zip(line["message_ns"], parts, strict=True)),
        failure=failure and (Status(failure[0]), failure[1]),
    )


def start_journal(path: Path, head: Mapping[str, Any]) -> None:
    """Begin a file anew; raises ``UserError`` where it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(head)) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't be written to: {error.strerror}", where=path) from error


def read_journal(path: Path, head: Mapping[str, Any]) -> dict[int, Exchange]:
    """Read what was finished of the run that ``head`` describes; nothing where no file is.

    Raises ``UserError`` when the file is of another run, and says what differs.
    """
    try:
        first, *lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        start_journal(path, head)
        return {}
    try:
        known = json.loads(first)
        differs = [key for key, value in head.items() if known.get(key) != value]
    except (ValueError, AttributeError):
        differs = ["everything"]
    if differs:
        raise UserError(
            f"is of another run: {', '.join(differs)} differs",
            where=path,
            fix="resume with the flags of that run, or leave --resume out to start anew",
        )
    done: dict[int, Exchange] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # cut short by a crash
            number, seen = decode(line)
            done[number] = seen
    with path.open("ab") as file:
        file.write(b"\n")  # a half line ends here
    return done


class Journal(Background):
    """Appends finished requests; a thread encodes them, and writes and syncs twice a second.

    It holds the interpreter for one line at a time, so the event loop hardly notices.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(_EVERY_S)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._finished: deque[tuple[int, Exchange]] = deque()
        self.failure: str | None = None

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        os.close(self._file)

    def note(self, number: int, seen: Exchange) -> None:
        """Keep a finished request."""
        self._finished.append((number, seen))

    def act(self) -> None:
        """Write what has been noted."""
        lines: list[bytes] = []
        for _ in range(len(self._finished)):
            lines.append(encode(*self._finished.popleft()))
            if not self._over.is_set():
                sleep(_YIELD_S)
        if not lines or self.failure is not None:
            return
        data = memoryview(b"".join(lines))  # one write, so that processes don't mix their lines
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            self.failure = f"requests are no longer kept on disk: {error.strerror}"

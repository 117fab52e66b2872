"""Finished requests on disk before the next second: kept as long as a run takes, and beyond a cut.

A jsonl file: a head that says what is measured, then a line per finished request with its number,
its times and the raw bytes of its messages; a line of its own where a cut run goes on. Several
processes may append to one file; a line that a crash left half-written is skipped.
"""

from __future__ import annotations

import base64
import json
import os
import re
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from time import sleep
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_perf.background import Background
from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status

Numbers: TypeAlias = npt.NDArray[np.int64]
_TIMES: Final = ("scheduled_ns", "sent_ns", "end_ns")
_BEGINNING: Final = re.compile(
    rb'\{"number": (-?\d+), ' + b", ".join(rb'"%b": (-?\d+)' % name.encode() for name in _TIMES)
)
_RESUMED: Final = b'{"resumed": true}\n'
_SERVER: Final = ("endpoint", "url", "server")  # of a head
_EVERY_S = 0.4
_YIELD_S = 50e-6  # long enough for a thread that waits for the interpreter to get it
_AT_ONCE = 256  # lines
_BACKLOG = 1000


def encode(number: int, seen: Exchange) -> bytes:
    """Write one finished request as a line; some 40 µs for an answer of 64 messages."""
    line = {
        "number": number,
        **{name: getattr(seen, name) for name in _TIMES},
        "request_id": seen.request_id,
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
        line["request_id"],
        **{name: line[name] for name in _TIMES},
        messages=list(zip(line["message_ns"], parts, strict=True)),
        failure=failure and (Status(failure[0]), failure[1]),
    )


def shifted(seen: Exchange, by_ns: int) -> Exchange:
    """The same exchange on a clock that is ``by_ns`` ahead."""
    return replace(
        seen,
        scheduled_ns=seen.scheduled_ns + by_ns,
        sent_ns=seen.sent_ns + by_ns,
        end_ns=seen.end_ns + by_ns,
        messages=[(at + by_ns, message) for at, message in seen.messages],
    )


@contextmanager
def pending(paths: Sequence[Path]) -> Iterator[None]:
    """Have empty journals for loads to come: while one is there no older result of its counts.

    Where no request ended in one, as nobody was there to be asked, they are gone at the end.
    Raises ``UserError`` where they can't be written.
    """
    try:
        for each in paths:
            each.write_bytes(b"")
    except OSError as error:
        raise UserError(f"can't be written to: {error.strerror}", where=error.filename) from error
    try:
        yield
    finally:
        if all(each.exists() and not _has_requests(each) for each in paths):
            for each in paths:
                each.unlink()


def _has_requests(path: Path) -> bool:
    with path.open("rb") as file:
        return len(list(islice(file, 2))) > 1  # behind its head


def is_newer(path: Path, results: Path) -> bool:
    """Whether a journal isn't of the run that wrote these results, and was killed after that."""
    return path.exists() and path.stat().st_mtime_ns > results.stat().st_mtime_ns


def start_journal(path: Path, head: Mapping[str, Any]) -> None:
    """Begin a file anew; raises ``UserError`` where it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(head)) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't be written to: {error.strerror}", where=path) from error


def resume_journal(
    path: Path, head: Mapping[str, Any], *, anyway: bool = False
) -> tuple[Kept, list[str]]:
    """Go on with a file, and give what was finished of the run that ``head`` describes.

    Nothing where no file is, or an empty one. Raises ``UserError`` when it is of another run, and
    says what differs; ``anyway`` lets the server differ, and what of it does comes along.
    """
    if not path.exists() or not path.stat().st_size:
        start_journal(path, head)
        return Kept(path, {}), []
    with path.open("rb") as file:
        first = file.readline()
    try:
        known = json.loads(first)
        differs = [key for key, value in head.items() if known.get(key) != value]
    except (ValueError, AttributeError):
        differs = ["everything"]
    elsewhere = set(differs) <= set(_SERVER)
    if differs and not (anyway and elsewhere):
        fix = "resume with the flags of that run, or leave --resume out to start anew"
        if elsewhere:
            fix += "; --resume-anyway mixes the answers of both servers, and says so"
        raise UserError(f"is of another run: {', '.join(differs)} differs", where=path, fix=fix)
    kept = Kept(path, {})
    with path.open("ab") as file:
        file.write(b"\n" + _RESUMED)  # a half line ends here
    return kept, differs


class Kept:
    """Finished exchanges in the order of their numbers, read from the journal one at a time.

    ``rest`` are those that could not be written; they come from memory. All times are of one
    clock, from which the pauses between parts of a run are taken out: one part ends as the next
    begins. ``numbers`` and the times are arrays, in ns.
    """

    def __init__(self, path: Path | None, rest: Mapping[int, Exchange]) -> None:
        self._rest = rest
        columns: list[array[int]] = [array("q") for _ in range(3 + len(_TIMES))]
        part = 0
        if path is not None:
            self._file = path.open("rb")
            weakref.finalize(self, self._file.close)
            part = self._scan(columns)
        for number, seen in rest.items():
            times = (getattr(seen, name) for name in _TIMES)
            for column, value in zip(columns, (number, -1, part, *times), strict=True):
                column.append(value)
        self._sort(*(np.array(column, dtype=np.int64) for column in columns))

    def _scan(self, columns: list[array[int]]) -> int:
        """Note each line's number, place, part and times; gives the part that is going on."""
        at = part = 0
        for line in self._file:
            if line == _RESUMED:
                part += 1
            elif (found := _BEGINNING.match(line)) and line.endswith(b"}\n"):
                values = (int(found[1]), at, part, *map(int, found.groups()[1:]))
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
            at += len(line)
        return part

    def _sort(self, numbers: Numbers, places: Numbers, parts: Numbers, *times: Numbers) -> None:
        order = np.argsort(numbers, kind="stable")
        last = np.append(numbers[order][1:] != numbers[order][:-1], True)[: len(order)]
        order = order[last]  # of two with one number the later: the other was cut short
        self.numbers, self._places, self.parts = numbers[order], places[order], parts[order]
        self.scheduled_ns, self.sent_ns, self.end_ns = (each[order] for each in times)
        self._by_ns = np.zeros_like(self.numbers)
        found = sorted(set(self.parts.tolist()))
        for before, after in reversed(list(pairwise(found))):
            one, other = self.parts == before, self.parts == after
            begins = (self._began_ns + self._by_ns)[other].min()
            self._by_ns[one] = begins - self.end_ns[one].max()
        self.scheduled_ns += self._by_ns
        self.sent_ns += self._by_ns
        self.end_ns += self._by_ns

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, Exchange]]:
        rows = zip(self.numbers, self._places, self._by_ns, strict=True)
        for number, place, by_ns in (map(int, row) for row in rows):
            if place < 0:
                yield number, self._rest[number]
                continue
            self._file.seek(place)
            with suppress(ValueError, KeyError, TypeError):  # cut short by a crash
                _, seen = decode(self._file.readline())
                yield number, shifted(seen, by_ns) if by_ns else seen

    @property
    def passed_ns(self) -> int:
        """The time from the first that was sent to the last that ended."""
        return int(self.end_ns.max() - self._began_ns.min()) if len(self) else 0

    @property
    def _began_ns(self) -> Numbers:
        began: Numbers = np.where(self.sent_ns > 0, self.sent_ns, self.scheduled_ns)
        return began  # one that found no connection was never sent

    @property
    def most_in_flight(self) -> int:
        """How many were in flight at a time, at most."""
        if not len(self):
            return 0
        sent, ended = np.sort(self._began_ns), np.sort(self.end_ns)
        over = np.searchsorted(ended, sent, "right")  # as each is sent
        return int((np.arange(1, len(sent) + 1) - over).max())


class Journal(Background):
    """Appends finished requests; a thread encodes them, and writes and syncs twice a second.

    It holds the interpreter for one line at a time, so the event loop hardly notices. What can't
    be written any more stays in memory: ``kept``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(_EVERY_S)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._finished: deque[tuple[int, Exchange]] = deque()
        self.kept: dict[int, Exchange] = {}
        self.failure: str | None = None

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        os.close(self._file)

    def note(self, number: int, seen: Exchange) -> None:
        """Keep a finished request."""
        self._finished.append((number, seen))

    def act(self) -> None:
        """Write what has been noted."""
        while self._finished:
            some = [self._finished.popleft() for _ in range(min(len(self._finished), _AT_ONCE))]
            if self.failure is None:
                try:
                    self._write(b"".join(self._lines(some)))
                except OSError as error:
                    self.failure = f"requests are no longer kept on disk: {error.strerror}"
            if self.failure is not None:
                self.kept.update(some)

    def _lines(self, some: Iterable[tuple[int, Exchange]]) -> Iterator[bytes]:
        for number, seen in some:
            yield encode(number, seen)
            # a busy loop gives the interpreter back late, so that one who yields falls behind
            if len(self._finished) < _BACKLOG and not self._over.is_set():
                sleep(_YIELD_S)

    def _write(self, lines: bytes) -> None:
        data = memoryview(lines)  # one write, so that processes don't mix their lines
        while data:
            data = data[os.write(self._file, data) :]
        if not self._finished:
            os.fsync(self._file)

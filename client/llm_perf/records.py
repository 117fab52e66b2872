"""A run's records, as many as they are: a sequence that has them on disk and one in memory.

Small runs stay in memory too, in the same form. The file has no name and goes with the sequence.
"""

from __future__ import annotations

import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter, index
from pathlib import Path
from typing import overload

from llm_perf.record import Record
from llm_perf.workload.workload import Prompt

_IN_MEMORY = 2**22  # bytes
_READ_AT_ONCE = 64  # records
_NAMES = tuple(field.name for field in fields(Record) if field.name != "prompt")
_values = attrgetter(*_NAMES)


class Records(Sequence[Record]):
    """Keeps ``records``; a file for them is made in ``folder``. Raises ``OSError``.

    A prompt that is one of ``prompts`` is not kept once more.
    """

    def __init__(
        self, records: Iterable[Record], prompts: Sequence[Prompt], folder: Path | None = None
    ) -> None:
        self._prompts = prompts
        self._ends = array("q", [0])
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder) if folder else None)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        for record in records:
            self._file.write(self._pack(record))
            self._ends.append(self._file.tell())

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, at: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(at, slice):
            return tuple(self[each] for each in range(*at.indices(len(self))))
        number = index(at)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(at)
        return next(self._read(number, number + 1))

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _READ_AT_ONCE):
            yield from self._read(start, min(start + _READ_AT_ONCE, len(self)))

    def __reduce__(self) -> tuple[type[tuple[Record, ...]], tuple[list[Record]]]:
        """Leave the file behind where it can't go along."""
        return tuple, (list(self),)

    def _read(self, start: int, end: int) -> Iterator[Record]:
        first = self._ends[start]
        self._file.seek(first)
        data = memoryview(self._file.read(self._ends[end] - first))
        for number in range(start, end):
            prompt, values = pickle.loads(
                data[self._ends[number] - first : self._ends[number + 1] - first]
            )
            prompt = self._prompts[prompt] if isinstance(prompt, int) else prompt
            yield Record(prompt, *values)

    def _pack(self, record: Record) -> bytes:
        prompt = record.prompt
        known = prompt.index < len(self._prompts) and self._prompts[prompt.index] is prompt
        return pickle.dumps((prompt.index if known else prompt, _values(record)), protocol=5)

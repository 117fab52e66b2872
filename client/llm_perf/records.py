"""A run's records, as many as they are: a sequence that has them on disk and one in memory.

Small runs stay in memory too, in the same form. The file has no name and goes with the sequence.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from operator import attrgetter, index
from pathlib import Path
from typing import IO, Any, overload

from llm_perf.record import Record
from llm_perf.workload.workload import Prompt

_IN_MEMORY = 2**22  # bytes
_BLOCK = 64  # records read at once
_NAMES = tuple(field.name for field in fields(Record) if field.name != "prompt")
_others = attrgetter(*_NAMES)


class Records(Sequence[Record]):
    """Keeps ``records``; a file for them is made in ``folder``, else where the system wants it.

    What the disk doesn't take stays in memory. A prompt that is one of ``prompts`` is not kept
    once more.
    """

    def __init__(
        self, records: Iterable[Record], prompts: Sequence[Prompt], folder: Path | None = None
    ) -> None:
        self._prompts = prompts
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._blocks: list[bytes | tuple[int, int]] = []  # itself, or its place and size on disk
        self._in_memory = self._n = 0
        source = iter(records)
        while some := [self._values(record) for record in islice(source, _BLOCK)]:
            self._n += len(some)
            self._blocks.append(self._kept(pickle.dumps(some, protocol=5)))

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, at: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(at, slice):
            return tuple(self[each] for each in range(*at.indices(self._n)))
        number = index(at)
        number += self._n if number < 0 else 0
        if not 0 <= number < self._n:
            raise IndexError(at)
        block, place = divmod(number, _BLOCK)
        return self._record(self._read(block)[place])

    def __iter__(self) -> Iterator[Record]:
        for block in range(len(self._blocks)):
            yield from map(self._record, self._read(block))

    def __reduce__(self) -> tuple[type[tuple[Record, ...]], tuple[list[Record]]]:
        """Leave the file behind where it can't go along."""
        return tuple, (list(self),)

    def _kept(self, data: bytes) -> bytes | tuple[int, int]:
        """Put a block on the disk, when there are many, and if it can be."""
        self._in_memory += len(data)
        if self._in_memory <= _IN_MEMORY:
            return data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            at = self._file.seek(0, os.SEEK_END)
            if self._file.write(data) == len(data):
                return at, len(data)
        except OSError:
            pass
        return data

    def _read(self, block: int) -> list[tuple[Any, ...]]:
        data = self._blocks[block]
        if isinstance(data, tuple):
            assert self._file is not None
            self._file.seek(data[0])
            data = self._file.read(data[1])
        values: list[tuple[Any, ...]] = pickle.loads(data)
        return values

    def _values(self, record: Record) -> tuple[Any, ...]:
        prompt = record.prompt
        known = prompt.index < len(self._prompts) and self._prompts[prompt.index] is prompt
        return prompt.index if known else prompt, *_others(record)

    def _record(self, values: tuple[Any, ...]) -> Record:
        prompt, *others = values
        return Record(self._prompts[prompt] if isinstance(prompt, int) else prompt, *others)

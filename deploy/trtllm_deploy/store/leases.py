"""Artifacts in use: what a build, a server or a measurement needs while it runs.

A lease is a locked file that names artifacts; it ends with its process, and with those that were
forked from it. Knows nothing of what is done with them.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypeAlias

from trtllm_deploy.store.store import UNWRITABLE

Artifact: TypeAlias = tuple[str, str]
"""Stage and key."""


class Lease:
    """What this process uses, as a context manager; ``hold`` replaces what it named before.

    ``store`` is the store's root.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / "leases"
        self._file = self._folder / f"{uuid.uuid4().hex}.json"
        self._open: TextIO | None = None

    def hold(self, artifacts: Iterable[Artifact]) -> None:
        """Name the artifacts in use; waits while some other process deletes what isn't.

        In a store that can't be written nothing is deleted, and nothing is held.
        """
        try:
            self._hold(artifacts)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise

    def _hold(self, artifacts: Iterable[Artifact]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        with _gate(self._folder, fcntl.LOCK_SH):
            file = temporary.open("w", encoding="utf-8")  # held open: the lock is its
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(sorted(set(artifacts)), file)
            file.flush()
            temporary.replace(self._file)
        self._close()
        self._open = file

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Use nothing any more."""
        if self._open is not None:
            self._file.unlink(missing_ok=True)
        self._close()


@contextmanager
def nobody_else_begins(store: Path) -> Iterator[None]:
    """Until the end of the block no lease is given."""
    folder = store / "leases"
    folder.mkdir(parents=True, exist_ok=True)
    with _gate(folder, fcntl.LOCK_EX):
        yield


def in_use(store: Path) -> frozenset[Artifact]:
    """What living processes hold; leases of dead ones are removed."""
    found: set[Artifact] = set()
    for path in (store / "leases").glob("*.json"):
        with suppress(OSError), path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                found.update((stage, key) for stage, key in json.load(file))
    return frozenset(found)


@contextmanager
def _gate(folder: Path, how: int) -> Iterator[None]:
    with (folder / ".gate").open("w") as gate:
        fcntl.flock(gate, how)
        yield

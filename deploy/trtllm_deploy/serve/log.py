"""The log files of a server: its own, one for each rank under mpirun, and the errors in them.

Out: errors as they come. Knows where the files are, not what is in them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trtllm_deploy.check.failures import error_in

_KEPT = 5  # logs of earlier starts


class ServerLog:
    """``file``, and below ``ranks`` what each rank under mpirun says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.ranks = file.with_suffix(".ranks")
        self._read: dict[Path, int] = {}

    def start(self) -> BinaryIO:
        """The file, empty; what earlier servers wrote is kept, the latest as ``*.1``."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.file, self.ranks):
            names = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, _KEPT + 1))]
            if names[-1].is_dir():
                shutil.rmtree(names[-1])
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                if newer.exists():
                    newer.replace(older)
        return self.file.open("wb")

    @property
    def files(self) -> list[Path]:
        """All that are there; mpirun's last: what it says follows from a rank."""
        return [*sorted(self.ranks.glob("*/rank.*/stdout")), self.file]

    def lines(self) -> Iterator[str]:
        """All lines of all files."""
        for file in self.files:
            yield from file.read_text(errors="replace").splitlines()

    def new_errors(self) -> Iterator[str]:
        """The errors since the last call, each with its rank where there are several."""
        for file in self.files:
            with file.open("rb") as stream:
                stream.seek(self._read.get(file, 0))
                text = stream.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[file] = self._read.get(file, 0) + len(whole)
            rank = "" if file == self.file else f"rank {int(file.parent.suffix[1:])}: "
            for line in whole.decode(errors="replace").splitlines():
                if error := error_in(line):
                    yield f"{rank}{error}"

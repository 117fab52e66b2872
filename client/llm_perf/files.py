"""Files that are there whole or not at all, also after a crash, a kill or a full disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from llm_perf.errors import UserError


def write_whole(path: Path, write: Callable[[TextIO], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then give it that name; missing folders are made.

    ``path`` holds the old text until all of the new is on the disk. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        # half a surrogate pair is written as JSON escapes it
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text whole. Raises UserError."""
    try:
        write_whole(path, lambda to: to.write(text))
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror}", where=path) from error


def sync(path: Path) -> None:
    """See that a file, or what was renamed in a folder, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

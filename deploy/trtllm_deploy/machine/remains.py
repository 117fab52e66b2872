"""Names under which a command runs what it starts, and what is left of commands that were killed.

A name tells which process gave it. Processes have it in their environment; shared memory and a
scratch folder begin with it. Knows nothing of what runs.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

from trtllm_deploy.machine import supervise

_SHARED_MEMORY = Path("/dev/shm")
_AFTER_MULTIPROCESSING = -200  # it removes its own temporary folder at -100
_NAME = re.compile(r"trtllm-deploy-(\d+)-(\d+)-(\d+)-[0-9a-f]{8}-")


def new_name() -> str:
    """A name that nothing had before; it holds while this process lives."""
    pid = os.getpid()
    return f"trtllm-deploy-{_namespace()}-{pid}-{process_start(pid)}-{secrets.token_hex(4)}-"


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])  # field 22 of proc(5)


@dataclass(frozen=True, slots=True)
class Remains:
    """What a killed command left: processes by id, shared memory in bytes."""

    name: str
    processes: tuple[int, ...]
    memory: int


def remains() -> list[Remains]:
    """What commands of this user left that are gone, in this namespace of processes."""
    processes: dict[str, list[int]] = {}
    for pid, name in _named_processes():
        processes.setdefault(name, []).append(pid)
    memory: dict[str, int] = {}
    for path in (*_SHARED_MEMORY.glob("trtllm-deploy-*"), *_temporary().glob("trtllm-deploy-*")):
        with suppress(OSError):
            status = path.lstat()
            owner = _name_in(path.name) if status.st_uid == os.getuid() else None
            if owner is not None:
                shared = status.st_size if path.parent == _SHARED_MEMORY else 0
                memory[owner] = memory.get(owner, 0) + shared
    return [
        Remains(name, tuple(processes.get(name, ())), memory.get(name, 0))
        for name in sorted({*processes, *memory})
        if _is_gone(name)
    ]


def sweep_remains() -> None:
    """End and remove what killed commands left."""
    for each in remains():
        supervise.sweep(each.name)


@contextmanager
def scratch_folder() -> Iterator[None]:
    """Keep what this process and its children put into temporary files under a name of its own.

    Files and processes that are left go when this process ends, after a kill at the next start.
    """
    name = _own_name()
    folder = str(supervise.scratch(name))
    before = {each: os.environ.get(each) for each in ("TMPDIR", supervise.NAME_VARIABLE)}
    os.environ.update({"TMPDIR": folder, supervise.NAME_VARIABLE: name})
    usual, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = usual
        for variable, value in before.items():
            os.environ.pop(variable)
            if value is not None:
                os.environ[variable] = value


@cache
def _own_name() -> str:
    """Of this process; multiprocessing keeps using the first temporary folder that it finds."""
    name = new_name()
    supervise.scratch(name).mkdir(mode=0o700)
    Finalize(None, supervise.sweep, args=(name,), exitpriority=_AFTER_MULTIPROCESSING)
    return name


def _temporary() -> Path:
    return supervise.scratch("")


def _named_processes() -> Iterator[tuple[int, str]]:
    start = f"{supervise.NAME_VARIABLE}=".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone
            for variable in (folder / "environ").read_bytes().split(b"\0"):
                value = variable.removeprefix(start).decode(errors="replace")
                if variable.startswith(start) and (name := _name_in(value)):
                    yield int(folder.name), name


def _name_in(text: str) -> str | None:
    found = _NAME.match(text)
    return found[0] if found else None


def _is_gone(name: str) -> bool:
    """Whether the process that gave it is; one that can't be seen from here isn't."""
    found = _NAME.fullmatch(name)
    if found is None or int(found[1]) != _namespace():
        return False
    return process_start(int(found[2])) != int(found[3])


def _namespace() -> int:
    """Which processes this one sees; shared memory and temporary files may be seen by more."""
    return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 (no path for people)

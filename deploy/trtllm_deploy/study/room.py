"""Whether servers fit on this machine at once, and which GPUs each gets. Pure, but for the memory.

Two that share a GPU would measure each other, so each has GPUs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PER_SERVER = 3 * 2**29  # bytes beside the weights: processes, tokenizer, KV cache; an estimate
_COPIES = 2  # of the weights while a server loads them


def gpus_apart(needs: Sequence[int], gpus: Sequence[str]) -> list[tuple[str, ...]] | None:
    """The GPUs of each server, none used twice; ``None`` where there are too few for all at once.

    ``needs`` is 0 for a server that takes none here.
    """
    left, given = list(gpus), list[tuple[str, ...]]()
    for need in needs:
        if need > len(left):
            return None
        given.append(tuple(left[:need]))
        left = left[need:]
    return given


def fit_in_memory(weights: Sequence[int]) -> bool:
    """Whether servers with so many bytes of weights fit into the memory that is free now.

    Where the system doesn't tell they are taken to fit.
    """
    free = available_memory()
    return free is None or sum(_COPIES * each + _PER_SERVER for each in weights) <= free


def available_memory() -> int | None:
    """Bytes that can be had without swapping (Linux, /proc/meminfo: MemAvailable)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def folder_bytes(folder: Path) -> int:
    """The size of a folder's files."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())

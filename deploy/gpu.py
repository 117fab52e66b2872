"""The GPUs of this machine, as nvidia-smi tells of them. Knows nothing of what runs on them."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import dataclass

_QUERY = "index,name,memory.total,compute_cap"
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: ``memory`` in bytes, ``capability`` as NVIDIA writes it, ``9.0`` for Hopper."""

    index: int
    name: str
    memory: int
    capability: str

    @property
    def sm(self) -> int:
        """The compute capability as one number: 90 for Hopper."""
        return int(self.capability.replace(".", ""))


def ask(*arguments: str) -> str:
    """What nvidia-smi answers.

    Raises OSError where there is none, subprocess.SubprocessError where it fails.
    """
    command = ["nvidia-smi", *arguments]
    answer = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=30, check=True
    )
    return answer.stdout


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists; none where there is no nvidia-smi, or no driver behind it."""
    try:
        return read_listing(ask(f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"))
    except (OSError, subprocess.SubprocessError):
        return ()


def read_listing(text: str) -> tuple[Gpu, ...]:
    """The GPUs of ``nvidia-smi --format=csv,noheader,nounits``; a line it can't tell is left out.

    nvidia-smi gives memory in MiB, and ``[N/A]`` for what a device doesn't report.
    """
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            index, name, memory, capability = (field.strip() for field in row)
            gpu = Gpu(int(index), name, int(memory) * _MIB, capability)
            _ = gpu.sm
        except ValueError:
            continue
        found.append(gpu)
    return tuple(found)

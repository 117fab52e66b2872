"""The GPUs of this machine, as nvidia-smi tells of them: which there are, and all it reports.

Out: values, facts as text; what a driver doesn't report isn't there. It judges nothing.
"""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_QUERY = "index,name,memory.total,compute_cap"
_MIB = 2**20
_CHOSEN = ("gpu_idle", "applications_clocks_setting", "display_clocks_setting")  # nothing is wrong
_GPU = re.compile(r"GPU\d{1,3}")


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
    for line in text.splitlines():
        try:
            [row] = csv.reader([line], skipinitialspace=True)
            index, name, memory, capability = (field.strip() for field in row)
            gpu = Gpu(int(index), name, int(memory) * _MIB, capability)
            _ = gpu.sm
        except (ValueError, csv.Error):  # Python 3.10's reader takes no NUL
            continue
        found.append(gpu)
    return tuple(found)


def read_report(
    xml: str, topology: str, listed: Iterable[Gpu], places: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], tuple[dict[str, str], ...]]:
    """The facts of the machine and of each GPU in ``nvidia-smi -q -x``.

    ``places`` is where a fact is, ``listed`` knows the compute capability, which isn't there.
    Raises ElementTree.ParseError.
    """
    log = ElementTree.fromstring(xml)
    capabilities = {gpu.index: gpu.capability for gpu in listed}
    links, states = read_topology(topology), []
    for index, gpu in enumerate(log.iterfind("gpu")):
        facts = {name: _said(gpu, *paths) for name, paths in places.items()} | _counted(gpu)
        facts["capability"] = capabilities.get(index)
        facts["links"] = ", ".join(f"{link} to {to}" for to, link in links.get(index, {}).items())
        states.append({name: value for name, value in facts.items() if value})
    slow = [
        f"{one} and {other} ({link})"
        for one, others in links.items()
        for other, link in others.items()
        if one < other and not link.startswith("NV")
    ]
    machine = {
        "driver": _said(log, "driver_version"),
        "CUDA up to": _said(log, "cuda_version"),
        "GPUs": str(len(states)),
        "without NVLink": ", ".join(slow),
    }
    return {name: value for name, value in machine.items() if value}, tuple(states)


def _counted(gpu: Element) -> dict[str, str | None]:
    """What is more than one element: memory errors, causes of low clocks, processes."""
    errors = [each.text for each in gpu.iterfind("ecc_errors/volatile/*") if "uncorr" in each.tag]
    reasons = [*gpu.iterfind("clocks_event_reasons/*"), *gpu.iterfind("clocks_throttle_reasons/*")]
    active = [each.tag.split("_", 3)[-1] for each in reasons if each.text == "Active"]
    users = [
        f"{_said(each, 'process_name')} (pid {_said(each, 'pid')})"
        for each in gpu.iterfind("processes/process_info")
    ]
    return {
        "ecc_errors": str(sum(int(text) for text in errors if text and text.isdecimal())),
        "held_down": ", ".join(each.replace("_", " ") for each in active if each not in _CHOSEN),
        "processes": ", ".join(users) or "nobody who can be seen from here",
    }


def read_topology(text: str) -> dict[int, dict[int, str]]:
    """How each GPU reaches the others, from ``nvidia-smi topo -m``; NICs are left out.

    NV18 is 18 NVLinks; PIX, PXB, PHB, NODE and SYS are ever longer ways over PCIe.
    """
    rows = [row.split() for row in re.sub(r"\x1b\[\d*m", "", text).splitlines()]
    heads = next((row for row in rows if row and row[0] == "GPU0"), [])
    return {
        int(name[3:]): {
            int(head[3:]): link
            for head, link in zip(heads, links, strict=False)
            if _GPU.fullmatch(head) and link != "X"
        }
        for name, *links in filter(None, rows)
        if _GPU.fullmatch(name) and [name, *links] != heads
    }


def _said(element: Element, *paths: str) -> str | None:
    texts = ((element.findtext(path) or "").strip() for path in paths)
    return next((text for text in texts if text not in ("", "N/A", "None")), None)

"""The GPUs of this machine, as nvidia-smi tells of them: which there are, and all it reports.

Out: values, facts as text; what a driver doesn't report isn't there. It judges nothing.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from llm_perf.errors import UserError

_QUERY = "index,name,memory.total,compute_cap,uuid,mig.mode.current"
_MIB = 2**20
# Exit codes of nvidia-smi (its manual) for none here: nothing found, no driver, no library.
_NONE_HERE = (6, 9, 12)
# A line of ``nvidia-smi -L``: a GPU, or a MIG instance of the one before it, with its profile.
_LISTED = re.compile(
    r"GPU (?P<index>\d+): .*\(UUID: \S+\)"
    r"|\s+MIG (?P<profile>\S*?(?P<gb>\d+)gb\S*)\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[^)]+)\)"
)
_CHOSEN = ("gpu_idle", "applications_clocks_setting", "display_clocks_setting")  # nothing is wrong
_GPU = re.compile(r"GPU\d{1,3}")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of it: ``capability`` as NVIDIA writes it, ``9.0`` for Hopper.

    ``memory`` in bytes, None where the driver doesn't tell; ``parent`` is the UUID of the GPU that
    a MIG instance is part of, whose index it has.
    """

    index: int
    name: str
    memory: int | None
    capability: str
    uuid: str = ""
    parent: str = ""

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


def gpus(*, must_answer: bool = False) -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists, in the place of one with MIG its instances; none without it.

    Raises UserError, if it ``must_answer``: there are GPUs, and nvidia-smi can't say which, for one
    is lost, or the driver isn't that of the library. Else there are none then.
    """
    try:
        listing = ask(f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    except subprocess.CalledProcessError as error:
        listed = read_listing(error.stdout)  # one is lost, and the others aren't
        if listed or not must_answer or error.returncode in _NONE_HERE:
            return listed
        raise UserError(
            f"nvidia-smi fails: {complaint(error)}",
            fix="see 'trtllm-deploy doctor'; which engine is needed depends on the GPU",
        ) from None
    except (OSError, subprocess.SubprocessError):
        return ()
    try:
        instances = ask("-L") if re.search(r", Enabled$", listing, re.MULTILINE) else ""
    except (OSError, subprocess.SubprocessError):
        instances = ""
    return read_listing(listing, instances)


def complaint(error: subprocess.CalledProcessError) -> str:
    """The first line that a failed nvidia-smi said; it complains on both of its outputs."""
    said = f"{error.stdout or ''}\n{error.stderr or ''}".strip()
    return said.split("\n")[0].strip() or f"exit code {error.returncode}"


def read_listing(text: str, instances: str = "") -> tuple[Gpu, ...]:
    """The GPUs of ``nvidia-smi --format=csv,noheader,nounits``; a line it can't tell is left out.

    nvidia-smi gives memory in MiB, and ``[N/A]`` or ``[Insufficient Permissions]`` for what a
    device or a container doesn't let it know. ``instances`` is what ``nvidia-smi -L`` says of MIG.
    """
    found: list[Gpu] = []
    for line in text.splitlines():
        try:
            [row] = csv.reader([line], skipinitialspace=True)
            index, name, memory, capability, *more = (field.strip() for field in row)
            known = int(memory) * _MIB if not memory.startswith("[") else None
            gpu = Gpu(int(index), name, known, capability, *more[:1])
            _ = gpu.sm
        except (ValueError, csv.Error):  # Python 3.10's reader takes no NUL
            continue
        found += _instances(gpu, instances) if more[1:] == ["Enabled"] else [gpu]
    return tuple(found)


def _instances(gpu: Gpu, listing: str) -> list[Gpu]:
    """The MIG instances of a GPU; a profile, ``3g.40gb``, tells of their memory."""
    found, index = [], None
    for line in filter(None, map(_LISTED.match, listing.splitlines())):
        if line["index"]:
            index = int(line["index"])
        elif index == gpu.index:
            name, memory = f"{gpu.name} MIG {line['profile']}", int(line["gb"]) * 2**30
            found.append(Gpu(gpu.index, name, memory, gpu.capability, line["uuid"], gpu.uuid))
    return found


def devices(listed: Sequence[Gpu]) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls them: numbers, or UUIDs where one is a MIG instance."""
    by_uuid = any(gpu.parent for gpu in listed)
    return tuple(gpu.uuid if by_uuid else str(gpu.index) for gpu in listed)


def pick(listed: Sequence[Gpu], names: Iterable[str]) -> tuple[Gpu, ...]:
    """The GPUs that ``names`` mean, in that order, as CUDA reads CUDA_VISIBLE_DEVICES.

    The first name that means none, or several, ends the list, and so does a number after UUIDs or
    a UUID after numbers; one that comes again leaves none at all (tried on two
    H100). A number or a GPU's UUID means the first of its MIG instances.
    """
    found: list[Gpu] = []
    numbers = None
    for name in names:
        number = re.match(r"\s*\+?(\d+)", name)
        called = _called(listed, name, int(number[1]) if number else None)
        if called is None or numbers not in (None, bool(number)):
            break
        if called in found:
            return ()
        numbers = bool(number)
        found.append(called)
    return tuple(found)


def _called(listed: Sequence[Gpu], name: str, number: int | None) -> Gpu | None:
    if number is not None:
        return next((each for each in listed if each.index == number), None)
    if not name.startswith(("GPU-", "MIG-")):
        return None
    meant: dict[str, Gpu] = {}
    for each in listed:
        for uuid in filter(None, (each.uuid, each.parent)):
            if uuid.startswith(name):
                meant.setdefault(uuid, each)
    return next(iter(meant.values())) if len(meant) == 1 else None


def visible(listed: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of the GPUs that this environment's CUDA_VISIBLE_DEVICES leaves."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(listed) if names is None else pick(listed, names.split(","))


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

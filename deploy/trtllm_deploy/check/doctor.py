"""What is right and wrong with this machine, before anything is built or served on it.

``examine`` asks the machine and gives facts, ``check`` judges them; rules and texts are in
``doctor.yaml``. It opens no connection, and imports none of the packages whose versions it tells.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import ask, complaint, gpus, read_report
from trtllm_deploy.releases.release import release_names, same_release

Facts = Mapping[str, str]
_DATA = load_data("check/doctor.yaml")


class _Told(dict[str, str]):
    def __missing__(self, _: str) -> str:
        return "unknown"


def examine(workspace: Path) -> tuple[Facts, tuple[Facts, ...]]:
    """Facts of this machine, and of each of its GPUs."""
    topology = ""
    try:
        report = ask("-q", "-x")
        with suppress(subprocess.SubprocessError):  # not every system has it
            topology = ask("topo", "-m")
        machine, states = read_report(report, topology, gpus(), _DATA["gpu_facts"])
    except FileNotFoundError:
        machine, states = _without_gpu("there is no nvidia-smi"), ()
    except subprocess.CalledProcessError as error:
        machine, states = {"nvidia-smi fails": complaint(error)}, ()
    except (OSError, subprocess.SubprocessError, SyntaxError) as error:
        machine, states = {"nvidia-smi fails": str(error).split("\n")[0]}, ()
    return {**machine, **_software(), **_host(workspace)}, states


def _without_gpu(reason: object) -> dict[str, str]:
    works = "plan, render, and the reference backend"
    return {"no GPU here": str(reason).split("\n")[0], "what works": works}


def _software() -> dict[str, str]:
    places = f"{os.environ.get('PATH', os.defpath)}:/opt/tritonserver/bin"
    found = {name: installed(name) for name in _DATA["packages"]}
    version = found["tensorrt-llm"] or ""
    facts = {
        **found,
        "release": next((name for name in release_names() if same_release(version, name)), None),
        "tritonserver": shutil.which("tritonserver", path=places),
        "container": os.environ.get("NVIDIA_TRITON_SERVER_VERSION"),
        "mpirun": shutil.which("mpirun"),
        "python": platform.python_version(),
    }
    return {name: value for name, value in facts.items() if value}


def installed(package: str) -> str | None:
    """Its version in this environment, else in trtllm-build's: the container's python has its own.

    None where it is in neither.
    """
    tool = shutil.which("trtllm-build")
    beside = Path(tool).resolve().parent.parent.glob("lib/python3*/*-packages") if tool else ()
    for path in (sys.path, list(map(str, beside))):
        for found in metadata.distributions(name=package, path=path):
            return found.version
    return None


def _host(workspace: Path) -> dict[str, str]:
    disk = next(folder for folder in (workspace, *workspace.parents) if folder.exists())
    shm = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    lock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return {
        "workspace": str(workspace),
        "disk free": f"{shutil.disk_usage(disk).free / 2**30:.1f} GiB",
        "shared memory": f"{shm / 2**20:.0f} MiB",
        "memory lock": "no limit" if lock == resource.RLIM_INFINITY else f"{lock / 2**20:.1f} MiB",
        "HF token": "present" if get_token() else "none; gated models can't be fetched",
    }


def lines(machine: Facts, states: Sequence[Facts]) -> Iterator[tuple[str, str]]:
    """All facts for people, in lines of less than 80 columns: what it is of, what it is."""
    yield from machine.items()
    known = (*_DATA["packages"], "tritonserver", "mpirun")
    yield "not here", ", ".join(name for name in known if name not in machine) or "nothing"
    for number, facts in enumerate(states):
        for template in _DATA["gpu_lines"]:
            yield f"GPU {number}", template.format_map(_Told(facts))


def check(machine: Facts, states: Sequence[Facts]) -> list[Finding]:
    """What is wrong there, or will be."""
    findings = list(_broken("machine_rules", machine))
    for number, facts in enumerate(states):
        findings += _broken("gpu_rules", {**facts, "where": f"GPU {number}"})
    return findings


def _broken(rules: str, facts: Facts) -> Iterator[Finding]:
    for rule in _DATA[rules].values():
        if _holds(rule, facts):
            told = {key: rule[key].format_map(_Told(facts)) for key in ("what", "where", "fix")}
            yield Finding(rule["level"], why=rule["why"], **told)


def _holds(rule: Mapping[str, Any], facts: Facts) -> bool:
    def excess(name: str, limit: Any) -> float:
        value, other = _number(facts.get(name)), _number(facts.get(limit, limit))
        return 0 if value is None or other is None else value - other

    return (
        all(re.match(says, facts.get(name, "")) for name, says in rule.get("if", {}).items())
        and all(excess(*each) > 0 for each in rule.get("above", {}).items())
        and all(excess(*each) < 0 for each in rule.get("below", {}).items())
        and not any(name in facts for name in rule.get("missing", ()))
    )


def _number(text: object) -> float | None:
    match = re.match(r"\d+(?:\.\d+)?", str(text))
    return float(match[0]) if match else None

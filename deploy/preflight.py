"""Preflight: what will go wrong with a model repository, said before it is launched.

In: a repository, by whatever tool it was made, and how it is to be launched. Out: findings. The
rules are in preflight_repository.py and preflight_engine.py, their texts in preflight.yaml.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from deploy import preflight_engine, preflight_repository
from deploy.finding import Finding
from deploy.gpu import Gpu
from deploy.preflight_facts import Launch, read_facts


def preflight(
    repository: Path,
    *,
    world_size: int | None = None,
    nodes: int = 1,
    gpus: Sequence[Gpu] = (),
    tensorrt_llm: str | None = None,
    lengths: tuple[int, int] | None = None,
    engine: Path | None = None,
) -> list[Finding]:
    """Check a repository, and the engines that it names, for this machine.

    ``world_size`` processes are to be started on ``nodes`` machines with these ``gpus`` each;
    ``tensorrt_llm`` is the version installed there; ``lengths`` are the ISL and OSL of the
    requests; ``engine`` is looked at instead of what gpt_model_path names. What isn't given isn't
    checked.
    """
    size, locked = None, resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    with suppress(OSError):
        size = shutil.disk_usage("/dev/shm").total
    launch = Launch(world_size, tuple(gpus), nodes, tensorrt_llm, lengths, engine, size, locked)
    return judge(repository, launch)


def judge(repository: Path, launch: Launch) -> list[Finding]:
    """Every rule on all that can be read there; each finding once."""
    findings: list[Finding] = []
    for facts in read_facts(repository, launch):
        findings += facts.unreadable
        for rule in preflight_repository.RULES:
            findings += rule(facts)
        if facts.llm and facts.engine:
            for about_engine in preflight_engine.RULES:
                findings += about_engine(facts, facts.llm, facts.engine)
    return list(dict.fromkeys(findings))


def installed_tensorrt_llm() -> str | None:
    """The version of TensorRT-LLM that Python finds here; None without one."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("tensorrt_llm")
    return None

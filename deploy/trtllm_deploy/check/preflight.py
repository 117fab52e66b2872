"""Preflight: what will go wrong with a model repository, said before it is launched.

In: a repository, by whatever tool it was made, and how it is to be launched. Out: findings. The
rules are in wiring_rules.py, repository_rules.py and engine_rules.py, their texts in
preflight.yaml.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from trtllm_deploy.backends.servers import kind_of
from trtllm_deploy.check import engine_rules, repository_rules, wiring_rules
from trtllm_deploy.check.doctor import installed
from trtllm_deploy.check.facts import Launch, read_facts
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import gpus, pick, visible


def here(only: Collection[str] = (), **asked: Any) -> Launch:
    """A launch on this machine, with ``only`` these of its GPUs if any are named, else the visible.

    ``asked`` are other fields of the value; what isn't known isn't checked.
    """
    size, locked = None, resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    with suppress(OSError):
        size = shutil.disk_usage("/dev/shm").total
    return Launch(
        gpus=pick(gpus(), only) if only else visible(gpus()),
        tensorrt_llm=installed("tensorrt-llm"),
        shared_memory=size,
        locked_memory=locked,
        **asked,
    )


def has_own_rules(folder: Path) -> bool:
    """Whether its server judges a folder itself, and TensorRT-LLM's rules aren't for it."""
    return folder.is_dir() and kind_of(folder).judge is not None


def judge(repository: Path, launch: Launch) -> list[Finding]:
    """What every rule finds in a repository, and in the engines that it names; each once."""
    kind = kind_of(repository)
    if kind.judge is not None:
        return list(kind.judge(repository, launch.gpus))
    findings: list[Finding] = []
    for facts in read_facts(repository, launch):
        findings += facts.unreadable
        for rule in (*wiring_rules.RULES, *repository_rules.RULES):
            findings += rule(facts)
        if facts.llm and facts.engine:
            for about_engine in engine_rules.RULES:
                findings += about_engine(facts, facts.llm, facts.engine)
    return list(dict.fromkeys(findings))

"""What a backend is asked to make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtllm_deploy.spec.settings import TritonSettings


@dataclass(frozen=True, slots=True)
class EngineJob:
    """An engine to make in the folder ``target``.

    ``workers`` GPUs may work on it; ``environment`` is all that a child process sees, this
    process's own when None. ``timing_cache`` is shared by builds on the same kind of GPU.
    """

    checkpoint: Path
    target: Path
    release: str
    build_config: Mapping[str, Any] = field(hash=False)
    workers: int = 1
    timing_cache: Path | None = None
    environment: Mapping[str, str] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class RepositoryJob:
    """What a server is started on, to make in the folder ``target``; the two folders end up in it.

    ``serving`` is what its server is started with beside the settings.
    """

    target: Path
    release: str
    engine_dir: Path
    tokenizer_dir: Path
    max_batch_size: int
    settings: TritonSettings
    serving: Mapping[str, Any] = field(default_factory=dict, hash=False)

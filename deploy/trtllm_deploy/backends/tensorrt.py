"""TensorRT engines: trtllm-build's command line, its output checked, served by the C++ backend."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import read_engine
from trtllm_deploy.backends.jobs import EngineJob, RepositoryJob
from trtllm_deploy.backends.judge import refuse_unless_accepted
from trtllm_deploy.backends.model_refusals import (
    ROPE_FIX,
    Configs,
    carried_window,
    refuse_models,
    refuse_release,
    refuse_windows,
    rope_fault,
)
from trtllm_deploy.backends.protocol import Backend
from trtllm_deploy.backends.refusals import refuse
from trtllm_deploy.backends.repository import render_repository
from trtllm_deploy.backends.server import Cluster
from trtllm_deploy.backends.triton.server import TRITON, triton_cluster
from trtllm_deploy.machine.child import CommandFailedError, run_command
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import read_json_object
from trtllm_deploy.releases.release import load_release, same_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile


class TensorrtBackend(Backend):
    """Builds with the trtllm-build on PATH, which must be of the deployment file's release."""

    checkpoint_kind: Literal["trtllm", "hf"] = "trtllm"
    compiles = True
    server = TRITON

    def check(
        self, file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu], configs: Configs
    ) -> None:
        """Refuse combinations that the build, the load or the first request would fail on."""
        refuse(file, cells, gpus)
        refuse_models(file, configs, self.checkpoint_kind)
        refuse_release(file, configs)
        refuse_windows(file, cells, configs)

    def settings(
        self, file: DeploymentFile, cell: Cell, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The model's sliding windows, which only Triton's parameter tells an engine."""
        return carried_window(file, cell, config)

    def build_config(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """Exactly the flags that are said on the command line; a step as trtllm-build clips it."""
        given = file.given_flags(cell)
        if "max_num_tokens" not in given:
            return given
        return {**given, "max_num_tokens": file.step_tokens(cell)}

    def command(self, job: EngineJob) -> tuple[str, ...] | None:
        """``trtllm-build`` with the cell's flags; a timing cache is read once there is one."""
        cache = job.timing_cache
        values = {
            "checkpoint_dir": str(job.checkpoint.absolute()),
            "output_dir": str(job.target.absolute()),
            **job.build_config,
            "workers": max(1, job.workers),
            "input_timing_cache": str(cache) if cache and cache.is_file() else None,
            "output_timing_cache": str(cache) if cache else None,
        }
        flags = load_release(job.release).commands["trtllm-build"].line(values)
        return ("trtllm-build", *flags)

    def make_engine(self, job: EngineJob, log_file: Path, on_line: Callable[[str], None]) -> None:
        """Build and check.

        Raises UserError: the release can't build this checkpoint right, the build failed (out of
        memory: with smaller settings to try), or what it wrote isn't a whole engine.
        """
        config = job.checkpoint / "config.json"
        if fault := rope_fault(read_json_object(config), job.release):
            raise UserError(fault, where=config, fix=ROPE_FIX)
        command = self.command(job)
        assert command is not None
        unasked = refuse_unless_accepted(command[1:], job.checkpoint, job.release)
        if unasked:
            on_line(f"not asked whether TensorRT-LLM takes it: {unasked}")
        if job.timing_cache:
            job.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            run_command(
                command,
                log_file=log_file,
                on_line=on_line,
                environment=job.environment,
                cwd=job.target,  # where it leaves model.cache if it is given no timing cache
            )
        except CommandFailedError as error:
            if not error.out_of_memory:
                raise
            raise UserError(
                "trtllm-build ran out of memory",
                where=log_file,
                fix=f"try {', '.join(_smaller(job))}, a larger tp, or a smaller precision",
            ) from None
        (job.target / "model.cache").unlink(missing_ok=True)
        check_engine(job)

    def make_repository(self, job: RepositoryJob) -> None:
        """The ensemble around TensorRT-LLM's C++ backend."""
        render_repository(job, "tensorrt")

    def cluster(self, release: str, cell: Cell) -> Cluster:  # noqa: ARG002
        """Triton with its C++ backend, in NVIDIA's image."""
        return triton_cluster(release)


def _smaller(job: EngineJob) -> list[str]:
    """Settings that need less memory to build, half of what they were where that still serves."""
    known, given = load_release(job.release).commands["trtllm-build"].flags, job.build_config
    tokens = given.get("max_num_tokens", known["max_num_tokens"].default)
    tried = []
    if tokens // 2 >= given["max_input_len"]:
        tried.append(f"max_num_tokens {tokens // 2}")
    if given["max_batch_size"] > 1:
        tried.append(f"max_batch_size {given['max_batch_size'] // 2}")
    longest = f"{given['max_input_len']},{given['max_seq_len'] - given['max_input_len']}"
    return [*tried, f"shorter lengths than {longest}"]


def timing_cache_name(release: str, gpu: Gpu) -> str:
    """File name of the timing cache that builds of one release on one kind of GPU share."""
    return f"{release}-sm{gpu.sm}-{re.sub('[^A-Za-z0-9]+', '-', gpu.name).strip('-')}.cache"


def check_engine(job: EngineJob) -> None:
    """See that a finished build is whole, of this release, and has the limits it was asked for.

    Raises UserError: config.json or a rank's engine is missing or empty, or says something else.
    """
    engine, file = read_engine(job.target), job.target / "config.json"
    ranks, wanted = engine.world_size, read_json_object(job.checkpoint / "config.json")["mapping"]
    if ranks != wanted["world_size"]:
        raise UserError(
            f"is for {ranks} GPUs, its checkpoint for {wanted['world_size']}", where=file
        )
    for rank in range(ranks):
        part = job.target / f"rank{rank}.engine"
        if not part.is_file() or not part.stat().st_size:
            raise UserError(
                f"trtllm-build ended well, yet {part.name} of {ranks} ranks is missing or empty",
                where=job.target,
                fix="see the log of the build; is the disk full?",
            )
    if not same_release(engine.version, job.release):
        raise UserError(
            f"was built by TensorRT-LLM {engine.version}, the deployment file says {job.release}",
            where=file,
            fix=f"write release: {engine.version!r}, or build in the container of {job.release}",
        )
    for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens"):
        wanted, has = job.build_config.get(name), engine.build.get(name)
        if wanted is not None and has != wanted and not _adjusted(name, has, engine.build):
            raise UserError(f"has {name} {has}, {wanted} was asked for", where=file)


def _adjusted(name: str, has: Any, build: Mapping[str, Any]) -> bool:
    """Whether a limit is one that trtllm-build sets itself.

    max_num_tokens: at most max_seq_len x max_batch_size, and just that without
    remove_input_padding; at least a KV block, or without context FMHA max_input_len
    (check_max_num_tokens in _common.py). max_seq_len grows where tokens are drafted (builder.py).
    """
    plugins = build.get("plugin_config") or {}
    if name == "max_num_tokens":
        most = build["max_seq_len"] * build["max_batch_size"]
        return has in (most, plugins.get("tokens_per_block"), build.get("max_input_len"))
    return name == "max_seq_len" and bool(build.get("max_draft_len"))

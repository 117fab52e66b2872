"""Combinations that TensorRT-LLM fails on late: refused before the first GPU-second.

In: the deployment file, its cells and the GPUs. Out: nothing, or what is wrong and how to mend it.
Sources: TensorRT-LLM issues 2166 and 2894 (reuse needs paged context FMHA; not with an int8 KV
cache in 0.11.0), 2702 (prompts longer than max_num_tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_perf.errors import UserError
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.located import KeyPath
from trtllm_deploy.spec.precision import PRECISIONS

FP8_SM = 89
"""The first compute capability with fp8 matrix units, that of Ada."""

BF16_SM = 80
"""The first compute capability with bfloat16 matrix units, that of Ampere."""


def refuse(file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu]) -> None:
    """Check every cell. Raises UserError with the line of the key that asks for what can't be."""
    if len({gpu.capability for gpu in gpus}) > 1:
        kinds = ", ".join(sorted({gpu.name for gpu in gpus}))
        raise UserError(
            f"these GPUs are of different kinds: {kinds}", fix="choose some of one kind with --gpus"
        )
    _refuse_kv_cache(file)
    refuse_gpus(file, cells, gpus)
    for cell in cells:
        _refuse_context(file, cell)
        _refuse_small_limits(file, cell)


def can_do(precision: str, kv_cache_dtype: str | None, gpus: Sequence[Gpu]) -> bool:
    """Whether these GPUs can run a precision; GPUs that aren't known can."""
    return all(gpu.sm >= _least_sm(precision, kv_cache_dtype) for gpu in gpus)


def _least_sm(precision: str, kv_cache_dtype: str | None) -> int:
    if PRECISIONS[precision].wants_fp8 or kv_cache_dtype == "fp8":
        return FP8_SM
    return BF16_SM if PRECISIONS[precision].dtype == "bfloat16" else 0


def refuse_without_hf(file: DeploymentFile, backend: str) -> None:
    """Raises UserError: what makes no Hugging Face checkpoint, which this backend loads."""
    if file.deployment.checkpoint_with == "scripts":
        raise file.error(
            ("checkpoint_with",),
            f"the scripts make checkpoints for trtllm-build, which {backend} doesn't load",
            "write 'checkpoint_with: modelopt'",
        )
    for precision in file.deployment.precisions:
        if not PRECISIONS[precision].as_hf:
            able = ", ".join(name for name, each in PRECISIONS.items() if each.as_hf)
            raise file.error(
                ("precisions",), f"{backend} can't load {precision}", f"choose from {able}"
            )


def refuse_gpus(file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu]) -> None:
    """Raises UserError for fp8, an fp8 KV cache, or bf16 on a GPU that can't."""
    for precision in {cell.precision for cell in cells}:
        kv_cache_dtype = file.deployment.kv_cache_dtype.get(precision)
        if can_do(precision, kv_cache_dtype, gpus):
            continue
        least = f"capability {_least_sm(precision, kv_cache_dtype) / 10} or more"
        gpu = min(gpus, key=lambda each: each.sm)
        raise file.error(
            ("precisions",),
            f"{precision} needs compute {least}, {gpu.name} has {gpu.capability}",
            "remove it, or write 'fallback: fp16'",
        )


def _refuse_kv_cache(file: DeploymentFile) -> None:
    spec = file.deployment
    release, reuse = load_release(spec.release), spec.triton.enable_kv_cache_reuse
    if not (release.defaults.get("enable_kv_cache_reuse") if reuse is None else reuse):
        return
    if "int8_kv_cache_reuse" in release.cannot:
        for precision in spec.precisions:
            if spec.kv_cache_dtype.get(precision) == "int8":
                raise file.error(
                    ("kv_cache_dtype", precision),
                    f"TensorRT-LLM {spec.release} can't reuse an int8 KV cache",
                    "remove it, or write 'enable_kv_cache_reuse: false'",
                )


def _refuse_context(file: DeploymentFile, cell: Cell) -> None:
    triton = file.deployment.triton
    chunked = bool(triton.enable_chunked_context)
    for wish in ("enable_kv_cache_reuse", "enable_chunked_context"):
        if getattr(triton, wish) and file.flag(cell, "use_paged_context_fmha") != "enable":
            given = "use_paged_context_fmha" in file.given_flags(cell)
            by = "in this file" if given else f"by default in {file.deployment.release}"
            raise file.error(
                ("triton", wish),
                f"needs use_paged_context_fmha, which is off {by}",
                "write 'use_paged_context_fmha: enable' under 'build:'",
            )
    tokens = file.flag(cell, "max_num_tokens")
    if not chunked and tokens is not None and cell.isl > tokens:
        key = _where(file, "max_num_tokens", ("matrix", "isl_osl"))
        raise file.error(
            key,
            f"a prompt of {cell.isl} tokens doesn't fit a step of max_num_tokens {tokens}",
            f"write max_num_tokens: {cell.isl}, or enable_chunked_context: true under 'triton:'",
        )


def _refuse_small_limits(file: DeploymentFile, cell: Cell) -> None:
    needed = {
        "max_batch_size": cell.max_batch_size,
        "max_input_len": cell.isl,
        "max_seq_len": cell.isl + cell.osl,
    }
    for name, least in needed.items():
        value = file.flag(cell, name)
        if value is not None and value < least:
            raise file.error(
                _where(file, name, ("build",)),
                f"{value} is less than the {least} of {cell.name}",
                "remove it: the cell says it",
            )


def _where(file: DeploymentFile, flag: str, otherwise: KeyPath) -> KeyPath:
    """The key that decides a flag: in ``build:``, in the matrix, or another one."""
    spec = file.deployment
    if flag in spec.build:
        return ("build", flag)
    return ("matrix", flag) if flag in (spec.matrix.model_extra or {}) else otherwise

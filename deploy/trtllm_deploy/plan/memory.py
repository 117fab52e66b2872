"""How much of a GPU a cell needs: weights, KV cache, and who fits beside whom.

Pure: a model's shape, a cell, the release's flags and the size of a GPU go in, a verdict comes
out. Knows nothing of GPUs that are there. An estimate: weights and KV cache are exact for the
models in :mod:`trtllm_deploy.plan.shape`, activations are bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from llm_perf.errors import UserError
from trtllm_deploy.plan.shape import ModelShape
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.overrides import overridden
from trtllm_deploy.spec.precision import PRECISIONS

# Bytes of one weight of a layer's matrices. Embedding, output matrix, norms and biases keep 2.
# AWQ: 4 bits and a 2-byte scale per 128 weights; NVFP4: 4 bits and a 1-byte scale per 16.
WEIGHT_BYTES: Mapping[str | None, float] = {
    None: 2,
    "FP8": 1,
    "FP8_PER_CHANNEL_PER_TOKEN": 1,
    "W8A16": 1,
    "W8A8_SQ_PER_CHANNEL": 1,
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": 1,
    "W4A16": 0.5,
    "W4A16_AWQ": 0.5 + 2 / 128,
    "W4A8_AWQ": 0.5 + 2 / 128,
    "NVFP4": 0.5 + 1 / 16,
}
_FULL_BYTES = 2  # float16, bfloat16
KV_FRACTION = 0.9  # TensorRT-LLM's default of kv_cache_free_gpu_mem_fraction
_CONTEXT_BYTES = 2**30  # CUDA context, cuBLAS and NCCL workspaces: about 1 GiB, an estimate
_SIZE = TypeAdapter(Annotated[ByteSize, Field(ge=0)])


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One cell on one GPU; sizes in bytes, ``tokens`` and ``sequences`` None without a GPU size.

    ``tokens`` of KV cache fit, so ``sequences`` of ISL + OSL tokens run at once.
    """

    cell: Cell
    weights: int
    kv_per_token: float
    activations: int
    tokens: int | None = None
    sequences: int | None = None

    @property
    def verdict(self) -> str:
        """``fits``, ``batch can't fill`` (KV cache for fewer than max_batch_size), ..."""
        if self.sequences is None:
            return "unknown GPU"
        if self.sequences < 1:
            return "doesn't fit"
        return "fits" if self.sequences >= self.cell.max_batch_size else "batch can't fill"


def weight_bytes(shape: ModelShape, quant_algo: str | None, tp: int, pp: int) -> int:
    """Bytes of weights on the fullest GPU.

    Source: TensorRT-LLM's layout. tp splits every matrix of a layer and the output matrix, repeats
    key-value heads when there are fewer than tp, and repeats the embedding, which lies on the
    first of pp stages; the output matrix lies on the last (also when it is the embedding).
    """
    of_matrix = WEIGHT_BYTES[quant_algo]
    kv_heads = max(shape.kv_heads, tp)
    layer = shape.matrices(kv_heads) / tp * of_matrix + shape.vectors() * _FULL_BYTES
    first = shape.vocab * shape.hidden * _FULL_BYTES
    last = first / tp + shape.hidden * _FULL_BYTES
    ends = first + last if pp == 1 else max(first, last)
    return round(shape.layers / pp * layer + ends)


def kv_bytes_per_token(shape: ModelShape, tp: int, pp: int, kv_cache_dtype: str | None) -> float:
    """Bytes of KV cache for one token on one GPU: 2 x layers x KV heads x head size x bytes.

    Source: TensorRT-LLM, "GPT attention", KV cache; 1 byte for fp8 and int8.
    """
    size = 1 if kv_cache_dtype else _FULL_BYTES
    return 2 * shape.layers / pp * max(shape.kv_heads, tp) / tp * shape.head_size * size


def activation_bytes(shape: ModelShape, tp: int, max_num_tokens: int, batch: int) -> int:
    """A bound of what one step needs beside weights and KV cache, on one GPU.

    Of every token of a step: residual, normed and attention states (3 x hidden) and both halves
    of the gated MLP; of every request its float32 logits. Plus a constant for CUDA's own.
    """
    states = max_num_tokens * (3 * shape.hidden + 2 * shape.intermediate / tp) * _FULL_BYTES
    return round(states + batch * shape.vocab * 4 + _CONTEXT_BYTES)


def plan_memory(
    file: DeploymentFile, cell: Cell, shape: ModelShape, gpu_memory: int | None
) -> MemoryPlan:
    """The memory of one cell; ``gpu_memory`` in bytes."""
    triton = overridden(file, dict(cell.triton)).deployment.triton
    batch = cell.max_batch_size
    weights = weight_bytes(shape, PRECISIONS[cell.precision].quant_algo, cell.tp, cell.pp)
    kv_dtype = file.deployment.kv_cache_dtype.get(cell.precision)
    per_token = kv_bytes_per_token(shape, cell.tp, cell.pp, kv_dtype)
    activations = activation_bytes(shape, cell.tp, file.step_tokens(cell) or 0, batch)
    if gpu_memory is None:
        return MemoryPlan(cell, weights, per_token, activations)
    fraction = triton.kv_cache_free_gpu_mem_fraction or KV_FRACTION
    free = max(0, gpu_memory - weights - activations) * fraction
    block = int(file.flag(cell, "tokens_per_block") or 1)
    blocks = int(free / per_token) // block
    if triton.max_tokens_in_paged_kv_cache:
        blocks = min(blocks, triton.max_tokens_in_paged_kv_cache // block)
    sequences = blocks // -(-(cell.isl + cell.osl) // block)
    return MemoryPlan(cell, weights, per_token, activations, blocks * block, sequences)


def parse_size(text: str) -> int:
    """Bytes of ``80GiB``, ``80 GB`` or a plain number.

    Raises UserError: no number, or a unit that isn't one.
    """
    try:
        return int(_SIZE.validate_python(text))
    except ValidationError:
        raise UserError(f"{text!r} is no size", fix="write it as 80GiB or 80GB") from None


def memory_plans(
    file: DeploymentFile,
    cells: Iterable[Cell],
    shapes: Mapping[str, ModelShape],
    gpu_memory: int | None,
) -> dict[str, MemoryPlan]:
    """The memory of every cell whose model's shape is known, by cell name."""
    return {
        cell.name: plan_memory(file, cell, shapes[cell.model], gpu_memory)
        for cell in cells
        if cell.model in shapes
    }

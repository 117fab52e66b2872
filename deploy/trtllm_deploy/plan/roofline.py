"""How fast a GPU could serve a model at best: bytes over bandwidth, operations over math rate.

Pure: a model's shape, a precision, tp, pp and a GPU of gpus.yaml go in, expected times come out.
It orders cells and probes, and stands beside what was measured; it is never a result. Left out:
what ranks send one another, kernel launches, the scheduler, sampling and the server itself.
Source: Williams et al. 2009, doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.plan.memory import WEIGHT_BYTES, MemoryPlan, kv_bytes_per_token
from trtllm_deploy.plan.shape import ModelShape
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.precision import PRECISIONS

# The kind of operand that a layer's products multiply; weights alone in fewer bits are widened.
_MATH: Mapping[str | None, str] = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "W4A8_AWQ": "fp8",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": "int8",
    "NVFP4": "fp4",
}
_FULL, _FULL_BYTES = "16bit", 2


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A kind of GPU: bytes of memory, bytes/s and dense operations/s that a program can get."""

    name: str
    memory: int
    bandwidth: float
    math: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A closed loop at best: seconds and tokens/s, of all GPUs of the cell together.

    ``step_s`` is one token of every request that runs, ``prefill_s`` one prompt alone. ``itl_s``
    has the prompts of the others in it, that are read between the tokens of an answer.
    """

    in_flight: int
    running: int
    prefill_s: float
    step_s: float
    ttft_s: float
    itl_s: float
    tokens_per_s: float
    requests_per_s: float

    def metrics(self) -> dict[str, float]:
        """By the keys and in the units of llm_perf's metrics, for a ledger's ``prediction``."""
        return {
            "time_to_first_token": self.ttft_s * 1e3,
            "inter_token_latency": self.itl_s * 1e3,
            "output_token_throughput_per_user": 1 / self.itl_s,
            "output_token_throughput": self.tokens_per_s,
            "request_throughput": self.requests_per_s,
        }


@dataclass(frozen=True, slots=True)
class Roofline:
    """One model at one precision on tp x pp GPUs of a kind."""

    shape: ModelShape
    gpu: GpuModel
    quant_algo: str | None = None
    tp: int = 1
    pp: int = 1
    kv_cache_dtype: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError: the GPU has no units for products of this precision."""
        if _MATH.get(self.quant_algo, _FULL) not in self.gpu.math:
            raise UserError(f"{self.gpu.name} doesn't multiply {self.quant_algo}")

    def step_s(self, requests: float, context: float) -> float:
        """Seconds of one token for ``requests`` that have ``context`` tokens each.

        Every weight is read once, and every request's keys and values. pp stages follow one
        another, each with 1/pp of the requests, one at least.
        """
        part = max(1.0, requests / self.pp)
        kv = kv_bytes_per_token(self.shape, self.tp, self.pp, self.kv_cache_dtype)
        cache = self.pp * part * context * kv / self.gpu.bandwidth
        return self._products_s(part, part) + cache

    def prefill_s(self, isl: float) -> float:
        """Seconds of one prompt of ``isl`` tokens, with nothing else on the GPUs.

        Attention on top of the products: two of isl x isl x width, of which a causal mask leaves
        half.
        """
        width = self.shape.heads * self.shape.head_size
        attention = self.shape.layers * 2 * isl**2 * width / self.tp / self.gpu.math[_FULL]
        return self._products_s(isl, 1) + attention

    def at(self, in_flight: int, isl: float, osl: float, most: int | None = None) -> Prediction:
        """``in_flight`` requests kept up, of which ``most`` can run at once and the rest wait.

        While one answer is written, osl - 1 steps, each of the others' prompts is read once, pp at
        a time; so one turn takes (osl - 1) x step + running / pp x prefill. TTFT by Little's law.
        """
        running = min(in_flight, most or in_flight)
        prefill = self.prefill_s(isl)
        step = self.step_s(running, isl + osl / 2)
        turn = (osl - 1) * step + max(1.0, running / self.pp) * prefill
        itl = (turn - prefill) / (osl - 1) if osl > 1 else step
        return Prediction(
            in_flight,
            running,
            prefill,
            step,
            prefill + turn * (in_flight / running - 1),
            itl,
            running * osl / turn,
            running / turn,
        )

    def _products_s(self, tokens: float, outputs: float) -> float:
        """Of all layers for ``tokens``, and of the output matrix for ``outputs`` of them."""
        shape, math = self.shape, self.gpu.math
        matrices = shape.layers * shape.matrices(max(shape.kv_heads, self.tp)) / self.tp
        read = matrices * WEIGHT_BYTES[self.quant_algo] / self.gpu.bandwidth
        done = 2 * matrices * tokens / math[_MATH.get(self.quant_algo, _FULL)]
        head = shape.vocab * shape.hidden / self.tp
        head_read = head * _FULL_BYTES / self.gpu.bandwidth
        return max(read, done) + max(head_read, 2 * head * outputs / math[_FULL])


def _gpu(name: str, fields: Mapping[str, Any], share: Mapping[str, float]) -> GpuModel:
    math = {kind: rate * 1e12 * share["math"] for kind, rate in fields["math"].items()}
    bandwidth = fields["bandwidth"] * 1e9 * share["bandwidth"]
    return GpuModel(name, fields["memory"] * 10**9, bandwidth, math)


def _read() -> tuple[dict[str, GpuModel], dict[str, GpuModel]]:
    """By our name, and by nvidia-smi's."""
    data = load_data("plan/gpus.yaml")
    named: dict[str, GpuModel] = {}
    listed: dict[str, GpuModel] = {}
    for name, fields in data["gpus"].items():
        named[name] = _gpu(fields["listed"][0], fields, data["attainable"])
        listed |= {each: _gpu(each, fields, data["attainable"]) for each in fields["listed"]}
    return named, listed


NAMED, LISTED = _read()


def find_gpu(name: str) -> GpuModel:
    """The kind of GPU that gpus.yaml or nvidia-smi calls so. Raises UserError: it isn't known."""
    found = NAMED.get(name.lower()) or LISTED.get(name)
    if found is None:
        raise UserError(f"no figures are known of GPU {name!r}", fix=f"known: {', '.join(NAMED)}")
    return found


def cell_roofline(
    file: DeploymentFile, cell: Cell, shape: ModelShape, gpu: GpuModel
) -> Roofline | None:
    """That of a cell; None where the GPU can't do its products."""
    kv = file.deployment.kv_cache_dtype.get(cell.precision)
    algo = PRECISIONS[cell.precision].quant_algo
    if _MATH.get(algo, _FULL) not in gpu.math:
        return None
    return Roofline(shape, gpu, algo, cell.tp, cell.pp, kv)


def predict(
    file: DeploymentFile,
    cell: Cell,
    shape: ModelShape,
    gpu: GpuModel,
    in_flight: int,
    memory: MemoryPlan | None = None,
) -> Prediction | None:
    """A cell under ``in_flight`` requests of its ISL and OSL; None as :func:`cell_roofline`.

    At most max_batch_size run at once, and no more than the KV cache of ``memory`` holds.
    """
    roof = cell_roofline(file, cell, shape, gpu)
    fits = memory.sequences if memory is not None else None
    most = cell.max_batch_size if fits is None else min(cell.max_batch_size, fits)
    if roof is None or most < 1:
        return None
    return roof.at(in_flight, cell.isl, cell.osl, most)

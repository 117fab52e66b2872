"""Studies made up, with figures that one knows: cells that answer slower the more is in flight."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_perf import api
from llm_perf.ledger.measurement import Planned, Target
from llm_perf.load.load import Concurrency
from llm_perf.record import Record, Status
from tests.client.runs import make_run

MS = 1_000_000
CELLS = {  # name: (precision, ms a token alone, score)
    "qwen2-fp16-b64": ("fp16", 9.0, 0.90),
    "qwen2-fp8-b64": ("fp8", 7.0, 0.88),
    "qwen2-int4_awq-b64": ("int4_awq", 6.0, 0.72),
}


OVER_TIME = {
    "at_ns": [(1000 + each) * MS for each in range(0, 6000, 500)],
    "series": [
        {
            "name": "nv_trt_llm_kv_cache_block_metrics",
            "labels": {"kv_cache_block_type": kind},
            "kind": "gauge",
            "values": [float(each * more % 97) for each in range(12)],
        }
        for kind, more in (("used", 13), ("free", 29))
    ]
    + [
        {
            "name": "nv_energy_consumption",
            "labels": {"gpu_uuid": "GPU-1"},
            "kind": "counter",
            "values": [0.5, 0.9] * 6,
        }
    ],
}


def records(
    n: int, in_flight: int, token_ms: float, score: float = 0.9, seed: int = 0, hostile: str = ""
) -> list[Record]:
    """A closed loop: ``in_flight`` slots, each asks again when its answer has ended."""
    random = np.random.default_rng(seed)
    free = [0.0] * in_flight
    pace = token_ms * (1 + in_flight / 40)
    made = []
    for index in range(n):
        slot = int(np.argmin(free))
        sent = free[slot] + 0.2
        ttft = 20 + 0.3 * token_ms * in_flight * float(random.lognormal(0, 0.5))
        tokens = int(random.integers(16, 48))
        times = sent + ttft + np.arange(tokens) * pace * float(random.lognormal(0, 0.06))
        free[slot] = float(times[-1])
        right = float(random.random()) < score
        broken = bool(hostile) and index == 0
        at = tuple(int((1000 + each) * MS) for each in times)
        made.append(
            Record(
                prompt=api.Prompt(index, f"prompt {index}", 64, 64, reference="yes"),
                request_id=f"r{index}",
                status=Status.ERROR if broken else Status.OK,
                error=hostile if broken else None,
                scheduled_ns=int((1000 + sent) * MS),
                sent_ns=int((1000 + sent) * MS),
                end_ns=at[-1],
                chunk_ns=() if broken else at,
                answer="yes" if right else "no",
                server_tokens=tokens,
                tokenizer_tokens=tokens,
                queue_ns=int(ttft * 0.4 * MS),
                prefill_ns=int(ttft * 0.5 * MS),
                first_text_ns=at[0],
            )
        )
    return made


def study(
    folder: Path, n: int = 240, loads: tuple[int, ...] = (1, 4, 16, 64), hostile: str = ""
) -> Path:
    """A ledger of three cells under these loads; ``hostile`` stands in each text of others."""
    for at, (name, (precision, token_ms, score)) in enumerate(CELLS.items()):
        cell = {"precision": f"{precision}{hostile}", "max_batch_size": 64, "isl": 64, "osl": 48}
        target = Target(
            f"{name}{hostile}",
            *("localhost:8001", "grpc", f"ensemble{hostile}"),
            gpus=1,
            server="triton",
            cell=cell,
            artifacts={"engine": f"{at:064x}"},
        )
        for in_flight in loads:
            load = Concurrency(in_flight)
            made = records(n, in_flight, token_ms, score, in_flight + at, hostile)
            counts = {"total": 1000, "at_max_batch_size": 6 * in_flight, "at_kv_cache": in_flight}
            counters = [
                {
                    "name": "nv_trt_llm_iteration_metrics",
                    "labels": {"iteration_specific_metric": key},
                    **({"min": 7, "max": 7 + value, "avg": 8} if at else {"increase": value}),
                }
                for key, value in counts.items()
            ]
            kind = "gauges" if at else "counters"  # Triton shows TensorRT-LLM's counts as gauges
            seen = {kind: counters, "over_time": OVER_TIME}
            run = make_run(made, load, server_metrics=seen, remarks=(hostile,) if hostile else ())
            path = folder / name / f"{load.name}.json"
            api.write_run(run, path)
            expected = {
                "inter_token_latency": token_ms,
                "time_to_first_token": 20.0,
                "output_token_throughput_per_user": 1000 / token_ms,
                "output_token_throughput": 1000 / token_ms * in_flight**0.8,
            }
            planned = Planned(
                target,
                load,
                run.workload,
                study="made up",
                prediction={"source": "roofline", "metrics": expected},
            )
            beside = {"requests": f"{name}/{load.name}.jsonl"}
            api.append_measurement(folder, planned.measured(run, beside))
    return folder

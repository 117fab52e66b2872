"""Measuring from Python: what other packages may import, and the one function that measures.

run = measure(Endpoint("localhost:8001", "grpc", "ensemble"),
              load_workload("prompts.jsonl", "model/"), Concurrency(4))
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone

from client.accuracy import exact_match
from client.export import write_run
from client.load import Concurrency, Load
from client.metrics import compute_metrics
from client.record import Record, Status, read_records
from client.report import print_run
from client.run import Run
from client.runner import Progress, Watch, run_load
from client.transports import Endpoint, connect
from client.workload import Prompt, Workload, load_workload

__all__ = [
    "Concurrency",
    "Endpoint",
    "Load",
    "Options",
    "Progress",
    "Prompt",
    "Record",
    "Run",
    "Status",
    "Workload",
    "load_workload",
    "measure",
    "print_run",
    "write_run",
]


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure: seconds a request may take, and who is told of progress (twice a second)."""

    request_timeout_s: float = 300.0
    watch: Watch | None = None


def measure(
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    options: Options = Options(),
) -> Run:
    """Offer the whole workload under ``load`` and wait for every answer.

    Blocks; not to be called from a running event loop. A failed request is a record with its
    status. Raises ``UserError`` when nothing answers there, or the model is unknown or unfit.
    """
    return asyncio.run(_measure(endpoint, workload, load, options))


async def _measure(endpoint: Endpoint, workload: Workload, load: Load, options: Options) -> Run:
    transport = await connect(endpoint, streams=min(load.n, len(workload.prompts)))
    try:
        requests = []
        for prompt in workload.prompts:
            request_id = str(uuid.uuid4())
            requests.append((request_id, transport.dialect.request(prompt, request_id)))
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        exchanges = await run_load(
            transport, requests, load, options.request_timeout_s, options.watch
        )
    finally:
        await transport.close()
    records = read_records(exchanges, workload.prompts, transport.dialect.parse, workload.tokenizer)
    return Run(
        endpoint=endpoint,
        workload=workload,
        load=load,
        started_at=started_at,
        records=records,
        metrics=compute_metrics(records),
        accuracy=exact_match(records),
    )

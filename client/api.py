"""Measuring from Python: what other packages may import, and the one function that measures.

run = measure(Endpoint("localhost:8001", "grpc", "ensemble"),
              load_workload("prompts.jsonl", "model/"), Concurrency(4))
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import isinf
from pathlib import Path
from typing import Any

from client.accuracy import check_scorer, score_records
from client.export import write_run
from client.goodput import Goodput
from client.health import judge
from client.identity import identify
from client.load import ONCE, Concurrency, Extent, Load, Rate, Trace
from client.metrics import compute_metrics
from client.offer import offer
from client.progress import Progress, Watch
from client.record import Record, Status, read_records
from client.report import print_run, print_summary
from client.run import Run
from client.runner import Job
from client.schedule import plan
from client.scrape import Scraper
from client.tokens import stop_ids
from client.transports import Endpoint
from client.workers import workers_for
from client.workload import Prompt, Workload, load_workload

__all__ = [
    "Concurrency",
    "Endpoint",
    "Extent",
    "Load",
    "Options",
    "Progress",
    "Prompt",
    "Rate",
    "Record",
    "Run",
    "Status",
    "Trace",
    "Workload",
    "load_workload",
    "measure",
    "print_run",
    "print_summary",
    "write_run",
]


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    ``request_timeout_s`` is what a request may take; ``watch`` is told of progress twice a second,
    in a thread. ``max_in_flight`` bounds an open loop: what is due beyond waits, and its times from
    the schedule show it.
    ``journal`` keeps each finished request on disk; with ``resume`` only those are asked that it
    lacks. ``workers`` processes share the load, ``None`` lets the load decide (``workers_for``);
    more than one are spawned, so a script that asks for them needs its ``__main__`` guard. With
    the address of a ``ray`` cluster they run there, ``None`` being one per machine, and there is
    no journal.
    ``interruptible``: the first Ctrl-C ends the load and gives the run so far; it is called from
    the main thread then. ``defaults`` are ``end_id`` and ``pad_id`` of prompts without, in place
    of the model's own;
    ``score`` is a scorer's name (``client.accuracy``); ``goodput`` are limits to keep; what
    ``server_metrics_url`` says is looked at every so many seconds.
    """

    request_timeout_s: float = 300.0
    watch: Watch | None = None
    extent: Extent = ONCE
    max_in_flight: int = 10_000
    stop_after_failures: int | None = None
    journal: Path | None = None
    resume: bool = False
    workers: int | None = 1
    ray: str | None = None
    interruptible: bool = False
    defaults: Mapping[str, int] = field(default_factory=dict)
    score: str = "exact"
    goodput: Goodput | None = None
    server_metrics_url: str | None = None
    server_metrics_every_s: float = 1.0


def measure(
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    options: Options = Options(),
) -> Run:
    """Offer the whole workload under ``load`` and wait for every answer.

    Blocks; not to be called from a running event loop. A failed request is a record with its
    status. Raises ``UserError`` when nothing answers there, or the model is unknown or unfit, or
    the load can't be offered with this workload.
    """
    prompts = workload.prompts
    check_scorer(options.score, prompts)
    order = plan(load, options.extent, len(prompts), [prompt.at_s for prompt in prompts])
    job = Job(
        endpoint=endpoint,
        prompts=prompts,
        order=order,
        timeout_s=options.request_timeout_s,
        max_in_flight=options.max_in_flight,
        stop_after_failures=options.stop_after_failures,
        journal=options.journal,
        defaults={**stop_ids(workload.tokenizer.path), **options.defaults},
    )
    workers = options.workers
    if workers is None and options.ray is None:
        workers = workers_for(load, prompts)
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    url = options.server_metrics_url
    scraper = Scraper(url, options.server_metrics_every_s) if url else None
    with scraper or nullcontext():
        came = offer(
            job,
            head=_head(endpoint, workload, load, options.extent),
            resume=options.resume,
            workers=workers,
            ray=options.ray,
            watch=options.watch,
            interruptible=options.interruptible,
        )
    numbers = sorted(number for number in came.exchanges if number >= 0)
    records = read_records(
        [came.exchanges[number] for number in numbers],
        [prompts[number % len(prompts)] for number in numbers],
        came.dialect.parse,
        workload.tokenizer,
    )
    # a burst has no due times to be late for
    burst = isinstance(load, Rate) and isinf(load.per_s)
    metrics = compute_metrics(records, open_loop=not isinstance(load, Concurrency))
    if options.goodput:
        metrics["request_goodput"] = options.goodput.metric(records)
    return Run(
        endpoint=endpoint,
        workload=workload,
        load=load,
        started_at=started_at,
        records=records,
        metrics=metrics,
        accuracy=score_records(records, options.score),
        extent=options.extent,
        health=judge(came.samples, [] if burst else came.send_lags_ns),
        remarks=came.remarks,
        stopped=came.stopped,
        server=asyncio.run(identify(endpoint)) if any(r.ok for r in records) else {},
        server_metrics=scraper.summary() if scraper else {},
    )


def _head(endpoint: Endpoint, workload: Workload, load: Load, extent: Extent) -> dict[str, Any]:
    """What a journal must agree on to be of the same run."""
    return {
        "workload": workload.sha256,
        "load": load.to_json(),
        "extent": extent.to_json(),
        "endpoint": [endpoint.protocol, endpoint.model],
    }

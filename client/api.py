"""Measuring from Python: what other packages may import, and the one function that measures.

run = measure(Endpoint("localhost:8001", "grpc", "ensemble"),
              load_workload("prompts.jsonl", "model/"), Concurrency(4))
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from math import isinf

from client.accuracy import check_scorer, score_records
from client.export import write_run
from client.health import judge
from client.identity import identify
from client.load import DEFAULTS, Concurrency, Extent, Load, Options, Rate, Trace
from client.metrics import compute_metrics
from client.offer import offer
from client.progress import Progress
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


def measure(endpoint: Endpoint, workload: Workload, load: Load, options: Options = DEFAULTS) -> Run:
    """Offer the whole workload under ``load`` and wait for every answer.

    Blocks; not to be called from a running event loop. A failed request is a record with its
    status. Raises ``UserError`` when nothing answers there, or the model is unknown or unfit, or
    the load can't be offered with this workload.
    """
    prompts = workload.prompts
    check_scorer(options.score, prompts)
    order = plan(load, options.extent, len(prompts), [prompt.at_s for prompt in prompts])
    if options.workers is None and options.ray is None:
        options = replace(options, workers=workers_for(load, prompts))
    ids = {**stop_ids(workload.tokenizer.path), **options.defaults}
    job = Job(endpoint, prompts, order, replace(options, defaults=ids))
    head = {  # what a journal must agree on to be of the same run
        "workload": workload.sha256,
        "load": load.to_json(),
        "extent": options.extent.to_json(),
        "endpoint": [endpoint.protocol, endpoint.model],
    }
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    url = options.server_metrics_url
    scraper = Scraper(url, options.server_metrics_every_s) if url else None
    with scraper or nullcontext():
        came = offer(job, head)
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

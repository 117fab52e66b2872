"""Measuring from Python: what other packages may import, and the one function that measures.

run = measure(Endpoint("localhost:8001", "grpc", "ensemble"),
              load_workload("prompts.jsonl", "model/"), Concurrency(4))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from math import isinf

from llm_perf.errors import UserError
from llm_perf.figures.accuracy import check_scorer, score_records
from llm_perf.figures.limits import Limit, parse_limit
from llm_perf.figures.metrics import compute_metrics
from llm_perf.ledger.ledger import append_measurement, finished, read_measurements
from llm_perf.ledger.measurement import Measurement, Planned, Target
from llm_perf.ledger.paired_blocks import block_change, block_changes, drifts
from llm_perf.load.arrivals import plan
from llm_perf.load.health import judge
from llm_perf.load.load import DEFAULTS, Concurrency, Conditions, Extent, Load, Rate, Trace
from llm_perf.load.offer import Offered, offer
from llm_perf.load.progress import Progress, show_progress
from llm_perf.load.runner import Job
from llm_perf.load.workers import workers_for
from llm_perf.loop import run_loop
from llm_perf.record import Exchange, Record, Status, read_records
from llm_perf.records import Records
from llm_perf.report.page import write_report
from llm_perf.report.read import lines_of, read_results
from llm_perf.results.change import Change
from llm_perf.results.change_table import percent_interval, print_percent
from llm_perf.results.export import write_run
from llm_perf.results.rule import Verdict, verdict
from llm_perf.results.run import Run
from llm_perf.results.screen_table import print_table
from llm_perf.results.table import print_run, print_summary
from llm_perf.search.drawn import cost, print_answer
from llm_perf.search.measured import OnRun, Site, search, searched
from llm_perf.search.question import CONFIRMED, INDICATIVE, Answer, Ask, Question
from llm_perf.search.seen import Criterion, Seen
from llm_perf.server.find import find_endpoint
from llm_perf.server.identity import identify
from llm_perf.server.scrape import Scraper, find_metrics
from llm_perf.transports import Endpoint
from llm_perf.workload.datasets import read_lines
from llm_perf.workload.fresh import counted, prompt_for
from llm_perf.workload.synthetic import parse_lengths
from llm_perf.workload.tokens import stop_ids
from llm_perf.workload.workload import Prompt, Workload, load_workload, synthetic_workload

__all__ = [
    "CONFIRMED",
    "INDICATIVE",
    "Answer",
    "Ask",
    "Change",
    "Concurrency",
    "Conditions",
    "Criterion",
    "Endpoint",
    "Extent",
    "Limit",
    "Load",
    "Measurement",
    "Planned",
    "Progress",
    "Prompt",
    "Question",
    "Rate",
    "Record",
    "Run",
    "Seen",
    "Site",
    "Status",
    "Target",
    "Trace",
    "UserError",
    "Verdict",
    "Workload",
    "append_measurement",
    "block_change",
    "block_changes",
    "check_scorer",
    "cost",
    "drifts",
    "find_endpoint",
    "find_metrics",
    "finished",
    "lines_of",
    "load_workload",
    "measure",
    "parse_lengths",
    "parse_limit",
    "percent_interval",
    "print_answer",
    "print_percent",
    "print_run",
    "print_summary",
    "print_table",
    "read_lines",
    "read_measurements",
    "read_results",
    "search_limits",
    "searched",
    "show_progress",
    "stop_ids",
    "synthetic_workload",
    "verdict",
    "write_report",
    "write_run",
]


def measure(
    endpoint: Endpoint, workload: Workload, load: Load, conditions: Conditions = DEFAULTS
) -> Run:
    """Offer the whole workload under ``load`` and wait for every answer.

    Blocks; not to be called from a running event loop. A failed request is a record with its
    status. Raises ``UserError`` when nothing answers there, or the model is unknown or unfit, or
    the load can't be offered with this workload.
    """
    prompts = workload.prompts
    check_scorer(conditions.score, prompts)
    order = plan(load, conditions.extent, len(prompts), [prompt.at_s for prompt in prompts])
    if conditions.workers is None and conditions.ray is None:
        conditions = replace(conditions, workers=workers_for(load, prompts))
    known = stop_ids(workload.tokenizer.path) if workload.tokenizer else {}
    ids = {**known, **conditions.defaults}
    job = Job(endpoint, prompts, order, replace(conditions, defaults=ids))
    head = {  # what a journal must agree on to be of the same run
        "workload": workload.sha256,
        "load": load.to_json(),
        "extent": conditions.extent.to_json(),
        "endpoint": [endpoint.protocol, endpoint.model],
        "url": endpoint.url,
        "unique_prefix": conditions.unique_prefix or None,
        "server": (server := run_loop(identify(endpoint))),
    }
    started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    url = conditions.server_metrics_url
    scraper = Scraper(url, conditions.server_metrics_every_s) if url else None
    with scraper or nullcontext():
        came = offer(job, head)
    asked = _asked(workload, came, unique=conditions.unique_prefix)
    read = read_records(asked, came.dialect.parse, workload.tokenizer)
    journal = conditions.journal
    records = Records(read, prompts, journal.parent if journal else None)
    # a burst has no due times to be late for
    burst = isinstance(load, Rate) and isinf(load.per_s)
    closed = load.n if isinstance(load, Concurrency) else None
    metrics = compute_metrics(records, open_loop=closed is None, concurrency=closed)
    if conditions.goodput:
        metrics["request_goodput"] = conditions.goodput.metric(records)
    return Run(
        endpoint=endpoint,
        workload=workload,
        load=load,
        started_at=started_at,
        records=records,
        metrics=metrics,
        accuracy=score_records(records, conditions.score),
        extent=conditions.extent,
        health=judge(came.samples, [] if burst else came.send_lags_ns),
        remarks=(
            *_remarks(load, came, conditions),
            *came.remarks,
            *came.dialect.remarks,
            *workload.remarks,
            *_glued(endpoint, workload),
        ),
        max_in_flight_seen=came.kept.most_in_flight,
        unique_prefix=conditions.unique_prefix,
        stopped=came.stopped,
        server=server,
        server_metrics=scraper.summary() if scraper else {},
    )


def search_limits(question: Question, site: Site, on_run: OnRun | None = None) -> Answer:
    """Find the highest load within limits, by many measurements that the site's ledger keeps.

    Blocks, for as long as ``question.budget_s`` at most. Called again with the same, it goes on
    where it was. Raises as ``measure``, and ``UserError`` when the server is gone in the middle.
    """
    return search(question, site, measure, on_run)


def _glued(endpoint: Endpoint, workload: Workload) -> Iterator[str]:
    """Say where chats went out as one text that the model's template has not written."""
    chats = sum(len(prompt.messages or ()) > 1 for prompt in workload.prompts)
    if chats and not workload.rendered and endpoint.chosen != "chat":
        yield (
            f"{chats} chats were sent as one text, their turns joined by newlines without roles: "
            "--chat-template renders them as the model knows them"
        )


def _asked(workload: Workload, came: Offered, *, unique: bool) -> Iterator[tuple[Prompt, Exchange]]:
    """Put what was asked beside what was seen; tags cost tokens, which count."""
    for number, seen in came.kept:
        prompt = prompt_for(workload.prompts, number, seen.request_id if unique else None)
        yield counted(prompt, workload.tokenizer) if unique else prompt, seen


def _remarks(load: Load, came: Offered, conditions: Conditions) -> Iterator[str]:
    """Say what isn't as the flags and the data have it: a closed loop with too few, tags."""
    if conditions.unique_prefix:
        yield "each prompt begins with a tag of its own, which ISL counts (--unique-prefix)"
    most = came.kept.most_in_flight
    if isinstance(load, Concurrency) and len(came.kept) < load.n and came.stopped is None:
        yield (
            f"concurrency {load.n} was not reached: at most {most} requests were in flight, of "
            f"{len(came.kept)} in all; repeat the data with --num-requests, --repeat or --duration"
        )

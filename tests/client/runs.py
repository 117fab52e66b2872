"""Runs made by hand, for what is written and printed of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_perf.figures.accuracy import score_records
from llm_perf.figures.metrics import compute_metrics
from llm_perf.load.load import Concurrency, Load
from llm_perf.record import Record, Status
from llm_perf.results.run import Run
from llm_perf.transports import Endpoint
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import Prompt, Workload

MS = 1_000_000
FOUR = Concurrency(4)
TOKENIZER = Path(__file__).parents[2] / "examples/number-words/model"


def asked(
    index: int = 0,
    answer: str = "one two",
    chunks_ms: Sequence[int] = (150, 160, 190),
    tokens: int | None = 5,
    status: Status = Status.OK,
    sent_ms: int = 100,
    tokenizer_tokens: int = 5,
    **prompt: Any,
) -> Record:
    """One request, as it ended; what else is given is the prompt's."""
    known = {"text": f"prompt {index}", "input_tokens": 3, "max_tokens": 64}
    return Record(
        prompt=Prompt(index, **{**known, **prompt}),
        request_id=f"r{index}",
        status=status,
        error=None if status is Status.OK else "out of pages",
        scheduled_ns=(sent_ms - 20) * MS,
        sent_ns=sent_ms * MS,
        end_ns=max([sent_ms, *chunks_ms]) * MS,
        chunk_ns=tuple(at * MS for at in chunks_ms),
        answer=answer,
        server_tokens=tokens,
        tokenizer_tokens=tokenizer_tokens,
        first_text_ns=chunks_ms[0] * MS if chunks_ms and answer else None,
    )


def make_run(
    records: Sequence[Record], load: Load = FOUR, scorer: str = "exact", **more: Any
) -> Run:
    """The run of these records."""
    closed = load.n if isinstance(load, Concurrency) else None
    prompts = tuple(record.prompt for record in records)
    sha256 = hashlib.sha256(repr(prompts).encode()).hexdigest()
    return Run(
        endpoint=Endpoint("localhost:8001", "grpc", "ensemble"),
        workload=Workload("prompts.jsonl", prompts, sha256, load_tokenizer(TOKENIZER), 7),
        load=load,
        started_at="2026-01-02T03:04:05+00:00",
        records=tuple(records),
        metrics=compute_metrics(records, open_loop=closed is None, concurrency=closed),
        accuracy=score_records(records, scorer),
        **more,
    )

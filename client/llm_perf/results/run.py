"""A run: one workload under one load at one endpoint, as a value with its figures."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llm_perf.figures.accuracy import Score
from llm_perf.figures.delivery import delivery_notes
from llm_perf.figures.metrics import Metric
from llm_perf.figures.notes import TokenCounts, answer_notes, count_tokens, failure_notes
from llm_perf.load.health import Health
from llm_perf.load.load import ONCE, Concurrency, Extent, Load, Rate, Trace
from llm_perf.record import Record
from llm_perf.transports import Endpoint
from llm_perf.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured. ``metrics`` has genai-perf's keys; ``started_at`` is ISO 8601, UTC.

    ``server`` is what the server says of itself, ``server_metrics`` what was scraped from it.
    """

    endpoint: Endpoint
    workload: Workload
    load: Load
    started_at: str
    records: Sequence[Record]
    metrics: dict[str, Metric]
    accuracy: Score | None
    extent: Extent = ONCE
    health: Health | None = None
    remarks: tuple[str, ...] = ()  # what the runner has to say: cut short, resumed, held back
    max_in_flight_seen: int | None = None
    unique_prefix: bool = False  # each prompt began with a tag of its own
    stopped: str | None = None  # why it ended before its time, if it did
    server: Mapping[str, Any] = field(default_factory=dict)
    server_metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> tuple[str, ...]:
        """What the server answered, in the workload's order; of failed requests what came."""
        return tuple(record.answer for record in self.records)

    @property
    def title(self) -> str:
        """The load as it was: a closed loop that never had its number in flight says how many."""
        return load_title(self.load.to_json(), self.max_in_flight_seen)

    @property
    def score(self) -> float | None:
        """The mean score, 0 to 1; ``None`` without references."""
        return self.accuracy.value if self.accuracy else None

    @property
    def requests_ok(self) -> int:
        """How many requests were answered to their end."""
        return sum(record.ok for record in self.records)

    @property
    def requests_failed(self) -> int:
        """How many were not."""
        return len(self.records) - self.requests_ok

    @property
    def token_counts(self) -> TokenCounts:
        """Output tokens as the server and the tokenizer count them."""
        return count_tokens(self.records)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know, a sentence each."""
        found = (failure_notes, answer_notes, delivery_notes)
        return (*self.remarks, *(note for notes in found for note in notes(self.records)))

    def to_json(self) -> dict[str, Any]:
        """Give everything but the records: genai-perf's metric keys and what was measured how."""
        return {
            **self.metrics,
            "requests_ok": self.requests_ok,
            "requests_failed": self.requests_failed,
            "score": self.accuracy and self.accuracy.to_json(),
            "token_counts": asdict(self.token_counts),
            "notes": self.notes,
            **self.description(),
        }

    def description(self) -> dict[str, Any]:
        """Say what was measured with what: it stands in every export."""
        return {
            "endpoint": {
                name: getattr(self.endpoint, name) for name in ("url", "protocol", "model")
            },
            "load": {**self.load.to_json(), **self.extent.to_json()},
            "max_in_flight_seen": self.max_in_flight_seen,
            "health": self.health and self.health.to_json(),
            "stopped": self.stopped,
            "workload": {
                "source": self.workload.source,
                "sha256": self.workload.sha256,
                "prompts": len(self.workload.prompts),
                "tokenizer": self.workload.tokenizer and str(self.workload.tokenizer.path),
                "seed": self.workload.seed,
                "unique_prefix": self.unique_prefix,
            },
            "server": dict(self.server),
            "server_metrics": dict(self.server_metrics),
            "started_at": self.started_at,
            "client": {
                "llm_perf": installed_version(),
                "python": platform.python_version(),
                "host": platform.platform(),
                "clock": "time.perf_counter_ns",
            },
        }


def installed_version() -> str:
    """Which release this is, or that it is none."""
    try:
        return version("trtllm-deploy")
    except PackageNotFoundError:  # a checkout, or its metadata went while the load ran
        return "not installed"


def load_title(load: Mapping[str, Any], most: int | None = None) -> str:
    """A load for the eye, as it stands in exports, of which ``most`` were seen in flight."""
    kind, value = load["kind"], load["value"]
    if kind == "concurrency":
        title = Concurrency(value).title
        return title if most is None or most >= value else f"{title} (at most {most} in flight)"
    return Rate(value or math.inf).title if kind == "request_rate" else Trace.title

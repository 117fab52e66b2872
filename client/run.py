"""A run: one workload under one load at one endpoint, as a value with its figures."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from client.accuracy import Score
from client.load import Load
from client.metrics import Metric
from client.record import Record, Status
from client.transports import Endpoint
from client.workload import Workload


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured. ``metrics`` has genai-perf's keys; ``started_at`` is ISO 8601, UTC."""

    endpoint: Endpoint
    workload: Workload
    load: Load
    started_at: str
    records: tuple[Record, ...]
    metrics: dict[str, Metric]
    accuracy: Score | None

    @property
    def answers(self) -> tuple[str, ...]:
        """What the server answered, in the workload's order; of failed requests what came."""
        return tuple(record.answer for record in self.records)

    @property
    def score(self) -> float | None:
        """The share of answers that equal their reference; ``None`` without references."""
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
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know, a sentence each."""
        return tuple(note for note in (*self._failure_notes(), *self._answer_notes()) if note)

    def to_json(self) -> dict[str, Any]:
        """Give everything but the records: genai-perf's metric keys and what was measured how."""
        score = self.accuracy
        return {
            **self.metrics,
            "requests_ok": self.requests_ok,
            "requests_failed": self.requests_failed,
            "exact_match": score
            and {
                "value": score.value,
                "correct": score.correct,
                "n": score.n,
                "by_category": {
                    name: {"correct": correct, "n": n}
                    for name, (correct, n) in score.by_category.items()
                },
            },
            "token_counts": self._token_counts(),
            "notes": self.notes,
            "endpoint": {
                "url": self.endpoint.url,
                "protocol": self.endpoint.protocol,
                "model": self.endpoint.model,
            },
            "load": {"kind": "concurrency", "value": self.load.n},
            "workload": {
                "path": str(self.workload.path),
                "sha256": self.workload.sha256,
                "prompts": len(self.workload.prompts),
                "tokenizer": str(self.workload.tokenizer.path),
            },
            "started_at": self.started_at,
            "client": {"llm_perf": version("trtllm-deploy"), "python": platform.python_version()},
        }

    def _token_counts(self) -> dict[str, int | str]:
        """Output tokens of the answered requests, counted both ways, and who disagrees."""
        answered = [record for record in self.records if record.ok]
        counted = [record for record in answered if record.server_tokens is not None]
        return {
            "source": "server" if counted else "tokenizer",
            "server": sum(record.server_tokens or 0 for record in counted),
            "tokenizer": sum(record.tokenizer_tokens for record in answered),
            "mismatches": sum(r.server_tokens != r.tokenizer_tokens for r in counted),
        }

    def _failure_notes(self) -> list[str]:
        failed = [record for record in self.records if not record.ok]
        if not failed:
            return []
        kinds = Counter(record.status for record in failed)
        told = ", ".join(f"{kinds[status]} {status.value}" for status in Status if kinds[status])
        return [f"failed requests: {told}; the first: {failed[0].error}"]

    def _answer_notes(self) -> list[str]:
        answered = [record for record in self.records if record.ok]
        counts = self._token_counts()
        n = len(answered)
        limited = sum(record.output_tokens >= record.prompt.max_tokens for record in answered)
        broken = sum("\ufffd" in record.answer for record in answered)
        echoes = bool(answered) and all(r.answer.startswith(r.prompt.text) for r in answered)
        facts = (
            (n and counts["source"] == "tokenizer", "output tokens counted by the tokenizer"),
            (
                counts["mismatches"],
                f"server and tokenizer count {counts['mismatches']} of {n} answers differently "
                f"({counts['server']} and {counts['tokenizer']} tokens in all)",
            ),
            (limited, f"{limited} of {n} answers reached max_tokens"),
            (broken, f"{broken} of {n} answers hold U+FFFD: characters were cut between responses"),
            (echoes, "all answers begin with their prompt: the server echoes its input"),
        )
        return [note for true, note in facts if true]

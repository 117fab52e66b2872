"""A measurement as it stands in a ledger: who was measured how, what came of it, and its identity.

``Planned`` is a measurement before it is made. Its ``id`` tells a study that goes on what is there
already; ``measured`` and ``failed`` make the line of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias, TypedDict

from llm_perf.figures.metrics import Metric, window_ns
from llm_perf.figures.notes import failure_notes
from llm_perf.load.load import ONCE, Concurrency, Extent, Load
from llm_perf.results.run import Run
from llm_perf.screen import plain
from llm_perf.transports import Endpoint
from llm_perf.workload.workload import Workload

SCHEMA = 1
Kind: TypeAlias = Literal["load", "probe", "block", "bench"]
Outcome: TypeAlias = Literal["ok", "failed", "stopped"]


class Measurement(TypedDict):
    """One line of a ledger; docs/ledger.md says what each field means, in which unit."""

    schema: int
    id: str
    study: str
    kind: Kind
    started_at: str
    duration_s: float | None
    status: Outcome
    error: str | None
    target: dict[str, Any]
    load: dict[str, Any]
    seed: int
    repetition: int
    workload: dict[str, Any]
    metrics: dict[str, Metric]
    score: dict[str, Any] | None
    requests_ok: int
    requests_failed: int
    max_in_flight_seen: int | None
    notes: list[str]
    client: dict[str, Any] | None
    server: dict[str, Any]
    server_metrics: dict[str, Any] | None
    gpu: Mapping[str, Any] | None
    versions: dict[str, Any]
    files: dict[str, str]
    search: Mapping[str, Any] | None
    prediction: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Target:
    """Who is measured: a cell that a study serves, or a server that was there.

    ``cell`` are its build and serving settings, ``artifacts`` the content keys of what it serves;
    both None for a server that is known by its ``url`` alone. ``gpus`` is how many it takes, None
    where nobody knows; ``server`` what kind it is, as ``triton``; ``transport`` how it is asked, as
    ``chat``, where that was said.
    """

    name: str
    url: str
    protocol: str
    model: str
    gpus: int | None = None
    server: str | None = None
    cell: Mapping[str, Any] | None = None
    artifacts: Mapping[str, str] | None = None
    deployment_sha256: str | None = None
    transport: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it the same target another day: not a file's comments, nor how a cell that is
        known by its artifacts is reached, which only its server tells.
        """
        told = {
            "deployment_sha256",
            *(("url", "protocol", "model") if self.artifacts is not None else ()),
            *(("transport",) if self.transport is None else ()),
        }
        return {name: value for name, value in asdict(self).items() if name not in told}

    def at(self, endpoint: Endpoint) -> Target:
        """The same, with where and how it is reached."""
        return replace(self, url=endpoint.url, protocol=endpoint.protocol, model=endpoint.model)


@dataclass(frozen=True, slots=True)
class Planned:
    """A measurement to make. ``repetition`` counts from 0; ``seed`` is that of its arrivals."""

    target: Target
    load: Load
    workload: Workload
    extent: Extent = ONCE
    seed: int = 0
    repetition: int = 0
    kind: Kind = "load"
    unique_prefix: bool = False
    study: str = ""
    gpu: Mapping[str, Any] | None = field(default=None, compare=False)
    versions: Mapping[str, Any] = field(default_factory=dict, compare=False)
    search: Mapping[str, Any] | None = field(default=None, compare=False)
    prediction: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """The same for the same target, load, prompts, seed, repetition and kind: 16 hex digits."""
        made_of = {
            "target": self.target.identity,
            "load": self._load(),
            "workload": self.workload.sha256,
            "unique_prefix": self.unique_prefix,
            "seed": self.seed,
            "repetition": self.repetition,
            "kind": self.kind,
        }
        text = json.dumps(made_of, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at(self, endpoint: Endpoint) -> Planned:
        """The same, with where and how its target is reached."""
        return replace(self, target=self.target.at(endpoint))

    def measured(self, run: Run, files: Mapping[str, str] | None = None) -> Measurement:
        """The line of what was measured; ``files`` are paths relative to the ledger's folder."""
        document = run.to_json()
        length = window_ns(run.records)
        osl = run.metrics.get("output_sequence_length", {})
        status: Outcome = "stopped" if run.stopped else "ok" if run.requests_ok else "failed"
        known = self._planned(run.started_at, status)
        known["versions"] = {**document["client"], **self.versions}
        known["workload"] |= {
            "isl_avg": run.metrics.get("input_sequence_length", {}).get("avg"),
            "osl_avg": osl.get("avg"),
            "osl_sd": osl.get("std"),
        }
        return {
            **known,
            "duration_s": None if length is None else length * 1e-9,
            "error": run.stopped or (_why_none(run) if status == "failed" else None),
            "metrics": run.metrics,
            "score": document["score"],
            "requests_ok": run.requests_ok,
            "requests_failed": run.requests_failed,
            "max_in_flight_seen": run.max_in_flight_seen,
            "notes": list(run.notes),
            "client": document["health"],
            "server": document["server"],
            "server_metrics": {  # over time they stand in the run's JSON alone
                key: value
                for key, value in document["server_metrics"].items()
                if key != "over_time"
            }
            or None,
            "files": dict(files or {}),
        }

    def failed(self, error: str) -> Measurement:
        """The line of what could not be measured just now."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {**self._planned(now, "failed"), "error": " ".join(plain(error).split())}

    def _load(self) -> dict[str, Any]:
        drawn = self.load.to_json()
        drawn.pop("seed", None)  # stands beside it, for closed loops too
        arrivals = drawn.pop("arrival", "closed" if isinstance(self.load, Concurrency) else "trace")
        extent = self.extent.to_json()
        if self.extent.requests is None and self.extent.duration_s is None:
            extent["requests"] = len(self.workload.prompts)
        return {**drawn, "arrivals": arrivals, **extent}

    def _planned(self, at: str, status: Outcome) -> Measurement:
        return {
            "schema": SCHEMA,
            "id": self.id,
            "study": self.study,
            "kind": self.kind,
            "started_at": at,
            "duration_s": None,
            "status": status,
            "error": None,
            "target": asdict(self.target),
            "load": self._load(),
            "seed": self.seed,
            "repetition": self.repetition,
            "workload": {
                "sha256": self.workload.sha256,
                "source": self.workload.source,
                "prompts": len(self.workload.prompts),
                "unique_prefix": self.unique_prefix,
                **dict.fromkeys(("isl_avg", "osl_avg", "osl_sd")),
            },
            "metrics": {},
            "score": None,
            "requests_ok": 0,
            "requests_failed": 0,
            "max_in_flight_seen": None,
            "notes": [],
            "client": None,
            "server": {},
            "server_metrics": None,
            "gpu": self.gpu,
            "versions": dict(self.versions),
            "files": {},
            "search": self.search,
            "prediction": self.prediction,
        }


def _why_none(run: Run) -> str:
    """Why no request was answered."""
    return next(iter(failure_notes(run.records)), "no request was sent")

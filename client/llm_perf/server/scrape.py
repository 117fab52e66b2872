"""What the server says of itself while it is measured: its Prometheus endpoint in, a summary out.

A thread fetches and keeps bytes; they are read once the clock has stopped. What a server doesn't
export is simply absent. Knows Triton's names (docs.nvidia.com/deeplearning/triton-inference-server,
"Metrics"), TensorRT-LLM's ``nv_trt_llm_*`` and ``trtllm_*``, and those of DCGM's exporter.
"""

from __future__ import annotations

import math
import socket
import tempfile
import weakref
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from math import isfinite
from threading import Timer
from time import monotonic, perf_counter_ns
from typing import Any, Final
from urllib.parse import urlsplit

from llm_perf.background import Background
from llm_perf.errors import UserError
from llm_perf.server.exposition import KEPT, named, parse_metrics
from llm_perf.server.iterations import as_text
from llm_perf.server.occupancy import Series, State, state_of, told
from llm_perf.server.over_time import over_time
from llm_perf.transports import Endpoint

_PATIENCE_S: Final = 2.0
_BESIDE: Final = "/prometheus/metrics"
# where OpenAI servers tell their metrics, and what is on such a page
_OWN: Final = {
    "/metrics": b"vllm:",
    _BESIDE: b"trtllm_",
}
_LARGEST: Final = 2**24  # bytes of a page
_IN_MEMORY: Final = 2**22
_DEFAULT_PORT: Final = 8002
# one figure for each, shown under the table: a gauge's name, labels it has, statistic, text
_SHOWN: Final[tuple[tuple[str, dict[str, str], str, Callable[[float], str]], ...]] = (
    ("nv_gpu_utilization", {}, "avg", lambda v: f"GPU utilisation {v:.0%}"),
    ("nv_gpu_power_usage", {}, "avg", lambda v: f"power {v:.0f} W"),
    ("nv_gpu_memory_used_bytes", {}, "max", lambda v: f"memory {v / 2**30:.1f} GiB"),
    (
        "nv_trt_llm_kv_cache_block_metrics",
        {"kv_cache_block_type": "used"},
        "max",
        lambda v: f"KV-cache blocks at most {v:.0f}",
    ),
)


class Scraper(Background):
    """Fetches ``url`` at the start, every ``every_s`` seconds and at the end of its block."""

    def __init__(self, url: str, every_s: float = 1.0) -> None:
        super().__init__(every_s)
        self._url = url
        self._pages = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._pages.close)
        self._sizes = array("q")
        self._at_ns = array("q")
        self._missed = 0

    def act(self) -> None:
        """Fetch the page."""
        page = _page(self._url)
        if page is None:
            self._missed += 1
            return
        at_ns = perf_counter_ns()
        try:
            self._pages.seek(sum(self._sizes))
            self._sizes.append(self._pages.write(zlib.compress(page, 1)))
            self._at_ns.append(at_ns)
        except OSError:  # the disk is full
            self._missed += 1

    def _read(self) -> Iterator[str]:
        self._pages.seek(0)
        for size in self._sizes:
            yield zlib.decompress(self._pages.read(size)).decode(errors="replace")

    def summary(self) -> dict[str, Any]:
        """Sum up what was seen; nothing where the endpoint never answered."""
        if not self._sizes:
            return {}
        seen = summarise(self._read())
        history = over_time(zip(self._at_ns, self._read(), strict=True), len(self._sizes))
        counts = {"url": self._url, "scrapes": len(self._sizes), "missed": self._missed}
        return {**counts, **seen, "over_time": history}


def find_metrics(url: str | None, endpoint: Endpoint) -> str | None:
    """Say where to scrape: ``url``, else what an OpenAI server has itself, or Triton's port 8002.

    ``None`` where nothing was asked for and nothing that knows the model answers there.
    Raises ``UserError`` when ``url`` doesn't answer.
    """
    if url is None and endpoint.protocol == "openai":
        for path, mark in _OWN.items():
            own = urlsplit(endpoint.base)._replace(path=path).geturl()
            if mark in (_page(own) or b""):
                return own
        return None
    if url is None:
        host = urlsplit(endpoint.base).hostname or ""
        guess = f"http://{f'[{host}]' if ':' in host else host}:{_DEFAULT_PORT}/metrics"
        model = f'model="{endpoint.model}"'.encode()
        return guess if model in (_get(guess) or b"") else None  # another server's may be there
    asked = url if url.startswith(("http://", "https://")) else f"http://{url}"
    if _get(asked) is None:
        raise UserError(
            f"no metrics at {asked}",
            where="--server-metrics-url",
            fix="give the server's Prometheus endpoint, like http://localhost:8002/metrics",
        )
    return asked


def _page(url: str) -> bytes | None:
    """A page of metrics, of trtllm-serve with the iterations that it tells beside it."""
    page, (place, found, _) = _get(url), url.rpartition(_BESIDE)
    if page is not None and page.lstrip().startswith(b"["):
        return as_text(page)
    beside = _get(f"{place}/metrics") if found else None
    return page if page is None or beside is None else page + b"\n" + as_text(beside)


def _get(url: str) -> bytes | None:
    """Fetch a page within ``_PATIENCE_S`` in all, however slowly it drips, and not without end."""
    kind = HTTPSConnection if url.startswith("https://") else HTTPConnection
    place, slash, path = url.partition("://")[2].partition("/")
    timer = None
    try:
        connection = kind(place, timeout=_PATIENCE_S)
        connection.connect()
        until_s = monotonic() + _PATIENCE_S
        timer = Timer(_PATIENCE_S, _hang_up, (connection.sock,))
        timer.start()
        connection.request("GET", slash + path or "/")
        answer = connection.getresponse()
        page = answer.read(_LARGEST + 1)
        whole = monotonic() < until_s and not answer.length and len(page) <= _LARGEST
        return page if answer.status == 200 and whole else None
    except (HTTPException, OSError, ValueError):
        return None
    finally:
        if timer is not None:
            timer.cancel()
            connection.close()


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class _Seen:
    """The values of a series so far."""

    first: float
    last: float = 0.0
    total: float = 0.0
    n: int = 0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        self.last = value
        self.total += value
        self.n += 1
        self.least, self.most = min(self.least, value), max(self.most, value)


def summarise(pages: Iterable[str]) -> dict[str, Any]:
    """Sum up pages in their order: gauges by avg, min and max, counters by their increase.

    Counters that stood still are left out. ``queue_ms_per_request`` is, per Triton model, the
    increase of its queue time over that of its requests. ``engine`` are the states that an engine
    with work was seen in, each with how often.
    """
    types: dict[str, str] = {}
    seen: dict[Series, _Seen] = {}
    states: Counter[State] = Counter()
    for values, known in map(parse_metrics, pages):
        types |= known
        states.update(filter(None, [state_of(values)]))
        for series, value in values.items():
            if KEPT.fullmatch(series[0]) and isfinite(value):
                seen.setdefault(series, _Seen(value)).add(value)
    gauges = [
        {**named(series), "avg": v.total / v.n, "min": v.least, "max": v.most}
        for series, v in seen.items()
        if types.get(series[0]) == "gauge"
    ]
    increases = {
        series: v.last - v.first
        for series, v in seen.items()
        if types.get(series[0]) == "counter" and v.last != v.first
    }
    return {
        "gpus": _gpus(seen),
        "queue_ms_per_request": _queue_ms(increases),
        "gauges": gauges,
        "counters": [{**named(series), "increase": value} for series, value in increases.items()],
        **({"engine": told(states)} if states else {}),
    }


def _gpus(seen: Iterable[Series]) -> list[dict[str, str]]:
    """The GPUs that labels tell of: Triton gives their UUIDs, DCGM their names too."""
    gpus: dict[str, dict[str, str]] = {}
    for labels in (dict(pairs) for _, pairs in seen):
        if uuid := labels.get("gpu_uuid") or labels.get("UUID"):
            named = {"name": labels["modelName"]} if labels.get("modelName") else {}
            gpus[uuid] = {"uuid": uuid, **gpus.get(uuid, {}), **named}
    return [gpus[uuid] for uuid in sorted(gpus)]


def _queue_ms(increases: Mapping[Series, float]) -> dict[str, float]:
    queued: dict[str, float] = defaultdict(float)
    asked: dict[str, float] = defaultdict(float)
    for (name, pairs), value in increases.items():
        model = dict(pairs).get("model", "")
        if name == "nv_inference_queue_duration_us":
            queued[model] += value
        elif name in ("nv_inference_request_success", "nv_inference_request_failure"):
            asked[model] += value
    return {model: us / 1000 / asked[model] for model, us in queued.items() if asked[model]}


def headline(summary: Mapping[str, Any]) -> str | None:
    """One line for under the table; ``None`` where there is nothing to say."""
    parts = []
    for name, labels, statistic, text in _SHOWN:
        gauges = (each for each in summary.get("gauges", ()) if each["name"] == name)
        values = [each[statistic] for each in gauges if labels.items() <= each["labels"].items()]
        if values:
            parts.append(text(max(values)))
    for model, value in summary.get("queue_ms_per_request", {}).items():
        parts.append(f"queue of {model} {value:.2f} ms/request")
    return "; ".join(parts) or None

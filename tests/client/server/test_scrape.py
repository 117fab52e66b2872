from __future__ import annotations

import errno
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.server import scrape
from llm_perf.server.scrape import (
    Scraper,
    find_metrics,
    headline,
    over_time,
    parse_metrics,
    summarise,
)
from llm_perf.transports import Endpoint

TRITON = """\
# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="ensemble",version="1"}} {done}
nv_inference_request_success{{model="idle",version="1"}} 3
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{{model="ensemble",version="1"}} {queued}
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{{gpu_uuid="GPU-1"}} {used}
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{{gpu_uuid="GPU-1"}} 305.5
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="used",model="tensorrt_llm"}} {blocks}
nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="max",model="tensorrt_llm"}} 4096
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e9
"""
PAGES = [
    TRITON.format(done=10, queued=5000, used=0.5, blocks=7),
    TRITON.format(done=14, queued=9000, used=0.75, blocks=90),
    TRITON.format(done=30, queued=45000, used=1, blocks=20),
]


def test_gauges_are_averaged_and_counters_increase() -> None:
    seen = summarise(PAGES)
    gauges = {
        (each["name"], each["labels"].get("kv_cache_block_type")): each for each in seen["gauges"]
    }
    assert gauges["nv_gpu_utilization", None] == {
        "name": "nv_gpu_utilization",
        "labels": {"gpu_uuid": "GPU-1"},
        "avg": 0.75,
        "min": 0.5,
        "max": 1,
    }
    assert gauges["nv_trt_llm_kv_cache_block_metrics", "used"]["max"] == 90
    assert {(each["labels"]["model"], each["increase"]) for each in seen["counters"]} == {
        ("ensemble", 20),
        ("ensemble", 40000),
    }
    assert seen["queue_ms_per_request"] == {"ensemble": 2}
    assert seen["gpus"] == [{"uuid": "GPU-1"}]
    assert not any("process" in name for name, _ in gauges)


def test_what_moved_is_kept_over_time_and_counters_as_rates() -> None:
    seconds = [n * 1_000_000_000 for n in (3, 5, 9)]
    seen = over_time(zip(seconds, PAGES, strict=True), 3)
    lines = {(each["name"], *each["labels"].values()): each["values"] for each in seen["series"]}
    assert seen["at_ns"] == seconds
    assert lines.pop(("nv_gpu_utilization", "GPU-1")) == [0.5, 0.75, 1]
    assert lines.pop(("nv_trt_llm_kv_cache_block_metrics", "used", "tensorrt_llm")) == [7, 90, 20]
    assert lines.pop(("nv_inference_request_success", "ensemble", "1")) == [None, 2, 4]
    assert lines.pop(("nv_inference_queue_duration_us", "ensemble", "1")) == [None, 2000, 9000]
    assert not lines  # what stood still says nothing


def test_what_moved_most_comes_first_and_what_only_rises_last() -> None:
    pages = [
        f"# TYPE nv_gpu_a gauge\nnv_gpu_a {a}\n# TYPE nv_gpu_b gauge\nnv_gpu_b {b}\n"
        f"# TYPE nv_gpu_c counter\nnv_gpu_c {c}\n# TYPE nv_gpu_d gauge\nnv_gpu_d {d}\n"
        for a, b, c, d in ((1, 10, 1, 10), (2, 9, 9, 1), (30, 10, 10, 10))
    ]
    seen = over_time([(at * 10**9, page) for at, page in enumerate(pages)], 3)["series"]
    assert [each["name"][-1] for each in seen] == ["d", "b", "a", "c"]


def test_a_long_run_is_kept_in_few_looks_the_last_among_them() -> None:
    pages = [(n, TRITON.format(done=n, queued=n, used=n, blocks=n)) for n in range(1000)]
    at = over_time(pages, len(pages))["at_ns"]
    assert at[0] == 0 and at[-1] == 999 and 100 < len(at) <= 121


def test_dcgm_tells_the_gpus_name() -> None:
    labels = 'gpu="0",UUID="GPU-1",modelName="NVIDIA H100 80GB HBM3"'
    page = f"# TYPE DCGM_FI_DEV_GPU_UTIL gauge\nDCGM_FI_DEV_GPU_UTIL{{{labels}}} 93\n"
    assert summarise([page])["gpus"] == [{"uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3"}]


def test_the_headline_says_what_there_is() -> None:
    assert headline(summarise(PAGES)) == (
        "GPU utilisation 75%; power 306 W; KV-cache blocks at most 90; "
        "queue of ensemble 2.00 ms/request"
    )
    assert headline(summarise(["up 1\n"])) is None
    assert headline({}) is None


def test_a_full_disk_costs_pages_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                super().write(data[:1])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr("llm_perf.server.scrape._get", lambda url: b"nv_gpu_power_usage 7\n")
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda size: Full())
    with Scraper("http://localhost/metrics") as scraper:
        pass
    assert (scraper.summary()["scrapes"], scraper.summary()["missed"]) == (1, 1)


_names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,10}", fullmatch=True)
_labels = st.dictionaries(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True), st.text(), max_size=3
)


def spell(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@given(
    st.dictionaries(
        st.tuples(_names, _labels.map(lambda labels: tuple(labels.items()))),
        st.floats(allow_nan=False),
        max_size=5,
    ),
    st.sampled_from(["", " 1395066363000"]),
)
def test_what_is_written_in_the_format_is_read_back(
    series: dict[tuple[str, tuple[tuple[str, str], ...]], float], stamp: str
) -> None:
    lines = []
    for (name, labels), value in series.items():
        inner = ",".join(f'{key}="{spell(text)}"' for key, text in labels)
        lines.append(f"{name}{{{inner}}} {value!r}{stamp}" if inner else f"{name} {value!r}{stamp}")
    assert parse_metrics("\n".join(lines) + "\n")[0] == series


@given(st.text())
def test_garbage_is_skipped(text: str) -> None:
    values, _ = parse_metrics(text + "\ngood 1\n")
    assert values["good", ()] == 1


@pytest.fixture
def url(http_server: Callable) -> Iterator[str]:
    pages = iter([*PAGES, *[PAGES[-1]] * 9])

    def answer(path: str) -> tuple[int, bytes]:
        return (200, next(pages).encode()) if path == "/metrics" else (404, b"")

    with http_server(answer) as place:
        yield f"{place}/metrics"


def test_a_scraper_sees_the_start_and_the_end(url: str) -> None:
    with Scraper(f"http://{url}", every_s=3600) as scraper:
        pass
    seen = scraper.summary()
    assert (seen["scrapes"], seen["missed"]) == (2, 0)
    assert {each["increase"] for each in seen["counters"]} == {4, 4000}


def test_a_scraper_without_a_server_says_nothing() -> None:
    with Scraper("http://127.0.0.1:9/metrics", every_s=3600) as scraper:
        pass
    assert scraper.summary() == {}


def test_an_url_that_was_asked_for_has_to_answer(url: str) -> None:
    endpoint = Endpoint("127.0.0.1:1", "grpc", "ensemble")
    assert find_metrics(url, endpoint) == f"http://{url}"
    with pytest.raises(UserError, match=r"no metrics at http://127\.0\.0\.1:9/metrics"):
        find_metrics("127.0.0.1:9/metrics", endpoint)
    with pytest.raises(UserError, match="no metrics at"):
        find_metrics(url.replace("metrics", "else"), endpoint)


def test_nothing_is_scraped_where_nothing_was_asked_for_and_nothing_answers() -> None:
    assert find_metrics(None, Endpoint("127.0.0.254:1", "grpc", "ensemble")) is None


@pytest.fixture
def dripping() -> Iterator[str]:
    """A page that comes a byte at a time and never ends; gives HOST:PORT."""
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not over.wait(0.05):
                    connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        over.set()
    thread.join()


def test_an_endpoint_that_drips_is_left(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "_PATIENCE_S", 0.3)
    with pytest.raises(UserError, match="no metrics at"):
        find_metrics(dripping, Endpoint("127.0.0.1:1", "grpc", "ensemble"))


def test_a_page_without_end_is_no_page(
    http_server: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "_LARGEST", 1000)
    with http_server(lambda path: (200, b"a 1\n" * 1000)) as place, pytest.raises(UserError):
        find_metrics(place, Endpoint("127.0.0.1:1", "grpc", "ensemble"))

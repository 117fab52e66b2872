"""What a run keeps is bounded, whatever the server sends."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from multiprocessing import active_children
from pathlib import Path

import psutil
import pytest

from llm_perf.api import (
    Concurrency,
    Conditions,
    Endpoint,
    Extent,
    Progress,
    Prompt,
    Run,
    Status,
    Workload,
    load_workload,
    measure,
)
from llm_perf.selftest.nullserver import MODEL
from llm_perf.selftest.selftest import null_server
from llm_perf.workload.tokens import load_tokenizer
from tests.client.faulty import FaultyServer
from tests.client.runs import TOKENIZER
from tests.client.scripted import FINAL, Say, ScriptedTriton

LIMIT = 100_000
ENDLESS = repeat(Say("x" * 1000, 1))
HUGE = [Say("x" * 10 * LIMIT, 1), FINAL]
GOOD = [Say("one", 1), Say(" two", 1), FINAL]


@pytest.mark.parametrize("transport", ["grpc", "grpc.aio", "tritonclient"])
@pytest.mark.parametrize("answer", [ENDLESS, HUGE], ids=["endless", "one huge message"])
def test_an_answer_without_an_end_is_cut_and_its_own_status(
    answer, transport: str, write_prompts: Callable[..., object], tokenizer_folder
) -> None:
    prompts = write_prompts({"text_input": "bad", "max_tokens": 10}, "good")
    with ScriptedTriton(lambda prompt: answer if prompt == "bad" else GOOD) as server:
        place = Endpoint(server.url, "grpc", "ensemble", transport)
        workload = load_workload(prompts, tokenizer_folder)
        conditions = Conditions(request_timeout_s=20, max_answer_bytes=LIMIT)
        run = measure(place, workload, Concurrency(1), conditions)
    bad, good = run.records
    assert (bad.status, good.status) == (Status.OVERLONG, Status.OK)
    assert len(bad.answer) <= LIMIT + 10 * 1024
    assert "failed requests: 1 overlong" in run.notes[0]


def _bounded(code: str, *words: str, files: int) -> subprocess.CompletedProcess[str]:
    """Run a program that may open so many files, and no more."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, files), files))

    return subprocess.run(
        [sys.executable, "-c", code, *words],
        preexec_fn=limit,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "client"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )


MEASURE = """
import sys
from llm_perf.api import *
url, protocol, prompts, tokenizer, n = sys.argv[1:]
load = Concurrency(int(n)) if int(n) else Rate(float("inf"))
workload = load_workload(prompts, tokenizer)
run = measure(Endpoint(url, protocol, "ensemble"), workload, load, Conditions(request_timeout_s=20))
print(run.requests_ok, *run.notes, sep="\\n")
"""


def test_the_soft_limit_of_open_files_is_raised(write_prompts, tokenizer_folder) -> None:
    prompts = str(write_prompts(*(f"p{i}" for i in range(100))))
    with FaultyServer() as server:
        words = (server.url, "http", prompts, str(tokenizer_folder))
        done = _bounded(MEASURE, *words, "100", files=200)
        assert done.stdout.startswith("100\n"), done.stderr
        refused = _bounded(MEASURE, *words, "100", files=120)
        assert "100 connections need more files than a process may open here (120" in refused.stderr
        fewer = _bounded(MEASURE, *words, "0", files=120)
        assert fewer.stdout.startswith("100\nat most 56 requests were in flight"), fewer.stderr


@pytest.mark.parametrize("count", [-5, 2**31 - 1])
def test_an_absurd_count_is_none(count: int, ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: [Say("one", count), FINAL]) as server:
        (record,) = ask(server, "a").records
    assert (record.server_tokens, record.output_tokens) == (None, 3)


def test_a_stopped_server_ends_a_timed_run_at_duration_and_timeout() -> None:
    prompts = tuple(Prompt(i, "4 1000", 1, 4) for i in range(4))
    conditions = Conditions(
        extent=Extent(duration_s=1.0), request_timeout_s=1.0, watch=lambda seen: stop(seen)
    )
    stopped: list[psutil.Process] = []

    def stop(seen: Progress) -> None:
        if seen.done and not stopped:
            stopped.extend(psutil.Process(child.pid) for child in active_children())
            stopped[0].suspend()

    with null_server() as url:
        workload = Workload("", prompts, "", load_tokenizer(TOKENIZER))
        try:
            run = measure(Endpoint(url, "grpc", MODEL), workload, Concurrency(4), conditions)
        finally:
            for process in stopped:
                process.resume()
    kinds = Counter(record.status for record in run.records)
    assert kinds[Status.OK] and kinds[Status.TIMEOUT] >= 4 and len(kinds) == 2
    begun = min(record.sent_ns for record in run.records)
    assert max(record.scheduled_ns for record in run.records) - begun < 1.1e9
    assert max(record.end_ns for record in run.records) - begun < 2.5e9


@contextmanager
def openai_server(answer: Callable[[BaseHTTPRequestHandler, str], None]) -> Iterator[str]:
    """Serves one model; a completion is what ``answer`` writes for a prompt. Gives HOST:PORT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.say(200, json.dumps({"data": [{"id": "m"}]}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with suppress(OSError):
                answer(self, json.loads(body)["prompt"])

        def say(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def event(text: str, end: str | None = None) -> bytes:
    choice = {"text": text, "finish_reason": end}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def good(handler: BaseHTTPRequestHandler) -> None:
    body = event("one") + event(" two", "stop") + b"data: [DONE]\n\n"
    handler.say(200, body, content_type="text/event-stream")  # type: ignore[attr-defined]


def test_a_stream_over_http_is_cut_too(write_prompts, tokenizer_folder) -> None:
    def answer(handler: BaseHTTPRequestHandler, prompt: str) -> None:
        if prompt == "good":
            good(handler)
            return
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        while True:
            handler.wfile.write(event("x" * 1000))

    prompts = write_prompts({"text_input": "bad", "max_tokens": 10}, "good")
    with openai_server(answer) as url:
        workload = load_workload(prompts, tokenizer_folder)
        conditions = Conditions(request_timeout_s=20, max_answer_bytes=LIMIT)
        run = measure(Endpoint(url, "openai", "m"), workload, Concurrency(1), conditions)
    bad, fine = run.records
    assert (bad.status, fine.status) == (Status.OVERLONG, Status.OK)
    assert len(bad.answer) <= LIMIT + 10 * 1024  # the read that was too much is left out whole


@pytest.mark.parametrize("status", [429, 503])
def test_a_slot_waits_as_long_as_the_server_says(
    status: int, write_prompts, tokenizer_folder
) -> None:
    def answer(handler: BaseHTTPRequestHandler, prompt: str) -> None:
        if prompt == "later":
            handler.say(status, b"{}", retry_after="1")  # type: ignore[attr-defined]
        else:
            good(handler)

    with openai_server(answer) as url:
        workload = load_workload(write_prompts("a", "later", "b"), tokenizer_folder)
        run = measure(Endpoint(url, "openai", "m"), workload, Concurrency(1))
    _, later, after = run.records
    assert [record.status.value for record in run.records] == ["ok", "throttled", "ok"]
    assert after.sent_ns - later.end_ns >= 0.99e9  # loops wake up to a millisecond early
    assert "failed requests: 1 throttled" in run.notes[0]

"""A stand-in for ``tritonserver`` with TensorRT-LLM's backend, one process for each rank.

It holds its caller to the real contract: only flags that tritonserver 2.48 to 2.51 has, each once
unless it may be repeated; all ranks in one MPI world with shared-memory prefixes of their own; the
first loads the whole repository and is ready once all ranks are up; the others load only the model
that has an engine, and never get as far as listening. A rank obeys the words in
``$TRT_STANDIN/rank<N>``: ``stubborn`` ignores SIGTERM, ``deaf`` never comes up, ``fails`` logs an
error, with the reason that follows it, and exits with 1. It writes what it was given to
``$TRT_STANDIN/started<N>.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ONCE = {
    *("model-repository", "exit-timeout-secs", "model-control-mode", "http-port", "grpc-port"),
    *("metrics-port", "http-address", "grpc-address", "metrics-address", "backend-directory"),
    *(
        "log-verbose",
        "disable-auto-complete-config",
        "pinned-memory-pool-byte-size",
        "enable-peer-access",
    ),
}
REPEATED = {
    *("load-model", "backend-config", "cuda-memory-pool-byte-size", "http-restricted-api"),
    "grpc-restricted-protocol",
}
RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
SIZE = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
HERE = Path(os.environ["TRT_STANDIN"])


def fail(what: str) -> None:
    print(f'E1122 07:24:40.407694 {os.getpid()} standin.cc:1] "{what}"', file=sys.stderr)
    sys.exit(1)


def read(words: list[str]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for word in words:
        flag, _, value = word.partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in ONCE | REPEATED:
            fail(f"unknown flag {word}")
        if name in ONCE and name in given:
            fail(f"{flag} is given twice")
        given.setdefault(name, []).append(value)
    return given


def shared_memory(given: dict[str, list[str]]) -> Path:
    [config] = given["backend-config"]
    return Path("/dev/shm") / f"{config.removeprefix('python,shm-region-prefix-name=')}region"


def check(given: dict[str, list[str]]) -> None:
    repository = Path(given["model-repository"][0])
    if RANK:
        if given.get("model-control-mode") != ["explicit"]:
            fail("a rank that isn't the first would load the whole repository")
        for model in given["load-model"]:
            if not (repository / model / "config.pbtxt").is_file():
                fail(f"there is no model {model}")
    elif "model-control-mode" in given and given.get("load-model") != ["*"]:
        fail("no model is loaded")
    region = shared_memory(given)
    if region.exists():
        fail(f"{region} is another rank's")
    region.touch()


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        up = self.path == "/v2/health/ready" and len(list(HERE.glob("started*.json"))) >= SIZE
        self.send_response(200 if up else 400)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    word = ""
    if (order := HERE / f"rank{RANK}").is_file():
        word = order.read_text()
    given = read(sys.argv[1:])
    check(given)
    print(f"rank {RANK} of {SIZE} is up", flush=True)
    if word.startswith("fails"):
        why = word.removeprefix("fails").strip() or "Internal: no engine"
        fail(f"failed to load 'tensorrt_llm' version 1: {why}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if word == "stubborn" else lambda *_: sys.exit(0))
    if word != "deaf":
        started = {"pid": os.getpid(), "flags": given, "environment": dict(os.environ)}
        (HERE / f"started{RANK}.json").write_text(json.dumps(started))
    if RANK:
        while True:
            time.sleep(60)
    address, port = given["http-address"][0], int(given["http-port"][0])
    HTTPServer((address, port), Health).serve_forever()


if __name__ == "__main__":
    main()

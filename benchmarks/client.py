"""What measuring costs and how late it stamps: llm_perf against its peers on one server.

    python benchmarks/client.py [--streams 8,32,128,512] [--rounds 3] [--json FILE]
    python benchmarks/client.py --protocol openai [--streams 256] [--before CHECKOUT]

A real Triton serves a decoupled stub model (stamps.py) whose responses carry the time they were
sent. Each client keeps N streams of 64 responses in flight until it has made the same number of
requests; the clients take turns, and figures are medians over the rounds.
CPU is user + system time of the client's process while it is under load, per response; the error
is the client's stamp − the model's, so it holds the server's own way out, the same for all.
perf_analyzer is the binary in PyPI's tritonclient 2.50.0, fetched once into ~/.cache; it is left
out where it can't run (Debian: apt-get install libb64-0d).
With ``--protocol openai`` the server is sse.py's (10,000 chunks/s at most, in bursts), and whole
commands take turns (openai_peers.py): CPU is that of all their processes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parent.parent)  # this file has the name of what it measures

from benchmarks import openai_peers
from benchmarks.peers import (
    LIMIT_S,
    TEXT,
    TOKENS,
    Measured,
    by_perf_analyzer,
    by_tritonclient,
    by_tritonclient_aio,
    requests_for,
)
from benchmarks.sse import sse_server
from llm_perf.load.turns import Turns
from llm_perf.loop import run_loop
from llm_perf.record import Exchange
from llm_perf.transports import Endpoint, connect
from llm_perf.workload.workload import Prompt
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

MODEL = Path(__file__).with_name("stamps.py")
CONFIG = """
name: "stamps"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input { name: "text_input" data_type: TYPE_STRING dims: [1] }
input { name: "max_tokens" data_type: TYPE_INT32 dims: [1] }
output { name: "text_output" data_type: TYPE_STRING dims: [1] }
instance_group { count: 1 kind: KIND_CPU }
"""
MOST_PER_S = 10_000  # chunks of all streams together
PROMPT = Prompt(index=0, text=TEXT, input_tokens=1, max_tokens=TOKENS)
Figures = dict[str, Any]


def by_transport(name: str, url: str, streams: int) -> Measured:
    """Ours, and grpc.aio with messages kept as bytes: CPU and wall seconds, stamps."""

    async def run() -> Measured:
        transport = await connect(Endpoint(url, "grpc", "stamps", name), streams)
        request = transport.dialect.request(PROMPT, "1")
        seen = [Exchange(str(number)) for number in range(requests_for(streams))]
        waiting, turns = iter(seen), Turns()

        async def slot() -> None:
            for exchange in waiting:
                await turns.turn()
                await transport.stream(request, exchange, LIMIT_S)

        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(slot() for _ in range(streams)))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        await transport.close()
        messages = [message for exchange in seen for message in exchange.messages]
        read = transport.dialect.parse
        return cpu, wall, [at - int(read(raw).text.split()[0]) for at, raw in messages]

    return run_loop(run())


CLIENTS: dict[str, Callable[[str, int], Measured]] = {
    "tritonclient": by_tritonclient,
    "tritonclient.aio": by_tritonclient_aio,
    "grpc.aio": partial(by_transport, "grpc.aio"),
    "ours": partial(by_transport, "grpc"),
}


def figures(name: str, streams: int, cpu_s: float, wall_s: float, late_ns: list[int]) -> Figures:
    late = np.asarray(late_ns) / 1e6
    p50, p99 = np.percentile(late, (50, 99))
    return {
        "client": name,
        "streams": streams,
        "responses": len(late),
        "cpu_us_per_response": round(cpu_s / len(late) * 1e6, 2),
        "responses_per_s": round(len(late) / wall_s, 1),
        "stamp_error_p50_ms": round(float(p50), 3),
        "stamp_error_p99_ms": round(float(p99), 3),
    }


def one(name: str, url: str, streams: int) -> Figures:
    """Measure with a client of Python, in this process."""
    gc.disable()
    return figures(name, streams, *CLIENTS[name](url, streams))


def in_child(name: str, url: str, streams: int) -> Figures:
    """Measure in a process of its own, so that no client pays for another."""
    command = [sys.executable, __file__, "--one", name, "--url", url, "--streams", str(streams)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    result: Figures = json.loads(done.stdout)
    return result


def by_grpc(name: str, url: str, streams: int) -> Figures:
    if name == "perf_analyzer":
        return figures(name, streams, *by_perf_analyzer(url, streams))
    return in_child(name, url, streams)


def measure(name: str, streams: int, client: Callable[[], Figures]) -> Figures | None:
    """One client's figures in one round; ``None`` where it can't run."""
    try:
        return client()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"{name:17} {streams:8} left out: {error}", file=sys.stderr, flush=True)
        return None


def medians(rounds: list[Figures]) -> Figures:
    """Of each figure its median over the rounds."""
    return {
        key: value if isinstance(value, str | int) else median(row[key] for row in rounds)
        for key, value in rounds[0].items()
    }


def point(clients: Mapping[str, Callable[[], Figures]], streams: int, rounds: int) -> list[Figures]:
    """All clients at one number of streams."""
    seen: dict[str, list[Figures]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, rows in seen.items():
            if (row := measure(name, streams, clients[name])) is not None:
                rows.append(row)
    found = [medians(rows) for rows in seen.values() if rows]
    for row in found:
        print(
            "{client:17} {streams:8} {responses:10} {cpu_us_per_response:8.1f} "
            "{responses_per_s:8.0f} {stamp_error_p50_ms:8.2f} "
            "{stamp_error_p99_ms:8.2f}".format(**row),
            flush=True,
        )
    return found


def repository(folder: Path) -> Path:
    """A model repository with the stub model."""
    version = folder / "repository" / "stamps" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_bytes(MODEL.read_bytes())
    (version.parent / "config.pbtxt").write_text(CONFIG, "utf-8")
    return version.parent.parent


def print_ratios(rows: list[Figures]) -> None:
    """Each peer's CPU per response and p99 error over ours, at the same number of streams."""
    ours = {row["streams"]: row for row in rows if row["client"] == "ours"}
    print("over ours          streams  CPU  p99 error")
    for row in rows:
        if row["client"] != "ours" and row["streams"] in ours:
            own = ours[row["streams"]]
            cpu = row["cpu_us_per_response"] / own["cpu_us_per_response"]
            late = row["stamp_error_p99_ms"] / own["stamp_error_p99_ms"]
            print(f"{row['client']:17} {row['streams']:8} {cpu:4.1f} {late:10.1f}")


def grpc_points(streams: list[int], rounds: int) -> list[Figures]:
    """All clients of Triton."""
    rows: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "triton.log")
        with ModelServer(repository(Path(folder)), ports=free_ports(), log_file=log) as server:
            server.wait_ready()
            in_child("ours", server.grpc_url, 8)  # warms the server up
            for each in streams:
                names = ("perf_analyzer", *CLIENTS)
                clients = {name: partial(by_grpc, name, server.grpc_url, each) for name in names}
                rows += point(clients, each, rounds)
    return rows


def openai_points(streams: list[int], rounds: int, before: Path | None) -> list[Figures]:
    """All clients of an OpenAI-style server."""
    rows: list[Figures] = []
    with sse_server(MOST_PER_S) as (url, pipe):
        for each in streams:

            def client(name: str, command: openai_peers.Command, streams: int = each) -> Figures:
                measured = openai_peers.measure(command, url, pipe, streams, 4 * streams)
                return figures(name, streams, *measured)

            known = openai_peers.commands(before)
            rows += point(
                {name: partial(client, name, it) for name, it in known.items()}, each, rounds
            )
    return rows


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--protocol", choices=("grpc", "openai"), default="grpc")
    parser.add_argument("--streams", help="numbers of streams [8,32,128,512; openai: 256]")
    parser.add_argument("--rounds", type=int, default=3, help="times each client is measured")
    parser.add_argument("--before", type=Path, help="a checkout of another revision, for openai")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--one", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.url, int(arguments.streams))))
        return
    openai = arguments.protocol == "openai"
    words = arguments.streams or ("256" if openai else "8,32,128,512")
    streams = [int(word) for word in words.split(",")]
    print("client             streams  responses   CPU µs   resp/s  p50 late  p99 ms", flush=True)
    if openai:
        before = arguments.before and arguments.before.resolve()
        rows = openai_points(streams, arguments.rounds, before)
    else:
        rows = grpc_points(streams, arguments.rounds)
    print_ratios(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

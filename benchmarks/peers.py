"""How others measure: tritonclient with threads or asyncio, and NVIDIA's perf_analyzer.

Each keeps N streams of ``TOKENS`` responses in flight at the model of stamps.py, and gives CPU and
wall seconds under load, and how late each response was stamped, in ns.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trtllm_deploy.backends.triton.find import find_triton

CACHE = Path.home() / ".cache" / "trtllm-deploy"
TEXT, TOKENS = "stamp", 64
LIMIT_S = 60  # no client takes longer, or it is left out
Measured: TypeAlias = tuple[float, float, list[int]]


def requests_for(streams: int) -> int:
    """Enough that each point lasts some seconds at the model's pace."""
    return 64 if streams <= 8 else max(128, 2 * streams)


def inputs() -> list[Any]:
    from tritonclient.grpc import InferInput

    text = InferInput("text_input", [1], "BYTES")
    limit = InferInput("max_tokens", [1], "INT32")
    return [
        text.set_data_from_numpy(np.array([TEXT.encode()], dtype=object)),
        limit.set_data_from_numpy(np.array([TOKENS], dtype=np.int32)),
    ]


def lateness(stamped: list[tuple[int, Any]]) -> list[int]:
    outputs = [(at, result.as_numpy("text_output")) for at, result in stamped]
    return [at - int(output[0].split()[0]) for at, output in outputs if output is not None]


def by_tritonclient_aio(url: str, streams: int) -> Measured:
    """tritonclient.grpc.aio as its examples use it."""
    from tritonclient.grpc.aio import InferenceServerClient

    stamped: list[tuple[int, Any]] = []
    sent = inputs()

    async def once() -> Any:
        yield {"model_name": "stamps", "inputs": sent}

    async def run() -> tuple[float, float]:
        clients = [InferenceServerClient(url) for _ in range(-(-streams // 32))]
        waiting = iter(range(requests_for(streams)))

        async def slot() -> None:
            for number in waiting:
                client = clients[number % len(clients)]
                async for result, _ in client.stream_infer(once()):
                    stamped.append((time.perf_counter_ns(), result))

        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(slot() for _ in range(streams)))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        for client in clients:
            await client.close()
        return cpu, wall

    cpu, wall = asyncio.run(run())
    return cpu, wall, lateness(stamped)


def by_tritonclient(url: str, streams: int) -> Measured:
    """tritonclient.grpc as its examples use it: a thread, a stream, a callback, a queue."""
    from tritonclient.grpc import InferenceServerClient

    waiting = iter(range(requests_for(streams)))
    stamped: list[tuple[int, Any]] = []
    sent = inputs()

    def note(came: queue.Queue[tuple[int, Any]], result: Any, error: Any) -> None:
        came.put((time.perf_counter_ns(), error or result))

    def slot(client: Any) -> None:
        came: queue.Queue[tuple[int, Any]] = queue.Queue()
        client.start_stream(partial(note, came))
        for _ in waiting:
            client.async_stream_infer("stamps", sent, enable_empty_final_response=True)
            while True:
                at, result = came.get(timeout=LIMIT_S)
                stamped.append((at, result))
                if result.get_response().parameters["triton_final_response"].bool_param:
                    break
        client.stop_stream()

    clients = [InferenceServerClient(url) for _ in range(streams)]
    threads = [threading.Thread(target=slot, args=(client,)) for client in clients]
    cpu, wall = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.process_time() - cpu, time.perf_counter() - wall, lateness(stamped)


def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """The binary and the environment it needs; raises ``OSError`` or a subprocess error."""
    folder = CACHE / "perf_analyzer-2.50.0"
    binary = folder / "perf_analyzer"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*fetch, "--dest", str(folder), "tritonclient==2.50.0"], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            inside = next(name for name in wheel.namelist() if name.endswith("/perf_analyzer"))
            binary.write_bytes(wheel.read(inside))
        binary.chmod(0o755)
    cudart = folder / "libcudart.so.12"
    if not cudart.exists():
        libraries = find_triton(CACHE / "triton").environment["LD_LIBRARY_PATH"].split(":")
        cudart.symlink_to(next(file for one in libraries for file in Path(one).glob("libcudart*")))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    subprocess.run([binary, "--version"], env=environment, check=True, capture_output=True)
    return binary, environment


def by_perf_analyzer(url: str, streams: int) -> Measured:
    """Run the binary; its CPU is sampled, to leave out its start and the writing of its export."""
    binary, environment = perf_analyzer()
    with tempfile.TemporaryDirectory() as folder:
        export, data = Path(folder, "export.json"), Path(folder, "data.json")
        data.write_text(json.dumps({"data": [{"text_input": ["stamp"], "max_tokens": [TOKENS]}]}))
        flags = ["-m", "stamps", "-u", url, "-i", "grpc", "--async", "--streaming"]
        flags += ["--input-data", str(data), "--profile-export-file", str(export)]
        flags += ["--concurrency-range", str(streams)]
        flags += ["--request-count", str(requests_for(streams))]
        process = subprocess.Popen([binary, *flags], env=environment, stdout=subprocess.PIPE)
        stat, samples = Path(f"/proc/{process.pid}/stat"), []
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            ticks = stat.read_text().rpartition(")")[2].split()[11:13]
            samples.append((time.time_ns(), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")))
            time.sleep(0.02)
        process.kill()
        process.wait()
        requests = json.loads(export.read_text())["experiments"][0]["requests"]
    late: list[int] = []
    for request in requests:
        for at, output in zip(
            request["response_timestamps"], request["response_outputs"], strict=True
        ):
            if output.get("text_output"):
                late.append(at - int(output["text_output"].split()[1]))
    first = min(request["timestamp"] for request in requests)
    last = max(request["response_timestamps"][-1] for request in requests)
    at, cpu = zip(*samples, strict=True)
    begun, ended = np.interp([first, last], at, cpu)
    return ended - begun, (last - first) / 1e9, late

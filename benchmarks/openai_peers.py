"""Whole commands that measure an OpenAI-style server, on the server of sse.py: ours and others'.

Each keeps N streams of ``TOKENS`` chunks in flight; CPU is its whole process tree's between the
server's first request and last chunk. How late a chunk was stamped is read from the files that the
command writes. Peers are installed by hand, each in a virtual environment of its own:

    python -m venv ~/.cache/trtllm-deploy/peers/aiperf
    ~/.cache/trtllm-deploy/peers/aiperf/bin/pip install aiperf==0.13.0

and the same with vllm==0.24.0 (or a build for CPUs) in peers/vllm. Their sources: aiperf 0.13.0
(profile_export_raw.jsonl, perf_ns), vllm/benchmarks/serve.py (--save-detailed).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.peers import CACHE, TEXT, TOKENS, Measured
from benchmarks.sse import MODEL, Window

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "examples" / "number-words" / "model"
PEERS = CACHE / "peers"
LIMIT_S = 240
_SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True)
class Command:
    """What to run in an empty folder, and how to read (stamp, text) pairs from what it writes."""

    words: Callable[[str, int, int], list[str]]
    read: Callable[[Path], Iterator[tuple[int, str]]]
    python_path: Path | None = None


def ours(url: str, streams: int, requests: int) -> list[str]:
    Path("p.jsonl").write_text(json.dumps({"text_input": TEXT, "max_tokens": TOKENS}) + "\n")
    flags = ["-u", url, "-i", "openai", "-m", MODEL, "--tokenizer-path", str(TOKENIZER)]
    flags += ["--input-data", "p.jsonl", "--num-requests", str(requests)]
    flags += ["--concurrency", str(streams), "--workers", "1", "--profile-export-file", "o.json"]
    return [sys.executable, "-m", "llm_perf", *flags]


def read_ours(folder: Path) -> Iterator[tuple[int, str]]:
    (experiment,) = json.loads((folder / "o" / "profile_export.json").read_text())["experiments"]
    for request in experiment["requests"]:
        for at, output in zip(
            request["response_timestamps"], request["response_outputs"], strict=True
        ):
            yield at, output.get("text_output", "")


def vllm(url: str, streams: int, requests: int) -> list[str]:
    Path("p.jsonl").write_text(json.dumps({"prompt": TEXT, "output_tokens": TOKENS}) + "\n")
    flags = ["--backend", "openai", "--base-url", f"http://{url}", "--endpoint", "/v1/completions"]
    flags += ["--model", MODEL, "--tokenizer", str(TOKENIZER), "--dataset-name", "custom"]
    flags += ["--dataset-path", "p.jsonl", "--custom-output-len", str(TOKENS), "--ignore-eos"]
    flags += ["--skip-chat-template", "--num-prompts", str(requests), "--disable-tqdm"]
    flags += ["--max-concurrency", str(streams), "--ready-check-timeout-sec", "0"]
    flags += [
        "--save-result",
        "--save-detailed",
        "--result-dir",
        ".",
        "--result-filename",
        "v.json",
    ]
    return [str(PEERS / "vllm" / "bin" / "vllm"), "bench", "serve", *flags]


def read_vllm(folder: Path) -> Iterator[tuple[int, str]]:
    result = json.loads((folder / "v.json").read_text())
    keys = ("start_times", "ttfts", "itls", "generated_texts")
    for start, ttft, itls, text in zip(*(result[key] for key in keys), strict=True):
        words = text.split()
        stamps = [f"{one} {other}" for one, other in zip(words[::2], words[1::2], strict=True)]
        # the last gap is of the chunk that only says the end
        for at, said in zip(accumulate([start + ttft, *itls]), stamps, strict=False):
            yield int(at * 1e9), said


def aiperf(url: str, streams: int, requests: int) -> list[str]:
    Path("p.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    flags = ["-m", MODEL, "--url", f"http://{url}", "--endpoint-type", "completions"]
    flags += ["--streaming", "--tokenizer", str(TOKENIZER), "--input-file", "p.jsonl"]
    flags += ["--custom-dataset-type", "single_turn", "--request-count", str(requests)]
    flags += ["--concurrency", str(streams), "--extra-inputs", f"max_tokens:{TOKENS}"]
    flags += ["--use-server-token-count", "--export-level", "raw", "--ui-type", "none"]
    # as many processes as it takes for cores: its own choice doesn't come up on two of them
    cores = str(os.cpu_count() or 1)
    flags += ["--output-artifact-dir", "out", "--workers-max", cores, "--record-processors", cores]
    return [str(PEERS / "aiperf" / "bin" / "aiperf"), "profile", *flags]


def read_aiperf(folder: Path) -> Iterator[tuple[int, str]]:
    with (folder / "out" / "profile_export_raw.jsonl").open() as file:
        for record in map(json.loads, file):
            for response in record["responses"]:
                for packet in response.get("packets", ()):
                    if packet["value"].startswith("{") and (
                        choices := json.loads(packet["value"])["choices"]
                    ):
                        yield response["perf_ns"], choices[0]["text"]


def commands(before: Path | None) -> dict[str, Command]:
    """By name; ``before`` is a checkout of another revision of ours."""
    known = {"vllm bench": Command(vllm, read_vllm), "aiperf": Command(aiperf, read_aiperf)}
    if before is not None:
        known["ours, before"] = Command(ours, read_ours, before / "client")
    return {**known, "ours": Command(ours, read_ours, ROOT / "client")}


def measure(command: Command, url: str, pipe: Pipe, streams: int, requests: int) -> Measured:
    """CPU and wall seconds under load, and how late each chunk was stamped, in ns.

    Raises ``OSError``, ``ValueError`` or a subprocess error where it can't run.
    """
    ask_window(pipe)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if command.python_path is not None:
            environment["PYTHONPATH"] = str(command.python_path)
        os.chdir(folder)
        try:
            words = command.words(url, streams, requests)
            samples = _run(words, environment, Path(folder, "log"))
            stamped = list(command.read(Path(folder)))
        finally:
            os.chdir(ROOT)
    window = ask_window(pipe)
    at, cpu = zip(*samples, strict=True)
    begun, ended = np.interp([window.first_ns, window.last_ns], at, cpu)
    late = [at - int(text.split()[0]) for at, text in stamped if text.strip()]
    if len(late) != requests * TOKENS:
        raise ValueError(f"{len(late)} of {requests * TOKENS} chunks were read")
    return float(ended - begun), (window.last_ns - window.first_ns) / 1e9, late


def ask_window(pipe: Pipe) -> Window:
    """What the server has seen since it was asked last."""
    pipe.send(None)
    window: Window = pipe.recv()
    return window


def _run(words: list[str], environment: dict[str, str], log: Path) -> list[tuple[int, float]]:
    """Run to the end; samples of the process tree's CPU seconds and their ``perf_counter_ns``."""
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=environment, stdout=file, stderr=file)
    root, known, samples = psutil.Process(process.pid), dict[int, float](), []
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        for pid, seconds in _cpu(root):
            known[pid] = max(seconds, known.get(pid, 0.0))  # what has ended counts on
        samples.append((time.perf_counter_ns(), sum(known.values())))
        time.sleep(_SAMPLE_S)
    process.kill()
    if process.wait() != 0:
        raise ValueError(log.read_text(errors="replace")[-300:])
    return samples


def _cpu(root: psutil.Process) -> Iterable[tuple[int, float]]:
    try:
        tree: list[Any] = [root, *root.children(recursive=True)]
    except psutil.Error:
        return
    for each in tree:
        try:
            times = each.cpu_times()
            yield each.pid, times.user + times.system
        except psutil.Error:
            continue

"""A vLLM server, and commands that measure it, for gpu_engines.py; what they say is in files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from trtllm_deploy.machine.json_files import write_json

MODEL = "m"
STARTED = time.monotonic()
READY_S, BENCH_S = 400, 200
_LOGGED = {
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "kv_cache_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "kv_cache_tokens": r"GPU KV cache size: ([\d,]+) tokens",
}


@dataclass(frozen=True)
class Bench:
    """Where things are, and how much time is left."""

    folder: Path
    shape: Path
    until: float
    python: str
    flags: tuple[str, ...]
    concurrency: tuple[int, ...]
    rounds: int
    left_out: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, name: str, value: Any) -> None:
        write_json(self.out / f"{name}.json", value)

    def attempt(self, what: str, seconds: float, step: Callable[[], object]) -> None:
        """Do one step, unless it would end too late; what was not done is kept, with the reason."""
        late, why = time.monotonic() - STARTED + seconds > self.until, "no time left"
        say(f"{what}{': left out' if late else ''}")
        if not late:
            try:
                step()
                return
            except Exception as error:  # a step that fails leaves the others theirs
                why = f"{type(error).__name__}: {error}"
                say(f"{what}: {why}")
        self.left_out.append(f"{what}: {why}")
        self.write("left_out", self.left_out)


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:7.1f} s  {text}", flush=True)


@contextmanager
def vllm(bench: Bench, name: str, model: Path, port: int, *flags: str) -> Iterator[str]:
    """A server of the model, ready; its URL. Raises RuntimeError: it doesn't come up."""
    words = [bench.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--no-enable-prefix-caching", *flags, *bench.flags]
    log, url, began = bench.out / f"vllm-{name}.log", f"http://127.0.0.1:{port}", time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
    try:
        while not answers(url):
            if process.poll() is not None or time.monotonic() - began > READY_S:
                raise RuntimeError(f"{name} isn't ready: {log.read_text(errors='replace')[-600:]}")
            time.sleep(1)
        said, seconds = log.read_text(errors="replace"), time.monotonic() - began
        found = {each: re.findall(pattern, said) for each, pattern in _LOGGED.items()}
        told = {each: float(all_[-1].replace(",", "")) for each, all_ in found.items() if all_}
        bench.write(f"server-{name}", {"ready_s": seconds, "command": words[2:], **told})
        say(f"{name}: ready after {seconds:.0f} s, {told}")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def our_turn(
    bench: Bench, url: str, name: str, model: Path, n: int, requests: int
) -> dict[str, Any]:
    flags = ["--tokenizer-path", str(model), "--isl", "1024", "--osl", "128", "--seed", name[-1]]
    flags += ["--num-prompts", str(requests), "--concurrency", str(n), "--warmup-requests", "8"]
    return ours(bench, url, name, flags)


def ours(bench: Bench, url: str, name: str, flags: list[str]) -> dict[str, Any]:
    """The figures of one load of `llm_perf`."""
    file = bench.out / "runs" / f"{name}.json"
    words = [sys.executable, "-m", "llm_perf", "-u", url, "-i", "openai", "-m", MODEL, *flags]
    words += ["--export", "none", "--profile-export-file", str(file)]
    run(bench, name, words)
    kept: dict[str, Any] = json.loads(file.read_text())
    return kept


def their_turn(
    bench: Bench, url: str, name: str, model: Path, n: int, requests: int
) -> dict[str, Any]:
    words = [bench.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend"]
    words += ["openai", "--base-url", url, "--endpoint", "/v1/completions", "--model", MODEL]
    words += ["--tokenizer", str(model), "--dataset-name", "random", "--random-input-len", "1024"]
    words += ["--random-output-len", "128", "--ignore-eos", "--num-prompts", str(requests)]
    words += ["--max-concurrency", str(n), "--num-warmups", "8", "--seed", name[-1]]
    words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result"]
    words += ["--result-dir", str(bench.out / "runs"), "--result-filename", f"{name}.json"]
    run(bench, name, words)
    kept: dict[str, Any] = json.loads((bench.out / "runs" / f"{name}.json").read_text())
    return kept


def run(bench: Bench, name: str, words: list[str], seconds: float = BENCH_S) -> None:
    """One command, its output in a file. Raises RuntimeError with the end of it."""
    (bench.out / "runs").mkdir(exist_ok=True)
    log = bench.out / "runs" / f"{name}.log"
    with log.open("wb") as file:
        code = subprocess.run(words, stdout=file, stderr=file, timeout=seconds).returncode
    if code:
        raise RuntimeError(f"{name}: exit code {code}: {log.read_text(errors='replace')[-500:]}")

"""Memory of a long run: llm_perf against its null server, its resident size sampled each second.

    python benchmarks/soak.py --duration 600           # 32 streams, 64 tokens 20 ms apart
    python benchmarks/soak.py --requests 1000000       # one token each, as fast as they go

Prints the size after a minute, what it grew by until the load's end, and the peak, in MiB, of the
client alone (the null server is another process); also what the journal and the results hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from llm_perf.selftest.nullserver import MODEL
from llm_perf.selftest.selftest import null_server

TOKENIZER = Path(__file__).parents[1] / "examples/number-words/model"
MIB = 2**20
PROMPTS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, help="seconds")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--answer", help="null server's prompt: messages, µs between them")
    options = parser.parse_args()
    answer = options.answer or ("64 20000" if options.duration else "1 0")
    extent = (
        f"--duration={options.duration}"
        if options.duration
        else f"--num-requests={options.requests}"
    )
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, null_server() as url:
        prompts = Path(folder, "prompts.jsonl")
        line = json.dumps({"text_input": answer, "max_tokens": int(answer.split()[0])})
        prompts.write_text(f"{line}\n" * PROMPTS)
        words = [sys.executable, "-m", "llm_perf", "-u", url, "-m", MODEL, extent]
        words += ["--tokenizer-path", str(TOKENIZER), "--input-data", str(prompts)]
        words += [f"--concurrency={options.concurrency}", f"--workers={options.workers}"]
        words += [f"--profile-export-file={folder}/out/run.json", "--export=none"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
            sizes = watch(running.pid, Path(folder, "out", "run.json"))
            out, _ = running.communicate()
        print(out)
        report(sizes, running.returncode)


def watch(pid: int, results: Path) -> list[tuple[float, int, bool]]:
    """Seconds, resident bytes of the process and its children, and whether the load is over."""
    process, begun = psutil.Process(pid), time.monotonic()
    sizes: list[tuple[float, int, bool]] = []
    last = 0
    while True:
        try:
            family = [process, *process.children(recursive=True)]
            size = sum(each.memory_info().rss for each in family)
        except psutil.NoSuchProcess:
            return sizes
        if size == 0 or process.status() == psutil.STATUS_ZOMBIE:
            return sizes
        journal = results.with_suffix(".journal.jsonl")
        grown = journal.stat().st_size if journal.exists() else last
        sizes.append((time.monotonic() - begun, size, grown == last > 0))
        last = grown
        time.sleep(1.0)


def report(sizes: list[tuple[float, int, bool]], code: int) -> None:
    """Print the figures."""
    load = [(at, size) for at, size, over in sizes if not over]
    minute = next((size for at, size in load if at >= 60), None)
    rest = [size for at, size in load if at >= 60]
    figures = {
        "exit_code": code,
        "load_s": round(load[-1][0], 1),
        "all_s": round(sizes[-1][0], 1),
        "after_a_minute_mib": minute and round(minute / MIB, 1),
        "grown_until_the_end_of_the_load_mib": minute and round((max(rest) - minute) / MIB, 1),
        "peak_of_the_load_mib": round(max(size for _, size in load) / MIB, 1),
        "peak_mib": round(max(size for _, size, _ in sizes) / MIB, 1),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

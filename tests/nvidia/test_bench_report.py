"""trtllm-bench's own report of known requests is read with the figures that we compute of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_perf.figures.metrics import compute_metrics
from llm_perf.report.read import read_results
from tests.client.runs import asked

SAME = (  # one formula, ours and theirs
    ("request_throughput", "avg"),
    ("output_token_throughput", "avg"),
    ("total_token_throughput", "avg"),
    ("output_token_throughput_per_user", "avg"),
    ("output_token_throughput_per_user_e2e", "avg"),
    ("requests_in_flight", "avg"),
    ("output_sequence_length", "avg"),
    *((metric, each)
      for metric in ("time_to_first_token", "inter_token_latency", "request_latency")
      for each in ("avg", "min", "max")),
)  # fmt: skip


def test_their_figures_are_ours(tree: Path, tmp_path: Path) -> None:
    code = tree / "tensorrt_llm/bench/dataclasses/reporting.py"
    if not code.is_file() or "class PerfItemTuple(" not in code.read_text(encoding="utf-8"):
        pytest.skip("the release's trtllm-bench has no such report")
    ours = [
        asked(n, chunks_ms=(130 + 7 * n, 170 + 7 * n, 260 + 11 * n), tokens=3 + n, sent_ms=100 + n)
        for n in range(40)
    ]
    rows = [[r.sent_ns, r.chunk_ns[0], r.chunk_ns[-1], 3, r.output_tokens] for r in ours]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("print_bench_report.py"), tree],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    path = tmp_path / "fp8.json"
    path.write_text(done.stdout)
    (line,) = read_results([str(path)])
    theirs, metrics = line.record["metrics"], compute_metrics(ours)
    for metric, statistic in SAME:
        assert theirs[metric][statistic] == pytest.approx(metrics[metric][statistic]), metric
    # element int(n·p) of the sorted values is at most one rank above ours
    ranks = sorted(r.ttft_ns * 1e-6 for r in ours if r.ttft_ns)
    assert theirs["time_to_first_token"]["p95"] == pytest.approx(ranks[38])
    assert line.record["target"]["gpus"] == 2
    assert line.record["target"]["cell"]["max_batch_size"] == 3840
    assert line.record["target"]["cell"]["precision"] == "fp8"

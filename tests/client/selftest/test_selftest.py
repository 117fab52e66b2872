"""The self-test: its figures come from a real run of the client against a real null server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_perf.api import Concurrency, Conditions, Endpoint, Workload, measure
from llm_perf.selftest.selftest import null_server
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import Prompt


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with null_server() as url:
        yield url


@pytest.mark.parametrize("transport", ["grpc", "grpc.aio"])
def test_the_null_server_sends_what_it_is_asked_for(
    server: str, transport: str, tokenizer_folder: Path
) -> None:
    wanted = [3, 1, 70]
    prompts = tuple(Prompt(i, f"{n} 100", 1, n) for i, n in enumerate(wanted))
    workload = Workload("null", prompts, "", load_tokenizer(tokenizer_folder))
    endpoint = Endpoint(server, "grpc", "null", transport=transport)
    run = measure(endpoint, workload, Concurrency(3), Conditions(request_timeout_s=20))
    assert [record.status.value for record in run.records] == ["ok"] * 3
    assert [record.server_tokens for record in run.records] == wanted
    for record in run.records:
        written = [int(record.answer[i : i + 20]) for i in range(0, len(record.answer), 20)]
        assert len(written) == len(record.chunk_ns)
        assert all(w <= at for w, at in zip(written, record.chunk_ns, strict=True))
        assert written == sorted(written)


def test_the_command_prints_error_and_limit_and_writes_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_perf.cli.main", "selftest", "--json", "self.json"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "client"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "128 streams" in done.stdout and "Response rate limit:" in done.stdout
    found = json.loads((tmp_path / "self.json").read_text())
    assert [timing["responses"] for timing in found["timings"]] == [8 * 64, 32 * 64, 128 * 64]
    for timing in found["timings"]:
        assert 0 < timing["error_p50_ms"] <= timing["error_p99_ms"]
    flood = found["flood"]
    assert found["responses_per_core_s"] == pytest.approx(1e6 / flood["cpu_us_per_response"])

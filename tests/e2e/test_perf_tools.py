"""NVIDIA's own clients, unmodified, against the ensembles; left out where they are not installed.

perf_analyzer comes from the wheel tritonclient==2.50.0 (``benchmarks/peers.py`` fetches it),
genai-perf==0.0.16 from an environment of its own: on PATH, or named by GENAI_PERF.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import CACHE, perf_analyzer
from llm_perf.errors import UserError
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

MODEL = Path(__file__).parents[2] / "examples/number-words/model"
GENAI_PERF = os.environ.get("GENAI_PERF") or shutil.which("genai-perf")
REQUESTS = 40
MIN_TOKENS = {"0.11.0": "min_length", "1.2": "min_tokens"}


def lacking() -> str | None:
    """Why perf_analyzer can't run here; it is only fetched where it is asked for."""
    if not (CACHE / "perf_analyzer-2.50.0" / "perf_analyzer").exists():
        return "perf_analyzer isn't here; benchmarks/client.py fetches it"
    try:
        perf_analyzer()
    except (OSError, subprocess.SubprocessError, UserError):
        return "perf_analyzer doesn't run here; install Debian's libb64-0d"
    return None


WHY = lacking()
pytestmark = pytest.mark.skipif(WHY is not None, reason=WHY or "")
needs_genai_perf = pytest.mark.skipif(not GENAI_PERF, reason="no genai-perf")


@pytest.fixture(
    scope="module",
    params=[("0.11.0", True), ("0.11.0", False), ("1.2", True), ("1.2", False)],
    ids=lambda served: f"{served[0]} {'streaming' if served[1] else 'unary'}",
)
def served(
    request: pytest.FixtureRequest, repository: Callable[..., Path], triton_cache: Path
) -> Iterator[tuple[str, bool, str]]:
    """The release, whether it streams, and the server's gRPC address."""
    release, streams = request.param
    folder = repository(release, decoupled_mode=streams, exclude_input_in_output=True)
    log = folder.with_name(f"{folder.name}.log")
    with ModelServer(folder, ports=free_ports(), log_file=log, cache_dir=triton_cache) as server:
        server.wait_ready(60)
        yield release, streams, server.grpc_url


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Run to the end; the profile that perf_analyzer exported."""
    binary, environment = perf_analyzer()
    environment["PATH"] = os.pathsep.join([str(binary.parent), environment["PATH"]])
    done = subprocess.run(
        command,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [export] = folder.rglob("profile_export.json")
    found: dict[str, Any] = json.loads(export.read_text("utf-8"))
    return found


def check(profile: dict[str, Any], streams: bool, tokens: int) -> None:
    """See that each request has its answer, and that no tensor that is declared stayed away."""
    requests = profile["experiments"][0]["requests"]
    assert len(requests) == REQUESTS
    for each in requests:
        outputs = [output for output in each["response_outputs"] if output]
        texts = [output["text_output"] for output in outputs]
        lengths = [int(output["sequence_length"]) for output in outputs]
        assert sum(lengths) == tokens
        assert len(texts) >= (tokens if streams else 1)
        assert any(texts)
        for name in ("cum_log_probs", "output_log_probs", "context_logits", "generation_logits"):
            assert {float(output[name]) for output in outputs} == {0.0}


@needs_genai_perf
def test_genai_perf_measures_as_its_guide_for_tensorrt_llm_says(
    served: tuple[str, bool, str], tmp_path: Path
) -> None:
    _, streams, url = served
    command = f"""profile -m ensemble --backend tensorrtllm -u {url} --num-prompts 20
        --random-seed 123 --synthetic-input-tokens-mean 32 --synthetic-input-tokens-stddev 0
        --output-tokens-mean 16 --output-tokens-stddev 0 --output-tokens-mean-deterministic
        --request-count {REQUESTS} --concurrency 4 --tokenizer {MODEL}""".split()
    if streams:
        command.append("--streaming")
    profile = run([str(GENAI_PERF), *command], tmp_path)
    check(profile, streams, tokens=16)
    [figures] = tmp_path.rglob("profile_export_genai_perf.json")
    said = json.loads(figures.read_text("utf-8"))
    assert said["request_count"]["avg"] == REQUESTS
    assert said["input_sequence_length"]["avg"] == 32
    assert 8 <= said["output_sequence_length"]["avg"] <= 32  # the text's tokens, counted again
    if streams:
        assert 0 < said["time_to_first_token"]["avg"] < said["request_latency"]["avg"]
        assert said["inter_token_latency"]["avg"] > 0


def test_perf_analyzer_measures_as_its_guide_for_tensorrt_llm_says(
    served: tuple[str, bool, str], tmp_path: Path
) -> None:
    release, streams, url = served
    ask = {"text_input": ["6538 in words:"], "max_tokens": [16], MIN_TOKENS[release]: [16]}
    if streams:
        ask["stream"] = [True]
    data = tmp_path / "prompts.json"
    data.write_text(json.dumps({"data": [ask]}))
    command = f"""-m ensemble -u {url} -i grpc --async --input-data {data}
        --shape text_input:1 --shape max_tokens:1 --concurrency-range 4
        --request-count {REQUESTS} --stability-percentage 999
        --profile-export-file {tmp_path / "profile_export.json"}""".split()
    if streams:
        command.append("--streaming")
    binary, _ = perf_analyzer()
    check(run([str(binary), *command], tmp_path), streams, tokens=16)

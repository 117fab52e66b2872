"""The commands as a person types them: real processes, real modelopt, real Triton."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llm_perf.workload.workload import load_workload
from tests.processes import command_line
from trtllm_deploy.backends.repository import MODELS
from trtllm_deploy.machine.ports import Ports, free_ports

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "number-words"
BIN = Path(sys.executable).parent
CELL = "number_words_fp16_tp1_pp1_isl512_osl64_bs4"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*arguments: object, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False
    )


def write_deployment(folder: Path, **changed: Any) -> Path:
    """The quickstart, cut down to one cell, with some keys changed."""
    spec = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    spec["models"]["number_words"]["source"] = str(EXAMPLE / "model")
    spec["calibration"]["data"] = str(EXAMPLE / "calibration.jsonl")
    spec["measure"] = {"data": str(EXAMPLE / "prompts.jsonl"), "concurrency": [8]}
    spec["precisions"] = ["fp16"]
    spec["matrix"]["max_batch_size"] = [4]
    spec.update(changed)
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def deployment(workspace: Path) -> Path:
    """A deployment file whose one cell is built in ``workspace``."""
    file = write_deployment(workspace)
    done = run("trtllm-deploy", "build", file, "--workspace", workspace)
    assert done.returncode == 0, done.stderr
    return file


def artifacts(workspace: Path) -> dict[Path, float]:
    """Each artifact and when its manifest was written."""
    found = (workspace / "store").glob("*/*/manifest.json")
    return {path.parent.relative_to(workspace): path.stat().st_mtime for path in found}


def test_a_second_build_makes_nothing(workspace: Path, deployment: Path) -> None:
    before = artifacts(workspace)
    assert {path.parts[1] for path in before} == {"fetch", "checkpoint", "engine", "repository"}
    done = run("trtllm-deploy", "build", deployment, "--workspace", workspace)
    assert done.returncode == 0, done.stderr
    assert artifacts(workspace) == before


def test_another_batch_size_needs_no_other_checkpoint(
    workspace: Path, deployment: Path, tmp_path: Path
) -> None:
    before = artifacts(workspace)
    matrix = {"max_batch_size": [4, 2], "isl_osl": ["512,64"]}
    other = write_deployment(tmp_path, matrix=matrix)
    done = run("trtllm-deploy", "build", other, "--workspace", workspace)
    assert done.returncode == 0, done.stderr
    new = set(artifacts(workspace)) - set(before)
    assert sorted(path.parts[1] for path in new) == ["engine", "repository"]


def test_the_names_people_use_lead_to_the_artifacts(workspace: Path, deployment: Path) -> None:
    repository = workspace / "ensemble_models" / CELL
    models = {path.name for path in repository.iterdir() if path.is_dir()}
    assert models == set(MODELS)
    engine = json.loads((workspace / "engines" / CELL / "config.json").read_text())
    assert engine["build_config"]["max_batch_size"] == 4
    assert engine["pretrained_config"]["rotary_base"] == 1_000_000
    assert not repository.readlink().is_absolute()


def test_a_build_killed_half_way_is_finished_by_the_next(tmp_path: Path) -> None:
    file = write_deployment(tmp_path)
    workspace = tmp_path / "workspace"
    command = [str(BIN / "trtllm-deploy"), "build", str(file), "--workspace", str(workspace)]
    building = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    while not children:  # the checkpoint's process is at work
        assert building.poll() is None, "the build ended before it could be killed"
        children = psutil.Process(building.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(1)
    building.kill()
    building.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone and not alive, "a child outlived its build"
    assert not list((workspace / "store" / "checkpoint").glob("*/manifest.json"))
    done = run(*command[:1], *command[1:])
    assert done.returncode == 0, done.stderr
    assert {path.parts[1] for path in artifacts(workspace)} >= {"checkpoint", "repository"}
    leftovers = list((workspace / "store").rglob("*.tmp-*"))
    assert leftovers == []


@pytest.fixture(scope="module")
def served(workspace: Path, deployment: Path) -> Iterator[Ports]:
    """``trtllm-deploy serve`` in another process; stopped as Ctrl-C stops it."""
    ports = free_ports()
    server = serve(deployment, workspace, ports)
    wait_until_ready(server)
    yield ports
    tree = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=30)
    assert server.returncode == 0, err
    assert "stopped" in out
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive


def serve(deployment: Path, workspace: Path, ports: Ports) -> subprocess.Popen[str]:
    flags = ("--grpc-port", "--http-port", "--metrics-port")
    pairs = zip(flags, map(str, astuple(ports)), strict=True)
    command = [
        *(str(BIN / "trtllm-deploy"), "serve", str(deployment), CELL),
        *("--workspace", str(workspace)),
        *(text for pair in pairs for text in pair),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    )


def wait_until_ready(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        said.append(line)
        if line.startswith("ready"):
            return
    assert server.stderr is not None
    pytest.fail(f"{''.join(said)}{server.stderr.read()}")


def test_llm_perf_measures_a_served_cell(served: Ports, tmp_path: Path) -> None:
    export = tmp_path / "out.json"
    done = run(
        *("llm_perf", "-u", f"127.0.0.1:{served.grpc}", "-i", "grpc", "-m", "ensemble"),
        *("--concurrency", "4,8", "--tokenizer-path", EXAMPLE / "model"),
        *("--input-data", EXAMPLE / "prompts.jsonl", "--profile-export-file", export),
    )
    assert done.returncode == 0, done.stderr
    for row in ("Time to first token (ms)", "Inter token latency (ms)", "Request latency (ms)"):
        assert done.stdout.count(row) >= 2
    prompts = load_workload(EXAMPLE / "prompts.jsonl", EXAMPLE / "model").prompts
    for number in (4, 8):
        result = json.loads((tmp_path / f"out_concurrency{number}.json").read_text())
        assert result["requests_ok"] == len(prompts)
        assert result["requests_failed"] == 0
        assert result["time_to_first_token"]["p50"] > 0
        lines = (tmp_path / f"out_concurrency{number}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        right = sum(row["answer"].strip() == row["reference"] for row in rows)
        assert right / len(prompts) >= 0.99


def test_generate_stream_streams_over_http(served: Ports) -> None:
    body = {"text_input": "4711 用中文:", "max_tokens": 40, "stream": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{served.http}/v2/models/ensemble/generate_stream",
        json.dumps(body).encode(),
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        events = re.findall(r"^data: (.*)$", answer.read().decode(), re.MULTILINE)
    texts = [json.loads(event)["text_output"] for event in events]
    assert "".join(texts) == "四千七百一十一"
    assert len(texts) > 5


def test_a_port_in_use_is_said_before_anything_starts(
    served: Ports, deployment: Path, workspace: Path
) -> None:
    ports = free_ports()
    done = run(
        *("trtllm-deploy", "serve", deployment, CELL, "--workspace", workspace),
        *("--grpc-port", served.grpc, "--http-port", ports.http, "--metrics-port", ports.metrics),
    )
    assert done.returncode == 2
    assert f"port {served.grpc} is already in use" in done.stderr
    assert "starting" not in done.stdout


def test_sigterm_stops_the_server_and_all_its_children(workspace: Path, deployment: Path) -> None:
    ports = free_ports()
    server = serve(deployment, workspace, ports)
    wait_until_ready(server)
    tree = psutil.Process(server.pid).children(recursive=True)
    assert any("triton_python_backend_stub" in " ".join(command_line(each)) for each in tree)
    server.terminate()
    server.communicate(timeout=30)
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", ports.grpc))


def test_run_ends_with_a_table_and_a_line_of_the_ledger(workspace: Path, deployment: Path) -> None:
    done = run("trtllm-deploy", "run", deployment, "--workspace", workspace)
    assert done.returncode == 0, done.stderr
    assert "TTFT p50" in done.stdout
    (line,) = (workspace / "results" / "ledger.jsonl").read_text().splitlines()
    row = json.loads(line)
    cell = row["target"]["cell"]
    assert row["target"]["name"] == CELL and row["target"]["protocol"] == "grpc"
    assert (cell["backend"], cell["precision"], cell["max_batch_size"]) == ("reference", "fp16", 4)
    assert (row["load"]["kind"], row["load"]["value"]) == ("concurrency", 8)
    assert row["score"]["value"] >= 0.99
    assert row["requests_failed"] == 0
    assert row["metrics"]["inter_token_latency"]["avg"] > 0
    assert row["server"]["name"] == "triton" and row["server_metrics"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"precisions": ["fp61"]}, "there is no precision 'fp61'; did you mean 'fp16'?"),
        ({"backend": "referense"}, "there is no backend 'referense'; did you mean 'reference'?"),
        ({"precision": ["fp16"]}, "unknown key 'precision'; did you mean 'precisions'?"),
        ({"models": {"m": {"source": "."}}}, "has no config.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    file = write_deployment(tmp_path, **changed)
    done = run("trtllm-deploy", "build", file, "--workspace", tmp_path / "workspace")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line
    assert str(file) in line
    assert not (tmp_path / "workspace").exists()


def wrong(said: str) -> str:
    """The first line that isn't a note."""
    return next(line for line in said.splitlines() if ": note: " not in line)


def test_a_model_whose_tokenizer_does_not_load_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (EXAMPLE / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "tokenizer.json").write_text("{")
    source = {"number_words": {"source": str(model)}}
    file = write_deployment(tmp_path, models=source, precisions=["fp8"])
    done = run("trtllm-deploy", "build", file, "--workspace", tmp_path / "workspace")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "tokenizer" in wrong(done.stderr)


def test_a_calibration_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    data = tmp_path / "calibration.jsonl"
    data.write_text('{"text_input": "1 in words: one"}\n{"text_input": \n')
    file = write_deployment(tmp_path, precisions=["fp8"], calibration={"data": str(data)})
    done = run("trtllm-deploy", "build", file, "--workspace", tmp_path / "workspace")
    assert done.returncode == 2
    assert f"{data}:2: not JSON" in wrong(done.stderr)

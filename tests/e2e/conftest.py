"""Real servers for the end-to-end tests: the number-words model behind real Triton."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.repository import render_repository
from trtllm_deploy.backends.server import Chosen
from trtllm_deploy.checkpoint.quantize import CheckpointJob, run_checkpoint
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer
from trtllm_deploy.spec.settings import TritonSettings

MODEL = Path(__file__).parents[2] / "examples/number-words/model"
BUILD_CONFIG = {
    "max_input_len": 256,
    "max_seq_len": 320,
    "max_batch_size": 8,
    "max_beam_width": 1,
    "max_num_tokens": 1024,
    "plugin_config": {"tokens_per_block": 32},
}


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder of the reference backend, from a checkpoint that modelopt exported."""
    root = tmp_path_factory.mktemp("engine")
    checkpoint = root / "checkpoint"
    checkpoint.mkdir()
    run_checkpoint(
        CheckpointJob(MODEL, checkpoint, "fp16"), log_file=root / "log", on_line=lambda _: None
    )
    config = {
        "version": "1.2",
        "pretrained_config": json.loads((checkpoint / "config.json").read_text()),
        "build_config": BUILD_CONFIG,
    }
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


Serve = Callable[..., ModelServer]


@pytest.fixture(scope="session")
def repository(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``repository(release, **settings)``: a rendered repository on the engine."""

    def render(release: str, **settings: Any) -> Path:
        target = tmp_path_factory.mktemp(f"repository-{release}")
        render_repository(
            RepositoryJob(
                target,
                release,
                engine_dir,
                MODEL,
                8,
                TritonSettings(**{"bls_instance_count": 1, **settings}),
            ),
            "reference",
        )
        return target

    return render


def _server(repository: Path, cache: Path) -> ModelServer:
    log_file = repository.with_name(f"{repository.name}.log")
    records = {"TRTLLM_ITERATIONS_FILE": str(log_file.with_suffix(".iterations"))}
    chosen = Chosen(variables=records)
    ports = free_ports()
    return ModelServer(repository, ports=ports, log_file=log_file, cache_dir=cache, chosen=chosen)


@pytest.fixture(scope="module")
def streaming(repository: Callable[..., Path], triton_cache: Path) -> Iterator[ModelServer]:
    """A decoupled server with the tensors of the last release."""
    with _server(repository("1.2", enable_kv_cache_reuse=True), triton_cache) as server:
        server.wait_ready(60)
        yield server


@pytest.fixture(scope="module")
def unary(repository: Callable[..., Path], triton_cache: Path) -> Iterator[ModelServer]:
    """A server that answers once per request, with the tensors of the first release."""
    settings = {"decoupled_mode": False, "exclude_input_in_output": True}
    with _server(repository("0.11.0", **settings), triton_cache) as server:
        server.wait_ready(60)
        yield server

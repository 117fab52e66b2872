from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import EngineJob, RepositoryJob
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment

BACKEND = BACKENDS["llmapi"]
SPEC: dict[str, Any] = {
    "backend": "llmapi",
    "models": {"tiny": {"source": "model", "tp": 2}},
    "precisions": ["fp8"],
    "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
}


def load(folder: Path, **changed: object) -> DeploymentFile:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    (folder / "d.yaml").write_text(yaml.safe_dump({**SPEC, **changed}, sort_keys=False))
    return load_deployment(folder / "d.yaml")


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the container has: the llmapi model with its config and its code."""
    model = tmp_path / "all_models" / "llmapi" / "tensorrt_llm"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "tensorrt_llm"\nbackend: "python"\n')
    (model / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    (model / "1" / "helpers.py").write_text("")
    (model / "1" / "model.yaml").write_text("model: someone/else\n")
    monkeypatch.setenv("TRTLLM_ALL_MODELS", str(tmp_path / "all_models"))
    return model


def make(folder: Path, file: DeploymentFile) -> Path:
    engine, target = folder / "engine", folder / "repository"
    for each in (engine, target):
        each.mkdir()
    cell = file.cells()[0]
    config = BACKEND.build_config(file, cell)
    job = EngineJob(folder / "model", engine, file.deployment.release, config)
    assert BACKEND.command(job) is None
    BACKEND.make_engine(job, folder / "log", lambda _: None)
    BACKEND.make_repository(
        RepositoryJob(target, "1.2", engine, folder / "model", 4, file.deployment.triton)
    )
    return target


@pytest.mark.usefixtures("container")
def test_one_deployment_file_serves_through_the_llm_api(tmp_path: Path) -> None:
    triton = {
        "enable_kv_cache_reuse": True,
        "kv_cache_free_gpu_mem_fraction": 0.8,
        "batch_scheduler_policy": "max_utilization",
        "enable_chunked_context": True,
        "max_attention_window_size": [4096, 8192],
        "kv_cache_host_memory_bytes": "1GiB",
        "max_beam_width": 2,
        "cancellation_check_period_ms": 50,
    }
    target = make(tmp_path, load(tmp_path, triton=triton, build={"max_num_tokens": 512}))
    assert {path.name for path in target.iterdir()} == {"tensorrt_llm"}
    model = target / "tensorrt_llm"
    assert {path.name for path in (model / "1").iterdir()} == {
        "helpers.py",
        "model.py",
        "model.yaml",
    }
    assert yaml.safe_load((model / "1" / "model.yaml").read_text()) == {
        "model": str(tmp_path / "engine" / "checkpoint"),
        "backend": "pytorch",
        "max_batch_size": 4,
        "max_input_len": 128,
        "max_seq_len": 192,
        "max_num_tokens": 512,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "max_beam_width": 2,
        "enable_chunked_prefill": True,
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.8,
            "enable_block_reuse": True,
            "host_cache_size": 2**30,
            "max_attention_window": [4096, 8192],
            "tokens_per_block": 32,
        },
        "triton_config": {
            "max_batch_size": 0,
            "decoupled": True,
            "cancellation_check_period_ms": 50,
        },
    }
    config = text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())
    assert config.model_transaction_policy.decoupled


@pytest.mark.usefixtures("container")
def test_its_engine_is_a_link_to_the_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, load(tmp_path))
    assert (tmp_path / "engine" / "checkpoint").resolve() == tmp_path / "model"
    config = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert config["pretrained_config"]["architectures"] == ["Qwen2ForCausalLM"]


def test_the_containers_model_is_missed_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_ALL_MODELS", str(tmp_path))
    with pytest.raises(UserError, match=r"isn't there; .*TRTLLM_ALL_MODELS"):
        make(tmp_path, load(tmp_path))


def test_a_broken_config_of_the_container_is_told(tmp_path: Path, container: Path) -> None:
    (container / "config.pbtxt").write_text("name: tensorrt_llm")
    with pytest.raises(UserError, match=r"config\.pbtxt:1"):
        make(tmp_path, load(tmp_path))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"precisions": ["fp16", "int8_sq"]}, "llmapi can't load int8_sq; choose from"),
        ({"checkpoint_with": "scripts"}, "write 'checkpoint_with: modelopt'"),
        ({"triton": {"multi_block_mode": True}}, "triton.multi_block_mode: llmapi has no such"),
    ],
)
def test_what_the_llm_api_cannot_load_is_refused(
    tmp_path: Path, changed: dict[str, object], says: str
) -> None:
    file = load(tmp_path, **changed)
    with pytest.raises(UserError, match=says):
        BACKEND.check(file, file.cells(), (), {})

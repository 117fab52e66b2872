"""Every architecture: what is exported reads back to the model, and verification holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modelopt.torch.quantization.nn import QuantModuleRegistry
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llm_perf.errors import UserError
from tests.deploy.tiny_models import save_tiny
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, former_names
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob, check_job
from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint
from trtllm_deploy.checkpoint.readback import load_model
from trtllm_deploy.checkpoint.source_faults import source_fault
from trtllm_deploy.checkpoint.verify import Task, verify_checkpoint
from trtllm_deploy.spec.precision import PRECISIONS, find_precision

pytestmark = pytest.mark.usefixtures("one_thread")
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)

IDS = torch.arange(1, 91).reshape(3, 30)
# for each split another of what models have: odd vocabulary, ties, head sizes, repeated heads
ODD: dict[tuple[int, int], dict[str, Any]] = {
    (1, 1): {"vocab_size": 131, "head_dim": 48, "eos_token_id": [0, 3]},
    (2, 2): {"tie_word_embeddings": True},
    (4, 1): {"num_attention_heads": 8, "head_dim": 32},
}

Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    made: dict[str, Path] = {}

    def find(name: str, **change: Any) -> Path:
        key = f"{name}{change}"
        if key not in made:
            made[key] = save_tiny(tmp_path_factory.mktemp(name), name, **change)
        return made[key]

    return find


def export(
    folder: Path, target: Path, precision: str, tp: int = 1, pp: int = 1, **more: Any
) -> Any:
    calibration = Calibration(folder / "prompts.jsonl", 3, 32)
    job = CheckpointJob(folder, target, precision, tp, pp, calibration, **more)
    check_job(job)
    return export_checkpoint(job, lambda _: None)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def original(folder: Path) -> torch.Tensor:
    # eager: transformers' other attentions leave out what Gemma 2 caps
    return logits(
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    )


@each_architecture
@pytest.mark.parametrize(("tp", "pp"), ODD)
def test_fp16_reads_back_to_the_model_whatever_the_split(
    model: Model, tmp_path: Path, name: str, tp: int, pp: int
) -> None:
    odd, pp = ODD[tp, pp], pp if ARCHITECTURES[name].pp else 1
    if not ARCHITECTURES[name].head_size:
        odd = {key: value for key, value in odd.items() if key != "head_dim"}
    folder = model(name, **odd)
    export(folder, tmp_path / "made", "fp16", tp, pp)
    # 1 + weight of a norm is rounded to float16 once more
    near = 1e-2 if ARCHITECTURES[name].norm_offset else 1e-3
    assert torch.allclose(logits(load_model(tmp_path / "made")), original(folder), atol=near)


@each_architecture
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8_wo"])
def test_a_quantized_checkpoint_is_verified_and_swapped_ranks_are_found(
    model: Model, tmp_path: Path, name: str, precision: str
) -> None:
    folder, made = model(name), tmp_path / "made"
    kv = "fp8" if precision == "fp8" else None
    measured = export(folder, made, precision, 2, 1, kv_cache_dtype=kv)
    task = Task(
        folder, made, find_precision(precision), IDS.tolist(), 0.6, measured, kv_cache_dtype=kv
    )
    report = verify_checkpoint(task)
    assert report["worst_weight"]["error"] < 0.05
    first, second = (made / f"rank{rank}.safetensors" for rank in (0, 1))
    first.rename(made / "aside")
    second.rename(first)
    (made / "aside").rename(second)
    with pytest.raises(UserError, match="ranks are swapped"):
        verify_checkpoint(task)


@pytest.fixture
def a_job_of_its_own() -> None:
    """As in a process of its own: modelopt keeps the classes that it has quantized."""
    experts = [
        kind
        for kind in QuantModuleRegistry._registry
        if kind.__name__.startswith(("Mixtral", "Qwen2Moe"))
    ]
    for kind in experts:
        QuantModuleRegistry.unregister(kind)


@each_architecture
@pytest.mark.usefixtures("a_job_of_its_own")
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_checkpoint_for_the_llm_api_is_verified(
    model: Model, tmp_path: Path, name: str, precision: str
) -> None:
    folder, made = model(name), tmp_path / "made"
    measured = export(folder, made, precision, kind="hf")
    task = Task(folder, made, find_precision(precision), IDS.tolist(), 0.6, measured, as_hf=True)
    assert verify_checkpoint(task)["worst_weight"]["error"] < 0.05


@each_architecture
def test_what_its_class_has_not_is_refused_before_the_start(model: Model, name: str) -> None:
    config = json.loads((model(name) / "config.json").read_text())
    ours = ARCHITECTURES[name]
    cases = [({field: "other"}, "fp16", field) for field in ours.only]
    cases += [({}, each, each) for each, p in PRECISIONS.items() if p.quant_algo in ours.without]
    cases += [({}, "fp16", "pipeline stages")] * (not ours.pp)
    cases += [({"head_dim": 48}, "fp16", "head_dim")] * (not ours.head_size)
    for change, precision, told in cases:
        asked, pp = {**config, **change}, 2 if told == "pipeline stages" else 1
        fault = source_fault(asked, "trtllm", find_precision(precision), 1, pp)
        assert fault is not None and told in fault.what
        assert source_fault(asked, "hf", find_precision("fp16"), 1, 1) is None
    assert source_fault(config, "trtllm", find_precision("fp16"), 1, 1) is None


def test_experts_under_former_names_are_the_same_model(model: Model, tmp_path: Path) -> None:
    """What TensorRT-LLM before 0.16.0 calls the shared expert, and weights that add up to 1."""
    name = "Qwen2MoeForCausalLM"
    folder, made = model(name, norm_topk_prob=True), tmp_path / "made"
    names = former_names(name, (0, 15, 0))
    assert names and not former_names(name, (0, 16, 0))
    export(folder, made, "fp8", tp=2, names=names)
    with safe_open(made / "rank1.safetensors", "pt") as rank:
        assert "transformer.layers.1.shared_expert.fc.weight" in rank.keys()  # noqa: SIM118
        assert not [each for each in rank.keys() if "mlp.shared" in each]  # noqa: SIM118
    config = json.loads((made / "config.json").read_text())
    assert config["moe"]["normalization_mode"] == 1
    assert "transformer.layers.1.shared_expert_gate" in config["quantization"]["exclude_modules"]
    task = Task(folder, made, find_precision("fp8"), IDS.tolist(), 0.6)
    assert verify_checkpoint(task)["worst_weight"]["error"] < 0.05

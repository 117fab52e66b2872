"""Against published figures: parameter counts of the models' cards, KV cache sizes of papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.plan.memory import (
    WEIGHT_BYTES,
    MemoryPlan,
    kv_bytes_per_token,
    parse_size,
    plan_memory,
    weight_bytes,
)
from trtllm_deploy.plan.shape import ModelShape, read_shape
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.spec.precision import PRECISIONS

EXAMPLES = Path(__file__).parents[3] / "examples"
QWEN2 = "Qwen2ForCausalLM"
QWEN2_7B = ModelShape(
    28, 3584, 28, 4, 128, 18944, 152064, tied=False, biases=True, architecture=QWEN2
)
QWEN2_72B = ModelShape(
    80, 8192, 64, 8, 128, 29568, 152064, tied=False, biases=True, architecture=QWEN2
)
QWEN2_HALF_B = ModelShape(24, 896, 14, 2, 64, 4864, 151936, tied=True, biases=True)
LLAMA_2_7B = ModelShape(32, 4096, 32, 32, 128, 11008, 32000, tied=False, biases=False)
LLAMA_3_70B = ModelShape(80, 8192, 64, 8, 128, 28672, 128256, tied=False, biases=False)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (QWEN2_7B, 7_615_616_512),
        (QWEN2_72B, 72_706_203_648),
        (QWEN2_HALF_B, 494_032_768),
        (LLAMA_2_7B, 6_738_415_616),
        (LLAMA_3_70B, 70_553_706_496),
    ],
)
def test_parameter_counts_are_those_of_the_published_weights(
    shape: ModelShape, parameters: int
) -> None:
    assert shape.parameters == parameters


@pytest.mark.parametrize(
    ("shape", "kib"), [(QWEN2_7B, 56), (LLAMA_3_70B, 320), (QWEN2_72B, 320), (LLAMA_2_7B, 512)]
)
def test_the_kv_cache_of_a_token_is_as_large_as_published(shape: ModelShape, kib: int) -> None:
    assert kv_bytes_per_token(shape, 1, 1, None) == kib * 1024
    assert kv_bytes_per_token(shape, 1, 1, "fp8") == kib * 512
    assert kv_bytes_per_token(shape, 4, 1, None) == kv_bytes_per_token(shape, 2, 2, None)


def test_weights_on_one_gpu_are_two_bytes_for_every_parameter() -> None:
    for shape in (QWEN2_7B, QWEN2_72B, LLAMA_3_70B):
        assert weight_bytes(shape, None, 1, 1) == 2 * shape.parameters


def test_eight_bits_halve_all_but_embedding_and_head() -> None:
    full, half = (weight_bytes(QWEN2_7B, algo, 1, 1) for algo in (None, "FP8"))
    assert full - half == QWEN2_7B.layers * QWEN2_7B.matrices()
    assert weight_bytes(QWEN2_7B, "W8A16", 1, 1) == half


def test_splitting_never_loses_weights() -> None:
    whole = weight_bytes(QWEN2_72B, None, 1, 1)
    for tp, pp in ((2, 1), (4, 1), (8, 1), (4, 2), (1, 8)):
        part = weight_bytes(QWEN2_72B, None, tp, pp)
        assert whole <= part * tp * pp < 1.15 * whole


def test_key_value_heads_repeat_when_there_are_fewer_than_gpus() -> None:
    assert kv_bytes_per_token(QWEN2_7B, 4, 1, None) == kv_bytes_per_token(QWEN2_7B, 8, 1, None)


def test_every_precision_has_a_weight_size() -> None:
    assert {each.quant_algo for each in PRECISIONS.values()} <= set(WEIGHT_BYTES)


def example_shape(name: str) -> ModelShape:
    shape = read_shape(json.loads((EXAMPLES / "shapes" / f"{name}.json").read_text()))
    assert shape is not None
    return shape


def memory(folder: Path, size: str, **changed: object) -> MemoryPlan:
    spec = {
        "models": {"m": {"source": "Qwen/Qwen2-7B", "tp": 1}},
        "precisions": "fp16",
        "matrix": {"max_batch_size": 64, "isl_osl": "2048,2048"},
        **changed,
    }
    (folder / "d.yaml").write_text(yaml.safe_dump(spec))
    file = load_deployment(folder / "d.yaml")
    shape = example_shape("qwen2-7b")
    return plan_memory(file, file.cells()[0], shape, parse_size(size))


def test_a_model_that_fills_the_gpu_does_not_fit(tmp_path: Path) -> None:
    plan = memory(tmp_path, "16GiB")  # 14.2 of weights
    assert (plan.verdict, plan.sequences) == ("doesn't fit", 0)
    assert memory(tmp_path, "8GiB").verdict == "doesn't fit"


def test_a_cache_too_small_for_the_batch_is_told(tmp_path: Path) -> None:
    plan = memory(tmp_path, "24GiB")
    assert plan.verdict == "batch can't fill"
    assert plan.sequences is not None and 0 < plan.sequences < 64


def test_the_cache_is_what_the_fraction_leaves_in_whole_blocks(tmp_path: Path) -> None:
    plan = memory(tmp_path, "80GiB", triton={"kv_cache_free_gpu_mem_fraction": 0.5})
    assert plan.verdict == "fits"
    assert plan.tokens is not None
    free = 80 * 2**30 - plan.weights - plan.activations
    assert plan.tokens % 32 == 0
    assert 0 <= free * 0.5 - plan.tokens * 56 * 1024 < 32 * 56 * 1024
    assert plan.sequences == plan.tokens // 4096


def test_a_limit_on_cache_tokens_throttles_whatever_the_gpu(tmp_path: Path) -> None:
    plan = memory(tmp_path, "141GiB", triton={"max_tokens_in_paged_kv_cache": 8560})
    assert (plan.tokens, plan.sequences, plan.verdict) == (8544, 2, "batch can't fill")


def test_a_step_is_no_longer_than_all_sequences_together(tmp_path: Path) -> None:
    clipped = memory(tmp_path, "80GiB", build={"max_num_tokens": 1_000_000})
    most = memory(tmp_path, "80GiB", build={"max_num_tokens": 64 * 4096})
    assert clipped == most
    assert clipped.activations > memory(tmp_path, "80GiB").activations


def test_the_shapes_of_the_example_are_those_of_the_models() -> None:
    assert example_shape("qwen2-7b") == QWEN2_7B
    assert example_shape("qwen2-72b") == QWEN2_72B


def test_a_config_without_sizes_has_no_shape() -> None:
    assert read_shape({"hidden_size": 4}) is None
    assert read_shape({"architectures": None}) is None
    assert read_shape({"hidden_size": None, "num_attention_heads": 1}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
        {"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512},
        {"architectures": ["GPTNeoXForCausalLM"]},
        {"architectures": ["LlamaForCausalLM"], "num_local_experts": 8},
        {"architectures": []},
    ],
)
def test_the_size_of_layers_that_are_not_known_is_not_guessed(changed: dict[str, object]) -> None:
    config = json.loads((EXAMPLES / "shapes" / "qwen2-7b.json").read_text())
    assert read_shape(config) is not None
    assert read_shape({**config, **changed}) is None


def test_qwen3_counts_as_published() -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    shape = read_shape(config)
    assert shape is not None
    assert shape.parameters == 8_190_735_360  # Qwen/Qwen3-8B, model.safetensors.index.json


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * 2**30), ("80 GB", 80 * 10**9), ("1.5TiB", 3 * 2**39), ("512", 512)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_user_error(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except UserError as error:
        assert "write it as 80GiB" in str(error)

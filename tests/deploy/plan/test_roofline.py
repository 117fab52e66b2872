"""Against figures worked out by hand, and against what more of anything must do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.plan.memory import WEIGHT_BYTES, plan_memory
from trtllm_deploy.plan.roofline import LISTED, NAMED, GpuModel, Roofline, find_gpu, predict
from trtllm_deploy.plan.shape import ModelShape, read_shape
from trtllm_deploy.spec.deployment_file import load_deployment

EXAMPLES = Path(__file__).parents[3] / "examples"
# 10 layers of 2 x 100² + 2 x 100 x 50 + 3 x 100 x 200 = 90,000 weights; an output matrix of 100,000
TOY = ModelShape(10, 100, 4, 2, 25, 200, 1000, tied=False, biases=False)
SLOW = GpuModel("slow", 10**9, 1e6, {"16bit": 1e9, "fp8": 2e9})
TOY_ROOF = Roofline(TOY, SLOW)


def test_a_step_of_one_request_reads_each_weight_and_its_keys_and_values_once() -> None:
    weights = (900_000 + 100_000) * 2
    cache = 2 * 10 * 2 * 25 * 2 * 60  # keys and values, layers, heads, size, bytes, tokens
    assert TOY_ROOF.step_s(1, 60) == pytest.approx((weights + cache) / 1e6)


def test_a_step_of_many_is_bound_by_operations() -> None:
    products = 2 * (900_000 + 100_000) * 5000 / 1e9
    assert TOY_ROOF.step_s(5000, 0) == pytest.approx(products)
    halved = replace(TOY_ROOF, quant_algo="FP8").step_s(5000, 0)
    assert halved == pytest.approx(2 * 900_000 * 5000 / 2e9 + 2 * 100_000 * 5000 / 1e9)


def test_a_prompt_is_its_products_its_attention_and_one_row_of_the_output_matrix() -> None:
    products, attention = 2 * 900_000 * 4000 / 1e9, 10 * 2 * 4000**2 * 100 / 1e9
    assert TOY_ROOF.prefill_s(4000) == pytest.approx(products + attention + 200_000 / 1e6)


def test_a_turn_has_every_prompt_in_it_once() -> None:
    found = TOY_ROOF.at(4, 100, 11)
    turn = 10 * found.step_s + 4 * found.prefill_s
    assert found.requests_per_s == pytest.approx(4 / turn)
    assert found.tokens_per_s == pytest.approx(44 / turn)
    assert found.ttft_s + 10 * found.itl_s == pytest.approx(turn)
    told = found.metrics()
    assert told["inter_token_latency"] == pytest.approx(found.itl_s * 1000)
    assert told["output_token_throughput_per_user"] == pytest.approx(1 / found.itl_s)


def test_who_finds_no_slot_waits_for_turns_before() -> None:
    full, crowd = TOY_ROOF.at(8, 100, 11), TOY_ROOF.at(24, 100, 11, most=8)
    assert (crowd.running, crowd.tokens_per_s, crowd.itl_s) == (8, full.tokens_per_s, full.itl_s)
    latency = crowd.ttft_s + 10 * crowd.itl_s
    assert crowd.requests_per_s * latency == pytest.approx(24)  # Little


def test_stages_follow_one_another_and_ranks_share() -> None:
    piped, split = replace(TOY_ROOF, pp=2), replace(TOY_ROOF, tp=2)
    assert piped.step_s(1, 60) == pytest.approx(TOY_ROOF.step_s(1, 60))
    assert piped.step_s(40, 60) < TOY_ROOF.step_s(40, 60)
    assert split.step_s(1, 60) == pytest.approx(TOY_ROOF.step_s(1, 60) / 2)
    repeated = replace(TOY_ROOF, tp=4)  # two KV heads on four ranks: weights and cache of each
    assert repeated.step_s(1, 0) > TOY_ROOF.step_s(1, 0) / 4
    grown = repeated.step_s(1, 60) - repeated.step_s(1, 0)
    assert grown == pytest.approx((TOY_ROOF.step_s(1, 60) - TOY_ROOF.step_s(1, 0)) / 2)


@given(
    st.sampled_from(sorted(NAMED)),
    st.integers(1, 600),
    st.integers(1, 4096),
    st.integers(1, 2048),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4),
)
def test_more_in_flight_never_hurts_throughput_nor_helps_latency(
    gpu: str, in_flight: int, isl: int, osl: int, tp: int, pp: int
) -> None:
    roof = Roofline(example_shape("qwen2-72b"), find_gpu(gpu), None, tp, pp)
    less, more = roof.at(in_flight, isl, osl), roof.at(in_flight + 1, isl, osl)
    assert more.tokens_per_s >= less.tokens_per_s * (1 - 1e-9)
    assert more.itl_s >= less.itl_s * (1 - 1e-9)
    longer = roof.at(in_flight, isl + 1, osl)
    assert longer.ttft_s >= less.ttft_s and longer.requests_per_s <= less.requests_per_s


def test_fewer_bytes_are_never_slower() -> None:
    shape, gpu = example_shape("qwen2-7b"), find_gpu("b200")
    for algo in WEIGHT_BYTES:
        roof = Roofline(shape, gpu, algo)
        assert roof.at(16, 1024, 128).itl_s <= Roofline(shape, gpu).at(16, 1024, 128).itl_s
    cache = Roofline(shape, gpu, None, 1, 1, "fp8")
    assert cache.step_s(64, 4096) < Roofline(shape, gpu).step_s(64, 4096)


def test_a_gpu_is_known_by_the_driver_s_name_or_ours() -> None:
    assert find_gpu("H100") == LISTED["NVIDIA H100 80GB HBM3"]
    assert find_gpu("NVIDIA A100-PCIE-40GB").memory == 40 * 10**9
    with pytest.raises(UserError, match="'h99'"):
        find_gpu("h99")
    with pytest.raises(UserError, match="doesn't multiply FP8"):
        Roofline(TOY, find_gpu("a100"), "FP8")


def test_eight_bits_of_a_datasheet_are_at_least_twice_as_fast_as_sixteen() -> None:
    for gpu in LISTED.values():
        for kind in set(gpu.math) - {"16bit"}:
            assert gpu.math[kind] >= 1.99 * gpu.math["16bit"], (gpu.name, kind)


def example_shape(name: str) -> ModelShape:
    shape = read_shape(json.loads((EXAMPLES / "shapes" / f"{name}.json").read_text()))
    assert shape is not None
    return shape


def test_a_cell_runs_no_more_than_its_batch_and_its_cache_allow(tmp_path: Path) -> None:
    spec = {
        "models": {"m": {"source": "Qwen/Qwen2-7B", "tp": 1}},
        "precisions": ["fp16", "fp8"],
        "matrix": {"max_batch_size": 64, "isl_osl": "2048,2048"},
    }
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(spec))
    file, shape = load_deployment(tmp_path / "d.yaml"), example_shape("qwen2-7b")
    cell, quantized = file.cells()
    found = predict(file, cell, shape, find_gpu("h100"), 100)
    assert found is not None and found.running == 64
    small = plan_memory(file, cell, shape, 24 * 2**30)
    found = predict(file, cell, shape, find_gpu("l4"), 100, small)
    assert found is not None and found.running == small.sequences
    assert predict(file, quantized, shape, find_gpu("a100"), 1) is None
    assert predict(file, cell, shape, find_gpu("l4"), 1, replace(small, sequences=0)) is None

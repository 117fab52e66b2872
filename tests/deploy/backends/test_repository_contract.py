"""Every rendered config.pbtxt against the releases' contracts, as Triton's own ModelConfig."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tests.deploy.configs import ordered
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.repository import (
    MODELS,
    render_config,
    render_repository,
    with_additions,
)
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.settings import OURS, TritonSettings

CONTRACTS = {
    name: json.loads(
        (Path(__file__).parents[2] / f"standins/contracts/model-repository-{name}.json").read_text()
    )["models"]
    for name in ("0.11.0", "1.2")  # the others are held against NVIDIA's trees: tests/nvidia
}
ALL = [(release, model) for release in CONTRACTS for model in MODELS]
NOT_SETTINGS = {"engine_dir", "tokenizer_dir", "triton_backend", "triton_max_batch_size"}


def distinct_values(contract: dict[str, Any]) -> dict[str, str]:
    """A value for each placeholder, no two alike where the type of the field lets them."""
    values = {}
    for number, name in enumerate(contract["placeholders"], start=3):
        values[name] = f"{name} of {number}"
        if name.endswith(("_count", "_batch_size", "_microseconds", "max_queue_size")):
            values[name] = str(number)
    types = {"logits_datatype": "TYPE_BF16", "encoder_input_features_data_type": "TYPE_FP32"}
    return values | types | {"prompt_embedding_table_data_type": "TYPE_FP16"}


def tensors(declared: list[dict[str, Any]], values: dict[str, str]) -> list[dict[str, Any]]:
    made = {}
    for each in declared:
        dtype = each["dtype"]
        tensor: dict[str, Any] = {
            "name": each["name"],
            "data_type": values[dtype[2:-1]] if dtype.startswith("${") else dtype,
            "dims": [int(dim) for dim in each["dims"].split(",")],
        }
        if each["reshape"]:
            tensor["reshape"] = {"shape": []}
        tensor |= {"optional": True} if each["optional"] else {}
        tensor |= {"allow_ragged_batch": True} if each["ragged"] else {}
        made[each["name"]] = tensor  # 1.2's ensemble lists kv_cache_alloc_total_blocks twice
    return list(made.values())


def expected(release: str, name: str, values: dict[str, str]) -> ModelConfig:
    """The contract as ModelConfig: its lists, and the fields that its placeholders stand in."""
    contract = CONTRACTS[release][name]
    takes = set(contract["placeholders"])
    size = int(values["triton_max_batch_size"])
    made: dict[str, Any] = {
        "name": name,
        "max_batch_size": size,
        "input": tensors(contract["input"], values),
        "output": tensors(contract["output"], values),
        "parameters": {
            key: {"string_value": values.get(filled_by, filled_by)}
            for key, filled_by in contract["parameters"].items()
        },
    }
    if name == "ensemble":
        steps = [
            {
                "model_name": step["model"],
                "model_version": -1,
                "input_map": step["input_map"],
                "output_map": step["output_map"],
            }
            for step in contract["steps"]
        ]
        return ModelConfig(**made, platform="ensemble", ensemble_scheduling={"step": steps})
    [count] = [int(values[each]) for each in takes if each.endswith("_instance_count")] or [
        1
    ]  # tensorrt_llm has one
    made["instance_group"] = [{"count": count, "kind": "KIND_CPU"}]
    made["backend"] = values["triton_backend"] if "triton_backend" in takes else "python"
    if "decoupled_mode" in takes:
        made["model_transaction_policy"] = {"decoupled": True}
    if "max_queue_delay_microseconds" in takes:
        made["dynamic_batching"] = {
            "preferred_batch_size": [size],
            "max_queue_delay_microseconds": int(values["max_queue_delay_microseconds"]),
        }
        if "max_queue_size" in takes:
            policy = {"max_queue_size": int(values["max_queue_size"])}
            made["dynamic_batching"]["default_queue_policy"] = policy
    elif (release, name) == ("1.2", "postprocessing"):
        made["dynamic_batching"] = {}
    return ModelConfig(**made)


@pytest.mark.parametrize(("release", "name"), ALL)
def test_a_config_with_all_values_is_the_contract(release: str, name: str) -> None:
    values = distinct_values(CONTRACTS[release][name]) | {"decoupled_mode": "true"}
    model = with_additions(load_release(release), extra_tensors=False)[name]
    rendered = text_format.Parse(render_config(model, values), ModelConfig())
    assert ordered(rendered) == ordered(expected(release, name, values))


@pytest.mark.parametrize(("release", "name"), ALL)
def test_with_few_values_a_config_lacks_only_parameters(
    tmp_path: Path, release: str, name: str
) -> None:
    queue = {"max_queue_size": 7} if release == "1.2" else {}
    render_repository(
        RepositoryJob(
            tmp_path,
            release,
            Path("/engine"),
            Path("/tokenizer"),
            16,
            TritonSettings(extra_tensors=False, **queue),
        ),
        "tensorrt",
    )
    rendered = text_format.Parse((tmp_path / name / "config.pbtxt").read_text(), ModelConfig())
    values = {
        "triton_max_batch_size": "16",
        "triton_backend": "tensorrtllm",
        "max_queue_delay_microseconds": "0",
        "max_queue_size": "7",
        "preprocessing_instance_count": "1",
        "postprocessing_instance_count": "1",
        "bls_instance_count": "5",
        "engine_dir": "/engine",
        "tokenizer_dir": "/tokenizer",
        "batching_strategy": "inflight_fused_batching",
        "logits_datatype": "TYPE_FP32",
        "encoder_input_features_data_type": "TYPE_FP16",
        "prompt_embedding_table_data_type": "TYPE_FP16",
    }
    whole = expected(release, name, values)
    for key, filled_by in CONTRACTS[release][name]["parameters"].items():
        if filled_by in CONTRACTS[release][name]["placeholders"] and filled_by not in values:
            del whole.parameters[key]
            if key in load_release(release).models[name].required:
                whole.parameters[key].string_value = ""
    assert ordered(rendered) == ordered(whole)


def test_what_the_last_releases_read_without_a_default_is_always_there() -> None:
    """model_instance_state.cc from 0.19.0 on, and 1.0.0's preprocessing/1/model.py."""
    models = load_release("1.2").models
    unguarded = {"tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"}
    assert models["tensorrt_llm"].required == unguarded
    assert "multimodal_model_path" in models["preprocessing"].required
    for model in models.values():
        assert model.required <= set(model.parameters)


@pytest.mark.parametrize(("release", "name"), ALL)
def test_our_additions_are_the_only_difference_to_the_contract(release: str, name: str) -> None:
    given = {"decoupled_mode": "true", "engine_dir": "/e"}
    values = distinct_values(CONTRACTS[release][name]) | given
    rendered = render_config(with_additions(load_release(release))[name], values)
    ours = text_format.Parse(rendered, ModelConfig())
    old = ["exclude_input_in_output"] if release == "0.11.0" else ["min_length"]
    upper = [each.upper() for each in old]
    if release == "1.2":
        upper += ["NUM_RETURN_SEQUENCES", "MIN_TOKENS"]
    answer = ["output_ids", "sequence_length"]
    inputs = {"preprocessing": ["STREAMING", *upper], "ensemble": old, "tensorrt_llm_bls": old}
    copies = ["OUT_TOKENS_BATCH", "OUT_SEQUENCE_LENGTH"]
    outputs = {"ensemble": answer, "tensorrt_llm_bls": answer, "postprocessing": copies}
    if release == "1.2":
        outputs["preprocessing"] = ["OUT_MIN_TOKENS"]
    for kind, added in (("input", inputs), ("output", outputs)):
        extra = added.get(name, [])
        tensors_of = getattr(ours, kind)
        assert [each.name for each in tensors_of[len(tensors_of) - len(extra) :]] == extra
        assert all(each.optional for each in tensors_of[-len(extra) :] if kind == "input" and extra)
        del tensors_of[len(tensors_of) - len(extra) :]
    if (release, name) == ("0.11.0", "preprocessing"):
        assert ours.parameters["gpt_model_path"].string_value == "/e"
        del ours.parameters["gpt_model_path"]
    if name == "ensemble":
        before, model, after = ours.ensemble_scheduling.step
        assert before.input_map.pop("STREAMING") == "stream"
        for each in upper:
            assert before.input_map.pop(each) == each.lower()
        if release == "1.2":
            assert before.output_map.pop("OUT_MIN_TOKENS") == model.input_map["min_tokens"]
            model.input_map["min_tokens"] = "min_tokens"
        for key, shown in zip(copies, answer, strict=True):
            assert after.output_map.pop(key) == shown
    if (release, name) == ("1.2", "postprocessing"):
        assert not ours.HasField("dynamic_batching")
        ours.dynamic_batching.SetInParent()
    assert ordered(ours) == ordered(expected(release, name, values))


@pytest.mark.parametrize("release", CONTRACTS)
def test_every_placeholder_is_a_setting_or_ours(release: str) -> None:
    contract = CONTRACTS[release]
    placeholders = {name for model in contract.values() for name in model["placeholders"]}
    assert placeholders - NOT_SETTINGS <= set(TritonSettings.model_fields)


def test_every_setting_is_a_placeholder_of_a_release_or_ours() -> None:
    models = [model for contract in CONTRACTS.values() for model in contract.values()]
    placeholders = {name for model in models for name in model["placeholders"]}
    assert set(TritonSettings.model_fields) - OURS <= placeholders

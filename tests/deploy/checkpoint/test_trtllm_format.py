"""What makes a folder a TensorRT-LLM checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.architectures import find_architecture
from trtllm_deploy.checkpoint.trtllm_format import (
    add_defaults,
    check_checkpoint,
    complete_config,
    config_differences,
)

CONFIG: dict[str, Any] = {
    "architecture": "QWenForCausalLM",
    "dtype": "float16",
    "logits_dtype": "float16",
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_size": 32,
    "hidden_act": "silu",
    "norm_epsilon": 1e-6,
    "position_embedding_type": "rope_gpt_neox",
    "rotary_base": 1000000.0,
    "rotary_scaling": None,
    "attn_bias": True,
    "mlp_bias": False,
    "qwen_type": "qwen2",
    "seq_length": 8192,
    "moe_intermediate_size": 0,
    "moe_shared_expert_intermediate_size": 0,
    "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
}
HF_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}


def write_shard(file: Path, data: bytes = bytes(range(64))) -> None:
    header = json.dumps(
        {"weight": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    ).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for rank in range(2):
        write_shard(tmp_path / f"rank{rank}.safetensors")
    return tmp_path


def write_config(checkpoint: Path, config: dict[str, Any]) -> None:
    (checkpoint / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["QWenForCausalLM", "Qwen2ForCausalLM"])
def test_both_names_that_scripts_give_qwen2_are_one_architecture(
    checkpoint: Path, name: str
) -> None:
    write_config(checkpoint, {**CONFIG, "architecture": name})
    assert find_architecture(check_checkpoint(checkpoint)) == "Qwen2ForCausalLM"


def test_an_older_qwen_is_not_taken_for_qwen2(checkpoint: Path) -> None:
    write_config(checkpoint, {**CONFIG, "qwen_type": "qwen"})
    with pytest.raises(UserError, match="qwen_type"):
        check_checkpoint(checkpoint)


def test_a_script_of_a_release_that_needs_no_seq_length_is_completed() -> None:
    written = {key: CONFIG[key] for key in CONFIG if key != "seq_length"}
    assert add_defaults(written)["seq_length"] == 8192


def test_a_complete_checkpoint_gives_its_config(checkpoint: Path) -> None:
    assert check_checkpoint(checkpoint) == CONFIG


@pytest.mark.parametrize("field", list(CONFIG))
def test_a_lost_field_is_named_with_its_file(checkpoint: Path, field: str) -> None:
    write_config(checkpoint, {key: value for key, value in CONFIG.items() if key != field})
    with pytest.raises(UserError, match=rf"config\.json: required field '{field}"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("field", ["world_size", "tp_size", "pp_size"])
def test_a_lost_mapping_field_is_named(checkpoint: Path, field: str) -> None:
    mapping = {key: value for key, value in CONFIG["mapping"].items() if key != field}
    write_config(checkpoint, {**CONFIG, "mapping": mapping})
    with pytest.raises(UserError, match=rf"mapping\.{field}"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary_base": None}, "rotary_base"),
        ({"qwen_type": "qwen"}, "qwen_type"),
        ({"architecture": "BloomForCausalLM"}, "BloomForCausalLM.*one of: Qwen2ForCausalLM"),
        ({"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 2}}, "world_size"),
        ({"mapping": {"world_size": 0, "tp_size": 0, "pp_size": 1}}, "tp_size"),
        ({"mapping": {"world_size": 3, "tp_size": 1, "pp_size": 3}}, "num_hidden_layers"),
        ({"mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}, r"rank1\.safetensors"),
        ({"mapping": {"world_size": 3, "tp_size": 3, "pp_size": 1}}, r"rank2\.safetensors"),
    ],
)
def test_a_wrong_field_is_named(checkpoint: Path, change: dict[str, Any], message: str) -> None:
    write_config(checkpoint, {**CONFIG, **change})
    with pytest.raises(UserError, match=message):
        check_checkpoint(checkpoint)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_truncated_shard_is_seen_wherever_it_is_cut(
    checkpoint: Path, data: st.DataObject
) -> None:
    file = checkpoint / "rank1.safetensors"
    write_shard(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError, match=r"rank1\.safetensors"):
        check_checkpoint(checkpoint)


def test_the_rotary_base_and_the_qwen_type_come_from_the_model() -> None:
    exported = {key: CONFIG[key] for key in CONFIG if key not in ("rotary_base", "qwen_type")}
    config = complete_config(exported, HF_CONFIG, "W8A16")
    assert config["rotary_base"] == 1000000.0
    assert config["qwen_type"] == "qwen2"
    assert config["rotary_scaling"] is None
    assert config["quantization"]["quant_algo"] == "W8A16"


def test_rope_scaling_keeps_its_kind_under_both_names() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    config = complete_config(CONFIG, {**HF_CONFIG, "rope_parameters": rope}, None)
    assert config["rotary_base"] == 500000.0
    assert config["rotary_scaling"] == {"type": "llama3", "rope_type": "llama3", "factor": 8.0}


def test_an_export_that_contradicts_the_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"intermediate_size=256.*intermediate_size=384"):
        complete_config(CONFIG, {**HF_CONFIG, "intermediate_size": 384}, None)


def test_a_model_without_a_rope_theta_is_refused() -> None:
    with pytest.raises(UserError, match="rope_theta"):
        complete_config(CONFIG, {**HF_CONFIG, "rope_parameters": None}, None)


def test_a_config_that_is_the_models_has_no_differences() -> None:
    assert config_differences(CONFIG, {**HF_CONFIG, "vocab_size": 320}) == []


def test_the_kind_of_rope_scaling_may_stand_under_either_name() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    hf = {**HF_CONFIG, "vocab_size": 320, "rope_parameters": rope}
    ours = {**CONFIG, "rotary_base": 500000.0, "rotary_scaling": {"type": "llama3", "factor": 8.0}}
    assert config_differences(ours, hf) == []
    ours["rotary_scaling"] = {"type": "llama3", "factor": 4.0}
    assert "rotary_scaling is" in config_differences(ours, hf)[0]


def test_what_the_scripts_leave_out_gets_tensorrt_llms_defaults_but_no_rotary_base() -> None:
    optional = ("head_size", "logits_dtype", "rotary_scaling", "attn_bias", "mlp_bias", "qwen_type")
    written = {key: value for key, value in CONFIG.items() if key not in optional}
    written["architecture"] = "Qwen2ForCausalLM"
    assert add_defaults(written) == {**CONFIG, **written, "logits_dtype": "float32"}
    assert add_defaults(CONFIG) == CONFIG
    del written["rotary_base"]
    assert "rotary_base" not in add_defaults(written)

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from llm_perf.errors import UserError
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.repository import MODELS, render_repository
from trtllm_deploy.releases.release import load_release, release_names
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.spec.settings import TritonSettings, lacking

TREE = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=3)
FOLDER = st.text(st.characters(codec="utf-8", exclude_characters="$", exclude_categories=["C"]))
BYTES = st.one_of(st.integers(0, 2**40), st.sampled_from(["1GiB", "16 GB", "0"]))
OTHER: dict[str, st.SearchStrategy[Any]] = {
    "max_attention_window_size": st.one_of(
        st.integers(1, 2**20), st.lists(st.integers(1, 2**20), min_size=1, max_size=4)
    ),
    "gpu_device_ids": st.one_of(TREE, st.lists(st.integers(0, 8), min_size=1), st.just("0,1;2,3")),
    "participant_ids": TREE,
    "medusa_choices": TREE,
    "eagle_choices": TREE,
    "kv_cache_host_memory_bytes": BYTES,
    "lora_cache_host_memory_bytes": BYTES,
    "encoder_engine_dir": FOLDER.map("/".__add__),
    "lora_prefetch_dir": FOLDER.map("/".__add__),
    "xgrammar_tokenizer_info_path": FOLDER.map("/".__add__),
    "tensorrt_llm_model_name": st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True),
    "postprocessing_instance_count": st.just(1),
}
REFUSED = {
    "tensorrt_llm_draft_model_name",
    "multimodal_encoders_name",
    "multimodal_model_path",
    "max_num_images",
}


def values_of(name: str) -> st.SearchStrategy[Any]:
    if name in OTHER:
        return OTHER[name]
    schema = TritonSettings.model_json_schema()["properties"][name]
    schema = schema["anyOf"][0] if "anyOf" in schema else schema
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    return {
        "boolean": st.booleans(),
        "integer": st.integers(least, 2**31 - 1),
        "number": st.floats(0.001, 1),
    }[schema["type"]]


def known(release: str) -> list[str]:
    names = set(TritonSettings.model_fields) - REFUSED
    return sorted(
        name for name in names if not list(lacking(TritonSettings.model_construct({name}), release))
    )


@settings(max_examples=120)
@given(release=st.sampled_from(release_names()), data=st.data())
def test_any_settings_make_configs_that_triton_can_read(release: str, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(known(release)), unique=True))
    chosen = TritonSettings(**{name: data.draw(values_of(name), name) for name in names})
    with TemporaryDirectory() as folder:
        render_repository(
            RepositoryJob(Path(folder), release, Path("/engine"), Path("/tokenizer"), 4, chosen),
            "tensorrt",
        )
        texts = {name: (Path(folder) / name / "config.pbtxt").read_text() for name in MODELS}
    for name, text in texts.items():
        assert "${" not in text
        config = text_format.Parse(text, ModelConfig())
        for key, filled_by in load_release(release).models[name].parameters.items():
            given_value = getattr(chosen, filled_by, None)
            if isinstance(given_value, bool):
                assert config.parameters[key].string_value == str(given_value).lower()
            elif isinstance(given_value, (int, float)):
                assert float(config.parameters[key].string_value) == given_value
            elif given_value is not None:
                assert config.parameters[key].string_value == given_value


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("gpu_device_ids", 3, "3"),
        ("gpu_device_ids", [0, 1], "0,1"),
        ("gpu_device_ids", [[0, 1], [2, 3]], "0,1;2,3"),
        ("gpu_device_ids", "0,1;2,3", "0,1;2,3"),
        ("medusa_choices", [[0], [0, 1]], "{0}, {0, 1}"),
        ("max_attention_window_size", 4096, "4096"),
        ("max_attention_window_size", [4096, 8192], "4096,8192"),
        ("kv_cache_host_memory_bytes", "16GiB", 16 * 2**30),
        ("kv_cache_host_memory_bytes", 1000, 1000),
    ],
)
def test_lists_and_sizes_are_written_as_the_backend_wants_them(
    name: str, value: Any, written: Any
) -> None:
    assert getattr(TritonSettings(**{name: value}), name) == written


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_kv_cache_reuse", "enable"),
        ("enable_kv_cache_reuse", 1),
        ("max_beam_width", 0),
        ("max_beam_width", True),
        ("max_tokens_in_paged_kv_cache", "8560abc"),
        ("kv_cache_free_gpu_mem_fraction", 1.5),
        ("batching_strategy", "inflight"),
        ("gpu_device_ids", "0:1"),
        ("gpu_device_ids", [0, True]),
        ("gpu_device_ids", []),
        ("medusa_choices", [[0], []]),
        ("max_attention_window_size", [4096, 0]),
        ("kv_cache_host_memory_bytes", "16 bananas"),
        ("lora_prefetch_dir", "here"),
        ("lora_prefetch_dir", "/a/${dir}"),
        *((name, 1) for name in sorted(REFUSED)),
    ],
)
def test_what_the_backend_would_take_for_something_else_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        TritonSettings(**{name: value})


def test_streams_and_several_postprocessing_instances_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="out of order"):
        TritonSettings(postprocessing_instance_count=2)
    TritonSettings(postprocessing_instance_count=2, decoupled_mode=False)


@pytest.mark.parametrize(
    ("release", "triton", "message"),
    [
        ("1.2", {"enable_kv_cache_resue": True}, "did you mean 'enable_kv_cache_reuse'?"),
        ("1.2", {"enable_kv_cache_reuse": "enable"}, "should be a valid boolean, not 'enable'"),
        ("1.2", {"multimodal_model_path": "/m"}, "multimodal_model_path: our models don't"),
        ("0.11.0", {"multi_block_mode": True}, "0.11.0 has no such setting .*1.2 has it"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, release: str, triton: dict[str, Any], message: str
) -> None:
    file = tmp_path / "deploy.yaml"
    deployment = {
        "release": release,
        "models": {"m": {"source": "some/model"}},
        "precisions": ["fp16"],
        "matrix": {"max_batch_size": [1], "isl_osl": ["8,8"]},
        "triton": triton,
    }
    file.write_text(yaml.safe_dump(deployment, sort_keys=False))
    line = file.read_text().splitlines().index("triton:") + 2
    with pytest.raises(UserError, match=rf"deploy\.yaml:{line}: triton\.{next(iter(triton))}"):
        load_deployment(file)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_deployment(file)

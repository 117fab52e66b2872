"""Preflight on repositories and engines that nobody of us made, or that are broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from tests.deploy.check.planted import CHECKPOINT, H100, TOKENIZER, Site
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.engine_config import read_engine
from trtllm_deploy.backends.jobs import EngineJob, RepositoryJob
from trtllm_deploy.check.facts import Launch
from trtllm_deploy.check.preflight import here, judge
from trtllm_deploy.releases.release import release_names
from trtllm_deploy.spec.settings import TritonSettings

LAUNCH = Launch(1, (H100,), 1, "1.2.1", (8, 8), None, 2**20, 2**10)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SAID = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        *("version", "build_config", "pretrained_config", "build_config.plugin_config"),
        *("build_config.max_batch_size", "build_config.max_seq_len", "build_config.max_num_tokens"),
        *("build_config.max_beam_width", "build_config.kv_cache_type", "pretrained_config.mapping"),
        *("pretrained_config.mapping.world_size", "pretrained_config.mapping.tp_size"),
        *("pretrained_config.quantization", "pretrained_config.quantization.quant_algo"),
        *("pretrained_config.num_attention_heads", "pretrained_config.vocab_size"),
        *("build_config.plugin_config.tokens_per_block", "build_config.speculative_decoding_mode"),
    ]
)
PARAMETERS = st.sampled_from(
    [
        *("gpt_model_type", "gpt_model_path", "max_beam_width", "max_attention_window_size"),
        *("max_tokens_in_paged_kv_cache", "kv_cache_free_gpu_mem_fraction", "gpu_device_ids"),
        *("decoding_mode", "gpu_weights_percent", "batch_scheduler_policy", "tokenizer_dir"),
    ]
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("fuzz"), "1.2")


@FUZZ
@given(data=st.binary(max_size=200), cut=st.integers(0, 4000))
def test_no_config_pbtxt_makes_it_fail(site: Site, data: bytes, cut: int) -> None:
    config = site.config("tensorrt_llm")
    sound = config.read_bytes()
    try:
        config.write_bytes(sound[:cut] + data + sound[cut + len(data) :])
        judge(site.repository, LAUNCH)
        config.write_bytes(data)
        assert data.strip() == b"" or judge(site.repository, LAUNCH)
    finally:
        config.write_bytes(sound)


@FUZZ
@given(
    key=PARAMETERS,
    value=st.text() | st.just("/long" * 900) | st.from_regex(r"-?[0-9]*(e[0-9]+)?[,;]?[0-9]*"),
)
def test_no_parameter_makes_it_fail(site: Site, key: str, value: str) -> None:
    config = site.config("tensorrt_llm")
    sound = config.read_text()
    try:
        written = json.dumps(value.replace("\\", ""))
        config.write_text(
            f"{sound}\nparameters {{ key: {json.dumps(key)} value {{ string_value: {written} }} }}"
        )
        judge(site.repository, LAUNCH)
    finally:
        config.write_text(sound)


@FUZZ
@given(field=FIELDS, value=SAID)
def test_no_value_in_an_engines_config_makes_it_fail(site: Site, field: str, value: Any) -> None:
    file = site.engine / "config.json"
    sound = file.read_text()
    try:
        site.build(field, value)
        judge(site.repository, LAUNCH)
    finally:
        file.write_text(sound)


@FUZZ
@given(data=st.binary(max_size=60) | SAID.map(lambda value: json.dumps(value).encode()))
def test_no_engine_config_makes_it_fail(site: Site, data: bytes) -> None:
    file = site.engine / "config.json"
    sound = file.read_bytes()
    try:
        file.write_bytes(data)
        assert any("config.json" in each.what for each in judge(site.repository, LAUNCH))
    finally:
        file.write_bytes(sound)


@FUZZ
@given(
    data=st.binary(max_size=60) | SAID.map(lambda value: yaml.safe_dump({"model": value}).encode())
)
def test_no_model_yaml_makes_it_fail(tmp_path: Path, data: bytes) -> None:
    llmapi(tmp_path)
    (tmp_path / "tensorrt_llm/1/model.yaml").write_bytes(data)
    judge(tmp_path, LAUNCH)


def test_json_as_deep_as_a_well_is_a_finding(site: Site) -> None:
    file = site.engine / "config.json"
    sound = file.read_text()
    file.write_text("[" * 100_000)
    assert any("not valid JSON" in each.what for each in judge(site.repository, LAUNCH))
    file.write_text(sound)


def llmapi(root: Path, **changed: object) -> None:
    model = root / "tensorrt_llm"
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "config.pbtxt").write_text('name: "tensorrt_llm"\nbackend: "python"\n')
    arguments = {
        "model": str(root),
        "backend": "pytorch",
        "tensor_parallel_size": 1,
        "max_seq_len": 192,
        "max_batch_size": 4,
        "kv_cache_config": {"max_tokens": 4096, "tokens_per_block": 32},
    }
    (model / "1" / "model.yaml").write_text(yaml.safe_dump({**arguments, **changed}))
    (model / "1" / "model.py").touch()


BOMB: list[object] = ["x"] * 9
for _ in range(5):
    BOMB = [BOMB] * 9  # written as aliases


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": "/models/absent"}, "there is no model /models/absent"),
        ({"tensor_parallel_size": 2}, "needs 2 GPUs per machine, 1 are here"),
        ({"kv_cache_config": {"max_tokens": 64}}, "one sequence takes 192"),
        ({"tensor_parallel_size": "two"}, "arguments of LLM()"),
        ({"stop": BOMB}, "more than 20000 values"),
    ],
)
def test_a_repository_of_the_llm_api_is_read_too(
    tmp_path: Path, changed: dict[str, object], what: str
) -> None:
    launch = Launch(gpus=(H100,))
    llmapi(tmp_path)
    assert judge(tmp_path, launch) == []
    llmapi(tmp_path, **changed)
    assert [what in each.what for each in judge(tmp_path, launch)] == [True]


def test_a_template_as_it_comes_names_each_placeholder_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm" / "config.pbtxt").write_text(
        'name: "tensorrt_llm"\nbackend: "${triton_backend}"  # ${in_a_comment}\n'
        "max_batch_size: ${triton_max_batch_size}\n"
        "model_transaction_policy { decoupled: ${decoupled_mode} }\n"
        "dynamic_batching { preferred_batch_size: [ ${triton_max_batch_size} ] }\n"
    )
    findings = judge(tmp_path, Launch())
    assert [(each.where.rsplit(":", 1)[1], each.what) for each in findings] == [
        ("3", "${triton_max_batch_size} isn't filled in"),
        ("4", "${decoupled_mode} isn't filled in"),
    ]


def test_a_folder_without_models_and_no_folder_are_findings(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes").mkdir()
    assert [each.what for each in judge(tmp_path, here())] == ["there is no model in this folder"]
    assert ["can't be read" in each.what for each in judge(tmp_path / "absent", here())] == [True]


def test_two_engines_of_one_repository_are_both_checked(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.repository, tmp_path / "two")
    draft = tmp_path / "two" / "draft"
    shutil.copytree(tmp_path / "two" / "tensorrt_llm", draft)
    text = (draft / "config.pbtxt").read_text().replace('"tensorrt_llm"', '"draft"')
    (draft / "config.pbtxt").write_text(text.replace('"24576"', '"64"'))
    findings = judge(tmp_path / "two", site.launch)
    assert [each.where.split("/")[-2] for each in findings] == ["draft"]


def test_an_engine_can_be_named_in_place_of_the_containers_path(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.repository, tmp_path / "there")
    config = tmp_path / "there" / "tensorrt_llm" / "config.pbtxt"
    config.write_text(config.read_text().replace(str(site.engine), "/engines/in/a/container"))
    assert next(each.level for each in judge(tmp_path / "there", here())) == "error"
    levels = {each.level for each in judge(tmp_path / "there", here(engine=site.engine))}
    assert levels <= {"warning"}


def test_an_engine_says_how_it_was_built(site: Site) -> None:
    engine = read_engine(site.engine)
    assert (engine.version, engine.world_size, engine.ranks, engine.linked) == (
        "1.2.1",
        1,
        1,
        False,
    )
    assert engine.limit("max_seq_len") == 3072
    assert engine.limit("tokens_per_block") == 32
    assert engine.limit("plugin_config") is None
    assert engine.on("use_paged_context_fmha")
    assert not engine.off("use_paged_context_fmha")
    assert not engine.off("a_plugin_it_says_nothing_of")
    assert engine.paged


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"builder_config": {}}, "before 0.8"),
        ({"version": "1.2.1"}, "isn't an engine's config.json"),
        ({"version": "1", "build_config": 3, "pretrained_config": {}}, "isn't an engine's"),
        ([], "isn't a JSON object"),
    ],
)
def test_what_is_no_engine_is_told(tmp_path: Path, config: object, says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        read_engine(tmp_path)


@pytest.mark.parametrize(
    ("pretrained", "build", "sizes"),
    [
        ({"mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2}}, {}, (1, 2, 2)),
        ({}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}, (2, 2, 1)),
    ],
)
def test_a_linked_engine_runs_in_as_many_processes_as_its_backend_has(
    tmp_path: Path, pretrained: object, build: object, sizes: tuple[int, int, int]
) -> None:
    config = {"version": "1.2", "pretrained_config": pretrained, "build_config": build}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "checkpoint").symlink_to("../checkpoint")
    engine = read_engine(tmp_path)
    assert engine.linked
    assert (engine.world_size, engine.tp, engine.pp) == sizes


@pytest.mark.parametrize("release", release_names())
def test_the_reference_backend_needs_no_gpu_and_one_process(tmp_path: Path, release: str) -> None:
    (tmp_path / "checkpoint").mkdir()
    checkpoint = {**CHECKPOINT, "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(checkpoint))
    (tmp_path / "engine").mkdir()
    limits = {"max_batch_size": 4, "max_input_len": 128, "max_seq_len": 192}
    job = EngineJob(tmp_path / "checkpoint", tmp_path / "engine", release, limits)
    BACKENDS["reference"].make_engine(job, tmp_path / "log", lambda _: None)
    repository = RepositoryJob(
        tmp_path / "repository", release, job.target, TOKENIZER, 4, TritonSettings()
    )
    BACKENDS["reference"].make_repository(repository)
    small = replace(H100, memory=2**20, capability="7.0")
    launch = Launch(world_size=1, gpus=(small,), tensorrt_llm="0.9.0", shared_memory=2**30)
    assert judge(repository.target, launch) == []

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from client.errors import UserError
from deploy import repository
from deploy.release import Tensor, load_release, release_names
from deploy.repository import (
    MODELS,
    TritonSettings,
    render_config,
    render_repository,
    setting_values,
    templates_digest,
    with_additions,
)

BACKENDS: tuple[Literal["reference"], Literal["tensorrt"]] = ("reference", "tensorrt")

OPEN_TYPES = {"0.11.0": {}, "1.2": {"logits_datatype": "TYPE_FP16"}}


def render(
    target: Path,
    release: str = "1.2",
    backend: Literal["reference", "tensorrt"] = "reference",
    **settings: Any,
) -> dict[str, Any]:
    render_repository(
        target,
        release=load_release(release),
        backend=backend,
        engine_dir=Path("/engines/one"),
        tokenizer_dir=Path('/models/a "quoted" name'),
        max_batch_size=16,
        settings=TritonSettings(**settings),
    )
    return {
        name: text_format.Parse((target / name / "config.pbtxt").read_text(), ModelConfig())
        for name in MODELS
    }


def declared(tensors: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    return [
        (
            each.name,
            each.dtype if each.dtype.startswith("TYPE") else "TYPE_FP16",
            each.dims,
            each.optional,
            each.reshape,
            each.ragged,
        )
        for each in tensors
    ]


def written(tensors: Any) -> list[tuple[Any, ...]]:
    return [
        (
            each.name,
            DataType.Name(each.data_type),
            tuple(each.dims),
            getattr(each, "optional", False),
            each.HasField("reshape"),
            getattr(each, "allow_ragged_batch", False),
        )
        for each in tensors
    ]


@pytest.mark.parametrize("release", release_names())
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_configs_say_what_the_release_declares(
    tmp_path: Path, release: str, backend: Literal["reference", "tensorrt"]
) -> None:
    configs = render(tmp_path, release, backend, **OPEN_TYPES[release])
    models = with_additions(load_release(release))
    for name in MODELS:
        assert written(configs[name].input) == declared(models[name].inputs)
        assert written(configs[name].output) == declared(models[name].outputs)
        assert configs[name].max_batch_size == 16
    steps = configs["ensemble"].ensemble_scheduling.step
    assert [(each.model_name, dict(each.input_map), dict(each.output_map)) for each in steps] == [
        (each.model, each.input_map, each.output_map) for each in models["ensemble"].steps
    ]


@pytest.mark.parametrize("release", release_names())
def test_our_additions_are_the_only_difference_to_the_release(release: str) -> None:
    theirs, ours = load_release(release).models, with_additions(load_release(release))

    def added(model: str, side: str) -> set[str]:
        names = [{each.name for each in getattr(of[model], side)} for of in (theirs, ours)]
        assert names[0] <= names[1]
        return names[1] - names[0]

    old = {"exclude_input_in_output"} if release == "0.11.0" else set()
    assert added("ensemble", "inputs") == old
    assert added("ensemble", "outputs") == {"output_ids", "sequence_length"}
    assert added("preprocessing", "inputs") == {"STREAMING"} | {each.upper() for each in old}
    for model in ("tensorrt_llm", "postprocessing"):
        assert ours[model] == theirs[model]


def test_what_genai_perf_sends_is_an_optional_input_of_the_old_ensemble(tmp_path: Path) -> None:
    ensemble = render(tmp_path, "0.11.0")["ensemble"]
    optional = {each.name for each in ensemble.input if each.optional}
    assert {"stream", "exclude_input_in_output", "min_length"} <= optional


@pytest.mark.parametrize("release", release_names())
def test_what_is_not_set_is_not_in_the_config(tmp_path: Path, release: str) -> None:
    bare = render(tmp_path / "bare", release)["tensorrt_llm"]
    assert set(bare.parameters) - {"tokenizer_dir"} == {
        "gpt_model_type",
        "gpt_model_path",
        "FORCE_CPU_ONLY_INPUT_TENSORS",
        "executor_worker_path",
    }
    more = render(
        tmp_path / "more", release, enable_kv_cache_reuse=True, kv_cache_free_gpu_mem_fraction=0.5
    )["tensorrt_llm"]
    added = {
        key: more.parameters[key].string_value
        for key in set(more.parameters) - set(bare.parameters)
    }
    assert added == {"enable_kv_cache_reuse": "true", "kv_cache_free_gpu_mem_fraction": "0.5"}
    for file in tmp_path.rglob("config.pbtxt"):
        assert "${" not in file.read_text()


def test_the_backend_decides_what_tensorrt_llm_is(tmp_path: Path) -> None:
    reference = render(tmp_path / "reference", backend="reference")["tensorrt_llm"]
    tensorrt = render(tmp_path / "tensorrt", backend="tensorrt", decoupled_mode=False)[
        "tensorrt_llm"
    ]
    assert (reference.backend, tensorrt.backend) == ("python", "tensorrtllm")
    assert reference.model_transaction_policy.decoupled
    assert not tensorrt.model_transaction_policy.decoupled
    assert (tmp_path / "reference/tensorrt_llm/1/model.py").exists()
    assert not list((tmp_path / "tensorrt/tensorrt_llm/1").iterdir())
    for name in ("preprocessing", "postprocessing"):
        source = (tmp_path / "tensorrt" / name / "1/model.py").read_text()
        assert "import deploy" not in source
        assert "from deploy" not in source


def test_a_path_with_quotes_survives(tmp_path: Path) -> None:
    config = render(tmp_path)["preprocessing"]
    assert config.parameters["tokenizer_dir"].string_value == '/models/a "quoted" name'


def test_a_setting_that_the_release_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"triton\.max_queue_size: TensorRT-LLM 0\.11\.0 has no"):
        render(tmp_path, "0.11.0", max_queue_size=4)
    assert not list(tmp_path.iterdir())
    assert render(tmp_path, "1.2", max_queue_size=4)


def test_a_value_that_is_missing_names_model_and_value() -> None:
    values = dict(setting_values(TritonSettings(), "reference", Path("e"), Path("t"), 8))
    del values["decoupled_mode"]
    with pytest.raises(UserError, match=r"tensorrt_llm/config\.pbtxt: .*decoupled_mode"):
        render_config(load_release("1.2").models["tensorrt_llm"], values)


def test_a_config_that_triton_could_not_read_names_model_and_line() -> None:
    values = dict(setting_values(TritonSettings(), "reference", Path("e"), Path("t"), 8))
    values["triton_max_batch_size"] = "many"
    with pytest.raises(UserError, match=r"ensemble/config\.pbtxt:3: .*many"):
        render_config(load_release("1.2").models["ensemble"], values)


def test_streams_and_several_postprocessing_instances_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="out of order"):
        TritonSettings(postprocessing_instance_count=2)
    TritonSettings(postprocessing_instance_count=2, decoupled_mode=False)


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="enable_kv_cache_resue"):
        TritonSettings(enable_kv_cache_resue=True)  # type: ignore[call-arg]


def test_a_changed_template_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = templates_digest(load_release("1.2"))
    installed = tmp_path / "templates"
    shutil.copytree(repository.templates(), installed)
    monkeypatch.setattr(repository, "_INSTALLED_TEMPLATES", installed)
    assert repository.templates() == installed
    assert templates_digest(load_release("1.2")) == before
    code = installed / "postprocessing/1/model.py"
    code.write_text(code.read_text() + "\n")
    assert templates_digest(load_release("1.2")) != before


def test_only_the_models_of_its_own_release_change_the_digest() -> None:
    release = load_release("1.2")
    digest = templates_digest(release)
    assert templates_digest(replace(release, commands={}, cannot=frozenset({"x"}))) == digest
    fewer = {name: model for name, model in release.models.items() if name != "tensorrt_llm_bls"}
    assert templates_digest(replace(release, models=fewer)) != digest
    assert templates_digest(load_release("0.11.0")) != digest

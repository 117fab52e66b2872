import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from llm_perf.errors import UserError
from trtllm_deploy.backends import repository
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.repository import (
    MODELS,
    render_config,
    render_repository,
    setting_values,
    templates_digest,
)
from trtllm_deploy.releases.release import load_release, release_names
from trtllm_deploy.spec.settings import TritonSettings


def job(engine: Path, settings: TritonSettings) -> RepositoryJob:
    return RepositoryJob(Path(), "1.2", engine, Path("t"), 8, settings)


def render(
    target: Path,
    release: str = "1.2",
    backend: Literal["reference", "tensorrt"] = "reference",
    **settings: Any,
) -> dict[str, Any]:
    render_repository(
        RepositoryJob(
            target,
            release,
            Path("/engines/one"),
            Path('/models/a "quoted" name'),
            16,
            TritonSettings(**settings),
        ),
        backend,
    )
    return {
        name: text_format.Parse((target / name / "config.pbtxt").read_text(), ModelConfig())
        for name in MODELS
    }


def test_what_genai_perf_sends_is_an_optional_input_of_the_old_ensemble(tmp_path: Path) -> None:
    ensemble = render(tmp_path, "0.11.0")["ensemble"]
    optional = {each.name for each in ensemble.input if each.optional}
    assert {"stream", "exclude_input_in_output", "min_length"} <= optional


@pytest.mark.parametrize("release", release_names())
def test_what_is_not_set_is_not_in_the_config(tmp_path: Path, release: str) -> None:
    bare = render(tmp_path / "bare", release)["tensorrt_llm"]
    required = load_release(release).models["tensorrt_llm"].required
    assert all(bare.parameters[key].string_value == "" for key in required - {"tokenizer_dir"})
    said = load_release(release).defaults.keys()  # as the release has it, not this engine
    assert set(bare.parameters) - {"tokenizer_dir"} - required - said == {
        "gpt_model_type",
        "gpt_model_path",
        "FORCE_CPU_ONLY_INPUT_TENSORS",
        "executor_worker_path",
    }
    more = render(tmp_path / "more", release, kv_cache_free_gpu_mem_fraction=0.5, max_beam_width=1)[
        "tensorrt_llm"
    ]
    added = {
        key: more.parameters[key].string_value
        for key in set(more.parameters) - set(bare.parameters)
    }
    assert added == {"max_beam_width": "1", "kv_cache_free_gpu_mem_fraction": "0.5"}
    for file in tmp_path.rglob("config.pbtxt"):
        assert "${" not in file.read_text()


@pytest.mark.parametrize(("release", "reuses"), [("0.11.0", None), ("1.2", "true")])
def test_the_reference_reuses_the_kv_cache_as_the_release_does_unasked(
    tmp_path: Path, release: str, reuses: str | None
) -> None:
    name = "enable_kv_cache_reuse"
    given = render(tmp_path / "unset", release)["tensorrt_llm"].parameters
    assert (given[name].string_value if name in given else None) == reuses
    given = render(tmp_path / "off", release, **{name: False})["tensorrt_llm"].parameters
    assert given[name].string_value == "false"
    given = render(tmp_path / "theirs", release, backend="tensorrt")["tensorrt_llm"].parameters
    assert name not in given  # the backend's own default holds


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
    for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        source = (tmp_path / "tensorrt" / name / "1/model.py").read_text()
        assert "import trtllm_deploy" not in source
        assert "from trtllm_deploy" not in source


def test_a_path_with_quotes_survives(tmp_path: Path) -> None:
    config = render(tmp_path)["preprocessing"]
    assert config.parameters["tokenizer_dir"].string_value == '/models/a "quoted" name'


def test_a_setting_that_the_release_lacks_is_refused(tmp_path: Path) -> None:
    message = r"triton\.max_queue_size: TensorRT-LLM 0\.11\.0 has no such setting .*1\.2 has it"
    with pytest.raises(UserError, match=message):
        render(tmp_path, "0.11.0", max_queue_size=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("release", release_names())
@pytest.mark.parametrize("extra_tensors", [True, False])
def test_bls_gets_the_wires_of_the_ensemble(
    tmp_path: Path, release: str, extra_tensors: bool
) -> None:
    configs = render(tmp_path, release, extra_tensors=extra_tensors)
    wiring = json.loads((tmp_path / "tensorrt_llm_bls/1/wiring.json").read_text())
    steps = configs["ensemble"].ensemble_scheduling.step
    assert wiring == [
        {
            "model": each.model_name,
            "input_map": dict(each.input_map),
            "output_map": dict(each.output_map),
        }
        for each in steps
    ]
    made = {name for step in wiring for name in step["output_map"].values()}
    assert {each.name for each in configs["tensorrt_llm_bls"].output} <= made
    taken = {name for step in wiring for name in step["input_map"].values()}
    left = {each.name for each in configs["tensorrt_llm_bls"].input} - taken
    images = {"image_input", "image_bytes_input", "image_url_input", "video_bytes_input"}
    assert left - images - {"image_sizes_input"} == {"num_draft_tokens", "use_draft_logits"}


def test_bls_has_a_few_instances_for_each_serves_one_request_at_a_time(tmp_path: Path) -> None:
    def count(name: str, **settings: Any) -> int:
        config = render(tmp_path / name, **settings)["tensorrt_llm_bls"]
        return int(config.instance_group[0].count)

    assert count("not set") == 5
    assert count("set", bls_instance_count=2) == 2


def test_a_value_that_is_missing_names_model_and_value() -> None:
    values = dict(setting_values(job(Path("e"), TritonSettings()), "reference"))
    del values["decoupled_mode"]
    with pytest.raises(UserError, match=r"tensorrt_llm/config\.pbtxt: .*decoupled_mode"):
        render_config(load_release("1.2").models["tensorrt_llm"], values)


def test_a_config_that_triton_could_not_read_names_model_and_line() -> None:
    values = dict(setting_values(job(Path("e"), TritonSettings()), "reference"))
    values["triton_max_batch_size"] = "many"
    with pytest.raises(UserError, match=r"ensemble/config\.pbtxt:3: .*many"):
        render_config(load_release("1.2").models["ensemble"], values)


def test_a_changed_template_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = templates_digest(load_release("1.2"))
    installed = tmp_path / "templates"
    shutil.copytree(repository.templates(), installed)
    monkeypatch.setattr(repository, "packaged", lambda folder: tmp_path / folder)
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


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", "TYPE_FP16"), ("float32", "TYPE_FP32"), (None, "TYPE_FP32")]
)
def test_logits_have_the_type_that_the_engine_gives(
    tmp_path: Path, dtype: str | None, expected: str
) -> None:
    mapping = {"world_size": 1, "tp_size": 1, "pp_size": 1}
    pretrained = {"mapping": mapping, **({"logits_dtype": dtype} if dtype else {})}
    config = {"version": "1.2.1", "build_config": {}, "pretrained_config": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "rank0.engine").write_bytes(b"engine")

    values = setting_values(job(tmp_path, TritonSettings()), "tensorrt")
    chosen = job(tmp_path, TritonSettings(logits_datatype="TYPE_BF16"))

    assert values["logits_datatype"] == expected
    assert setting_values(chosen, "tensorrt")["logits_datatype"] == "TYPE_BF16"

"""What config.json alone shows: the same for a folder, ``shape:`` and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.model_refusals import carried_window, window_setting
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
}
MISTRAL = {**QWEN2, "architectures": ["LlamaForCausalLM"], "model_type": "mistral"}


def load(folder: Path, **changed: object) -> DeploymentFile:
    spec = {
        "backend": "tensorrt",
        "models": {"m": {"source": "acme/tiny"}},
        "precisions": ["fp16"],
        "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
        **changed,
    }
    (folder / "d.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return load_deployment(folder / "d.yaml")


def check(folder: Path, config: dict[str, Any], **changed: object) -> None:
    file = load(folder, **changed)
    BACKENDS[file.deployment.backend[0]].check(file, file.cells(), (), {"m": config})


@pytest.mark.parametrize(
    ("quantization", "how"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"\(gptq, 4 bits\)"),
        ({"quant_method": "awq", "w_bit": 4}, r"\(awq, 4 bits\)"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"\(fp8\)"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt"),
    ],
)
@pytest.mark.parametrize("backend", ["tensorrt", "llmapi", "reference"])
def test_weights_that_are_quantized_already_are_refused_by_name(
    tmp_path: Path, backend: str, quantization: dict[str, object], how: str
) -> None:
    config = {**QWEN2, "quantization_config": quantization}
    with pytest.raises(UserError, match=rf"d\.yaml:\d+: models\.m: .*already.*{how}.*16-bit model"):
        check(tmp_path, config, backend=backend)
    check(tmp_path, QWEN2, backend=backend)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        *((0, "is 0"), ("8", "is a str"), (None, "is null"), ([8], "is a list"), (-8, "is -8")),
        *((True, "is a bool"), (8.0, "is a float"), (10**4000, r"is beyond 2\^31")),
    ],
)
@pytest.mark.parametrize("name", ["num_attention_heads", "hidden_size", "num_hidden_layers"])
def test_a_size_that_is_none_is_refused_by_name(
    tmp_path: Path, name: str, value: object, says: str
) -> None:
    with pytest.raises(UserError, match=rf"config\.json says {name} {says}, which is no size"):
        check(tmp_path, {**QWEN2, name: value})


@pytest.mark.parametrize("names", [[], None, 7, [["a"]], [{}], [None]])
def test_an_architecture_that_is_no_name_is_one_line(tmp_path: Path, names: object) -> None:
    with pytest.raises(UserError, match=r"architecture '.*' isn't supported"):
        check(tmp_path, {**QWEN2, "architectures": names})


def test_an_architecture_that_no_engine_is_built_of_is_left_to_the_llm_api(tmp_path: Path) -> None:
    config = {**QWEN2, "architectures": ["ForeignForCausalLM"]}
    for backend in ("tensorrt", "reference"):
        with pytest.raises(UserError, match="'ForeignForCausalLM' isn't supported"):
            check(tmp_path, config, backend=backend)
    check(tmp_path, config, backend="llmapi")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"models": {"m": {"source": "acme/tiny", "tp": 3}}}, "tp 3 doesn't divide .* 4; choose"),
        ({"models": {"m": {"source": "acme/tiny", "pp": 3}}}, "pp 3 doesn't divide .* 4; choose"),
        (
            {"models": {"m": {"source": "acme/tiny", "tp": 2}}, "precisions": ["int4_awq"]},
            "int4_awq needs hidden_size 128 divisible by tp x 128",
        ),
    ],
)
def test_what_does_not_divide_is_said_of_a_model_that_is_not_here(
    tmp_path: Path, changed: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        check(tmp_path, QWEN2, **changed)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("scaling", "release", "said"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "0.11.0", "no rotary scaling 'llama3', 0.12"),
        ({"rope_type": "llama3", "factor": 8.0}, "1.2", None),
        ({"type": "linear", "factor": 2.0}, "0.11.0", None),
        ({"rope_type": "yarn", "factor": 4.0}, "0.11.0", "don't compute rotary scaling 'yarn'"),
        ({"type": "longrope"}, "1.2", "don't compute rotary scaling 'longrope'"),
        ({"type": "dynamic", "factor": 2.0}, "1.2", "'dynamic' without alpha"),
        ({"type": "dynamic", "alpha": 1000.0}, "1.2", None),
        ({"rope_type": "default", "rope_theta": 10000.0}, "0.11.0", None),
    ],
)
def test_a_rotary_scaling_that_the_release_gets_wrong_is_refused(
    tmp_path: Path, key: str, scaling: dict[str, object], release: str, said: str | None
) -> None:
    config = {**QWEN2, key: scaling}
    if said is None:
        check(tmp_path, config, release=release)
        return
    with pytest.raises(UserError, match=said):
        check(tmp_path, config, release=release)


def test_an_architecture_that_the_release_lacks_is_refused(tmp_path: Path) -> None:
    config = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    check(tmp_path, config, release="1.2")
    with pytest.raises(UserError, match=r"0\.11\.0 has no Qwen3ForCausalLM, 1\.0 is the first"):
        check(tmp_path, config, release="0.11.0")


@pytest.mark.parametrize(
    ("config", "longest", "setting"),
    [
        ({**MISTRAL, "sliding_window": 4096}, 8192, (4096,)),
        ({**MISTRAL, "sliding_window": 4096}, 4096, None),
        ({**MISTRAL, "sliding_window": None}, 8192, None),
        ({**QWEN2, "sliding_window": 4096, "use_sliding_window": False}, 8192, None),
        ({**QWEN2, "sliding_window": 4096}, 8192, None),
        (
            {**QWEN2, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3},
            100,
            (100, 100, 100, 64),
        ),
        ({**QWEN2, "model_type": "gemma2", "sliding_window": 64}, 100, (64, 100, 64, 100)),
        (
            {
                **QWEN2,
                "sliding_window": 64,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            100,
            (100, 64, 100, 64),
        ),
    ],
)
def test_the_window_of_each_layer_is_what_transformers_reads(
    config: dict[str, object], longest: int, setting: tuple[int, ...] | None
) -> None:
    from transformers import AutoConfig

    assert window_setting(config, longest) == setting
    read = AutoConfig.for_model(**config)
    types = getattr(read, "layer_types", None) or ["sliding_attention"] * read.num_hidden_layers
    window = read.sliding_window or longest
    theirs = [min(window, longest) if each[0] == "s" else longest for each in types]
    ours = list(setting or [longest])
    assert (ours * len(theirs) if len(ours) == 1 else ours) == theirs


def test_a_window_shorter_than_a_sequence_is_carried_or_refused(tmp_path: Path) -> None:
    config = {**MISTRAL, "sliding_window": 100}
    file = load(tmp_path)
    (cell,) = file.cells()
    check(tmp_path, config)
    assert carried_window(file, cell, config) == {"max_attention_window_size": [100]}
    file = load(tmp_path, triton={"max_attention_window_size": 50})
    assert carried_window(file, cell, config) == {}  # narrower is the user's to say
    with pytest.raises(UserError, match=r"max_attention_window_size: .* 150 is wider than"):
        check(tmp_path, config, triton={"max_attention_window_size": 150})
    layers = {**config, "model_type": "gemma2"}
    check(tmp_path, layers, release="1.2")
    with pytest.raises(UserError, match=r"0\.11\.0 takes one window for all layers"):
        check(tmp_path, layers, release="0.11.0")
    with pytest.raises(UserError, match=r"100 tokens, the reference backend on all 192 of"):
        check(tmp_path, config, backend="reference")


@pytest.mark.parametrize(
    "triton",
    [
        {"max_attention_window_size": 100},
        {"guided_decoding_backend": "xgrammar"},
        {"decoding_mode": "medusa"},
        {"max_beam_width": 2},
    ],
)
def test_the_reference_backend_refuses_what_it_would_answer_otherwise(
    tmp_path: Path, triton: dict[str, object]
) -> None:
    (setting,) = triton
    with pytest.raises(UserError, match=rf"triton\.{setting}: the reference backend"):
        check(tmp_path, QWEN2, backend="reference", triton=triton)
    check(tmp_path, QWEN2, backend="tensorrt", triton=triton)


def test_the_reference_backend_takes_what_changes_nothing(tmp_path: Path) -> None:
    triton = {"max_attention_window_size": 192, "decoding_mode": "top_k_top_p"}
    check(tmp_path, QWEN2, backend="reference", triton=triton)

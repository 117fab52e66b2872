from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.plan.notes import notes
from trtllm_deploy.plan.plan import Facts, plan
from trtllm_deploy.plan.shape import trained_length
from trtllm_deploy.spec.deployment_file import load_deployment

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


def said(folder: Path, config: dict[str, Any], **changed: object) -> list[str]:
    spec = {
        "backend": "tensorrt",
        "models": {"m": {"source": "acme/tiny"}},
        "precisions": ["fp16"],
        "matrix": {"max_batch_size": [2, 4], "isl_osl": ["100,28"]},
        **changed,
    }
    (folder / "d.yaml").write_text(yaml.safe_dump(spec))
    file = load_deployment(folder / "d.yaml")
    facts = Facts(
        sources={"m": Source({"repo": "acme/tiny", "commit": "c"})},
        calibration_digest=None,
        tools={},
        templates_digest="",
        workspace=folder,
        configs={"m": config} if config else {},
        unjudged={} if config else {"m": "no network"},
    )
    return notes(file, [each.cell for each in plan(file, facts)], facts)


def test_a_plan_that_does_as_its_file_says_has_no_notes(tmp_path: Path) -> None:
    assert said(tmp_path, CONFIG) == []


def test_a_clipped_step_is_told_with_what_it_becomes(tmp_path: Path) -> None:
    two, four = said(tmp_path, CONFIG, build={"max_num_tokens": 1000})
    assert "_bs2: max_num_tokens 1000 is clipped to 256, max_seq_len x max_batch_size" in two
    assert "_bs4: max_num_tokens 1000 is clipped to 512" in four


def test_lengths_beyond_the_models_positions_are_told_once(tmp_path: Path) -> None:
    (note,) = said(tmp_path, {**CONFIG, "max_position_embeddings": 127})
    assert "ISL + OSL 128 is more than max_position_embeddings 127 of m" in note
    assert said(tmp_path, {**CONFIG, "max_position_embeddings": 128}) == []


def test_a_window_that_is_carried_is_told(tmp_path: Path) -> None:
    (note,) = said(tmp_path, {**CONFIG, "sliding_window": 64})
    assert note.endswith("max_attention_window_size 64, the model's sliding window")


def test_a_model_that_nothing_is_known_of_is_told(tmp_path: Path) -> None:
    assert said(tmp_path, {}) == [
        "m: config.json isn't known, so it isn't judged before its download: no network"
    ]


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({}, None),
        ({"max_position_embeddings": 8192}, 8192),
        (
            {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}},
            8192,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
    ],
)
def test_rotary_scaling_stretches_the_positions(config: dict[str, Any], most: int | None) -> None:
    assert trained_length(config) == most

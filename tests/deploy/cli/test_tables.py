from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.cli.tables import changes, print_plan, print_releases
from trtllm_deploy.plan.memory import memory_plans, parse_size
from trtllm_deploy.plan.plan import Facts, plan
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.workspace.folder import Workspace


def printed(*names: str) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_releases(console, names)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_plan_shows_what_a_gpu_has_to_hold_and_what_is_left_to_make(tmp_path: Path) -> None:
    file = load_deployment(Path(__file__).parents[3] / "examples" / "qwen2.yaml")
    models = file.deployment.models.items()
    facts = Facts(
        sources={name: Source({"repo": model.source}) for name, model in models},
        calibration_digest=None,
        tools={},
        templates_digest="",
        workspace=tmp_path,
        configs={
            name: json.loads(file.resolve(str(model.shape)).read_text()) for name, model in models
        },
    )
    plans = plan(file, facts)
    memory = memory_plans(file, [each.cell for each in plans], facts.shapes, parse_size("36GiB"))
    console = Console(file=io.StringIO(), width=160)
    print_plan(plans, Workspace(tmp_path), console, memory)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "qwen2_7b_fp16_tp1_pp1_isl2048_osl2048_bs8" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")[1:4]] == ["all", "14.2", "56"]
    assert "fits" in row
    tight = next(line for line in lines if "qwen2_72b_fp16_tp4_pp1_isl8192_osl4096_bs8" in line)
    assert "doesn't fit" in tight  # 35.6 GiB of weights
    assert "96 cells; to make: fetch 2 of 2, checkpoint 12 of 12, engine 96 of 96" in lines[-2]
    assert "8 doesn't fit" in lines[-1]


def test_releases_are_listed_with_what_can_serve_them() -> None:
    lines = printed().splitlines()
    assert any("0.11.0" in line and "tensorrt" in line and "llmapi" not in line for line in lines)
    assert any("1.2" in line and "llmapi" in line for line in lines)


def test_what_changed_between_two_releases_is_all_there() -> None:
    rows = {
        (what, name): (was, now)
        for what, name, was, now in changes(load_release("0.11.0"), load_release("1.2"))
    }
    build = "trtllm-build"
    assert rows[build, "--use_paged_context_fmha"] == (
        "enable|disable = disable",
        "enable|disable = enable",
    )
    assert rows[build, "--max_output_len"][1].startswith("- (write max_seq_len")
    assert rows[build, "--kv_cache_type"] == ("-", "continuous|paged|disabled")
    assert rows["ensemble input", "random_seed"] == ("TYPE_UINT64[1]", "-")
    assert rows["ensemble input", "seed"] == ("-", "TYPE_UINT64[1]")
    assert rows["tensorrt_llm parameter", "guided_decoding_backend"] == ("-", "there")
    assert (build, "--max_beam_width") not in rows


def test_a_release_does_not_differ_from_itself() -> None:
    assert list(changes(load_release("1.2"), load_release("1.2"))) == []
    assert "max_batch_size" in printed("0.11.0", "1.2")


def test_one_release_is_no_comparison() -> None:
    with pytest.raises(UserError, match="name two releases"):
        printed("1.2")

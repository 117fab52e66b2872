"""What ``set`` keeps for one cell: checked as the file is, and known to every plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from llm_perf.errors import UserError
from trtllm_deploy.builds.dry_run import dry_run_script
from trtllm_deploy.builds.make import StageMaker
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.cli import main as cli
from trtllm_deploy.plan.plan import CellPlan, Facts, distinct, plan
from trtllm_deploy.serve import change
from trtllm_deploy.serve.change import rerender
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment
from trtllm_deploy.spec.overrides import overridden, parse_changes
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.gather import gather
from trtllm_deploy.workspace.leftovers import leftovers
from trtllm_deploy.workspace.questions import why

CELL = "tiny_fp16_tp1_pp1_isl128_osl64_bs4"
OTHER = "tiny_fp16_tp1_pp1_isl128_osl64_bs8"


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., DeploymentFile]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text("{}")

    def written(**changed: Any) -> DeploymentFile:
        spec = {
            "models": {"tiny": {"source": "model"}},
            "precisions": ["fp16"],
            "calibration": {"data": "prompts.jsonl"},
            "matrix": {"max_batch_size": [4, 8], "isl_osl": ["128,64"]},
            "triton": {"enable_kv_cache_reuse": True},
            **changed,
        }
        (tmp_path / "d.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        return load_deployment(tmp_path / "d.yaml")

    return written


def facts(space: Workspace, **overrides: dict[str, Any]) -> Facts:
    return Facts(
        sources={"tiny": Source({"repo": "me/tiny", "commit": "c0ffee"})},
        calibration_digest="prompts",
        tools={},
        templates_digest="templates",
        workspace=space.root,
        overrides=overrides,
    )


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("enable_kv_cache_reuse=false", False),
        ("kv_cache_free_gpu_mem_fraction=0.85", 0.85),
        ("kv_cache_host_memory_bytes=16GiB", "16GiB"),
        ("gpu_device_ids=[0, 1]", [0, 1]),
        ("enable_kv_cache_reuse=", None),
    ],
)
def test_a_value_is_read_as_in_the_file(
    written: Callable[..., DeploymentFile], word: str, value: object
) -> None:
    file = written()
    assert parse_changes([word], file) == {word.split("=")[0]: value}
    if value is not None:
        overridden(file, parse_changes([word], file))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("enable_kv_reuse=true", "unknown key 'enable_kv_reuse'; did you mean 'enable_kv_cache_re"),
        ("enable_kv_cache_reuse", "has no value; write enable_kv_cache_reuse=VALUE"),
        ("gpu_device_ids=[0", "gpu_device_ids: can't read the value"),
        ("precisions=fp8", r"d\.yaml:4: precisions is built into the cell.* change it there and"),
        ("max_batch_size=2", r"d\.yaml:9: max_batch_size is built .* change it there and run"),
        ("gemm_plugin=auto", r"d\.yaml: gemm_plugin is built .* change it under 'build:' and run"),
        ("tp=2", r"d\.yaml: tp is built into the cell"),
    ],
)
def test_a_key_that_is_no_setting_says_where_it_is_changed(
    written: Callable[..., DeploymentFile], word: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        parse_changes([word], written())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"enable_kv_cache_reuse": "perhaps"}, "enable_kv_cache_reuse: input should be a .* 'perh"),
        ({"kv_cache_free_gpu_mem_fraction": 2}, "kv_cache_free_gpu_mem_fraction: .* not 2"),
        ({"postprocessing_instance_count": 2}, "must be 1 with decoupled_mode"),
        ({"guided_decoding_backend": "xgrammar"}, "TensorRT-LLM 0.11.0 has no such setting"),
    ],
)
def test_a_value_is_checked_as_in_the_file(
    written: Callable[..., DeploymentFile], changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        overridden(written(release="0.11.0"), changed)


def test_only_the_cell_s_repository_depends_on_it(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    file = written()
    before = plan(file, facts(space))
    after = plan(file, facts(space, **{CELL: {"preprocessing_instance_count": 2}}))
    assert before[1] == after[1]
    assert before[0].stages[:-1] == after[0].stages[:-1]
    assert before[0].repository.key != after[0].repository.key
    assert after[0].repository.made_from["triton"]["preprocessing_instance_count"] == 2
    assert after[0].repository.made_from["triton"]["enable_kv_cache_reuse"] is True
    same = plan(file, facts(space, **{CELL: {"enable_kv_cache_reuse": True}}))
    assert same == before


def test_a_combination_that_the_backend_refuses_in_a_file_is_refused(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    file = written(
        backend="tensorrt",
        release="0.11.0",
        precisions=["fp16"],
        kv_cache_dtype={"fp16": "int8"},
        triton={},
        build={"use_paged_context_fmha": "enable"},
    )
    plan(file, facts(space))
    with pytest.raises(UserError, match="can't reuse an int8 KV"):
        plan(file, facts(space, **{CELL: {"enable_kv_cache_reuse": True}}))


def test_what_is_kept_and_wrong_now_names_its_file(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    with pytest.raises(UserError, match=r"settings\.json: .*unknown key 'unheard_of'; docs"):
        plan(written(), facts(space, **{CELL: {"unheard_of": 1}}))
    space.root.mkdir()
    (space.root / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: isn't JSON"):
        gather(written(), space)


def made(file: DeploymentFile, space: Workspace, now: Facts) -> list[CellPlan]:
    """The cells, with light fetch, checkpoint and engine stages and real repositories."""
    plans = plan(file, now)

    def fill(target: Path) -> None:
        (target / "config.json").write_text("{}")

    for stage in distinct(plans):
        if stage.kind == "repository":
            StageMaker(file, now, space)(stage, lambda _: None)
        else:
            space.store.make(stage.kind, stage.made_from, fill)
    for each in plans:
        space.name(each)
    return plans


def test_the_changes_are_told_by_file(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    file = written()
    made(file, space, facts(space))
    now = facts(space, **{CELL: {"enable_kv_cache_reuse": False, "decoupled_mode": False}})
    chosen = plan(file, now)[0]
    changed = rerender(file, now, chosen, space)
    assert changed["tensorrt_llm/config.pbtxt"] == [
        "model_transaction_policy.decoupled: true → not set",
        'parameters.enable_kv_cache_reuse.string_value: "true" → "false"',
    ]
    assert set(changed) <= {"tensorrt_llm/config.pbtxt", "tensorrt_llm_bls/config.pbtxt"}
    assert all(reason.there for reason in why(chosen, space))
    [old] = leftovers([(each.kind, each.key) for each in distinct(plan(file, now))], space)
    assert old.kind == "repository"
    assert rerender(file, now, chosen, space) == {}
    counts = facts(space, **{CELL: {"preprocessing_instance_count": 3}})
    changed = rerender(file, counts, plan(file, counts)[0], space)
    assert changed["preprocessing/config.pbtxt"] == ["instance_group[0].count: 1 → 3"]


def test_a_dry_run_renders_with_it_too(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    file = written()
    now = facts(space, **{CELL: {"preprocessing_instance_count": 2}})
    script = dry_run_script(file, plan(file, now), now, space)
    [line] = [line for line in script.splitlines() if "preprocessing_instance_count" in line]
    assert "trtllm_deploy.builds.dry_run repository" in line
    assert line.endswith("""'{"preprocessing_instance_count": 2}'""")


def set_(space: Workspace, cell: str, *words: str) -> Result:
    file = space.root.parent / "d.yaml"
    arguments = ["set", str(file), cell, *words, "--workspace", str(space.root)]
    return CliRunner().invoke(cli.command, arguments)


def test_the_command_keeps_changes_until_they_are_reset(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    written()
    first = set_(space, CELL, "preprocessing_instance_count=2", "enable_kv_cache_reuse=false")
    assert first.output == "kept for the next build: it isn't built yet\n"
    assert set_(space, OTHER, "max_queue_size=7").exit_code == 0
    assert set_(space, CELL, "preprocessing_instance_count=").exit_code == 0
    assert space.overrides == {
        CELL: {"enable_kv_cache_reuse": False},
        OTHER: {"max_queue_size": 7},
    }
    set_(space, CELL, "enable_kv_cache_reuse=")
    assert json.loads((space.root / "settings.json").read_text()) == {OTHER: {"max_queue_size": 7}}


def test_a_wrong_change_leaves_everything_as_it_was(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    written()
    set_(space, CELL, "max_queue_size=7")
    before = space.overrides
    for cell, word in ((CELL, "max_queue_size=-1"), ("other", "max_queue_size=1"), (CELL, "x=1")):
        result = set_(space, cell, word)
        assert isinstance(result.exception, UserError)
    assert space.overrides == before


def test_a_build_that_was_planned_before_a_change_does_not_undo_it(
    written: Callable[..., DeploymentFile], space: Workspace
) -> None:
    file = written()
    before = plan(file, facts(space))[0]
    space.name(before)
    space.artifact(before.repository).mkdir(parents=True)
    kept = {CELL: {"enable_kv_cache_reuse": False}}
    changed = plan(file, facts(space, **kept))[0]
    space.name(changed, trying=True)
    space.artifact(changed.repository).mkdir(parents=True)
    space.keep_overrides(kept)
    space.name(before)
    assert space.names(before)[1][0].resolve() == space.artifact(changed.repository)
    space.keep_overrides({})
    space.name(before)
    assert space.names(before)[1][0].resolve() == space.artifact(before.repository)


def test_a_change_is_kept_while_it_is_tried_and_no_longer_where_it_fails(
    written: Callable[..., DeploymentFile],
    space: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = written()
    before = made(file, space, facts(space))[0]
    now = facts(space, **{CELL: {"preprocessing_instance_count": 2}})
    kept, named = [], []

    def never_up(workspace: Workspace, _: str) -> str:
        kept.append(workspace.overrides)
        workspace.name(before)  # a build that was planned before, and ends now
        named.append(workspace.names(before)[1][0].resolve())
        raise UserError("the server doesn't come up with it")

    monkeypatch.setattr(change, "bring_up", never_up)
    monkeypatch.setattr(change, "judge", lambda *_: [])
    with pytest.raises(UserError, match="doesn't come up"):
        change.try_out(file, now, plan(file, now)[0], space, lambda _: None)
    assert kept == [now.overrides]
    assert named == [space.artifact(plan(file, now)[0].repository)]
    assert space.overrides == {}
    assert space.names(before)[1][0].resolve() == space.artifact(before.repository)

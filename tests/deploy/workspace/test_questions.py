from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from llm_perf.errors import UserError
from trtllm_deploy.builds.estimate import about, estimate
from trtllm_deploy.plan.plan import CellPlan, Stage
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.questions import Reason, last_line, status, why

from tests.deploy.workspace.artifacts import Planning, being_made, make


def reasons(plan: CellPlan, space: Workspace) -> dict[str, Reason]:
    return {reason.stage.kind: reason for reason in why(plan, space)}


def test_a_stage_is_missing_then_running_then_there(planned: Planning, space: Workspace) -> None:
    stage = planned()[0].fetch
    assert status(stage, space).state == "missing"
    with being_made(stage, space):
        space.log(stage).parent.mkdir(parents=True)
        space.log(stage).write_text("10%\n20%\n\n")
        running = status(stage, space)
    assert (running.state, running.note) == ("running", "20%")
    assert status(stage, space).state == "there"


def test_a_failure_is_told_until_the_stage_is_made(planned: Planning, space: Workspace) -> None:
    each = planned()[0]
    space.note_failure(each.checkpoint, "out of memory")
    found = status(each.checkpoint, space)
    assert (found.state, found.note) == ("failed", "out of memory")
    make(space, each)
    assert status(each.checkpoint, space).state == "there"


def test_the_last_line_of_a_long_log_is_found_at_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x\n" * 100_000 + "the end\n\n")
    assert last_line(log) == "the end"
    assert last_line(tmp_path / "none") == ""


def test_why_names_the_setting_that_changed_and_what_depends_on_it(
    planned: Planning, space: Workspace
) -> None:
    make(space, *planned())
    fp8 = planned(samples=16)[2]
    found = reasons(fp8, space)
    assert found["fetch"] == Reason(fp8.fetch, there=True, changes=())
    assert found["checkpoint"] == Reason(
        fp8.checkpoint, there=False, changes=("calibration.samples: 8 → 16",)
    )
    assert found["engine"].changes == ("its checkpoint changed",)
    assert found["repository"].changes == ("its engine changed",)


def test_why_says_that_a_setting_is_new_or_gone(planned: Planning, space: Workspace) -> None:
    make(space, *planned(triton={"enable_kv_cache_reuse": True}))
    changes = reasons(planned(triton={"max_queue_size": 3})[0], space)["repository"].changes
    assert changes == (
        "triton.enable_kv_cache_reuse: true → not set",
        "triton.max_queue_size: not set → 3",
    )


def test_why_names_a_damaged_file(planned: Planning, space: Workspace) -> None:
    each = planned()[0]
    make(space, each)
    (space.artifact(each.engine) / "weights").write_text("short")
    found = reasons(each, space)
    assert found["engine"].changes == ("weights isn't as it was made",)
    assert not found["engine"].there
    assert found["repository"].there


def test_why_knows_when_nothing_was_built(planned: Planning, space: Workspace) -> None:
    changes = {reason.changes for reason in why(planned()[0], space)}
    assert changes == {("nothing was built before under this name",)}


def manifest(stage: Stage, seconds: float, **changed: object) -> dict[str, object]:
    cell = replace(stage.cell, **changed)  # type: ignore[arg-type]
    return {"stage": stage.kind, "seconds": seconds, "about": about(replace(stage, cell=cell))}


def test_a_stage_is_expected_to_take_as_long_as_the_most_alike_took(planned: Planning) -> None:
    stage = planned()[2].engine
    exact, other_batch = manifest(stage, 700), manifest(stage, 400, max_batch_size=64)
    other_model = manifest(stage, 90, model="large")
    other_precision = manifest(stage, 30, precision="int8_wo")
    assert estimate([stage], [other_precision, other_model, other_batch, exact]) == {stage.key: 700}
    assert estimate([stage], [other_precision, other_model, other_batch]) == {stage.key: 400}
    assert estimate([stage], [other_precision, other_model]) == {stage.key: 90}
    assert estimate([stage], [other_precision]) == {stage.key: 30}


def test_stages_of_another_kind_or_backend_say_nothing(planned: Planning) -> None:
    stage = planned()[2].engine
    checkpoint = manifest(planned()[2].checkpoint, 12)
    elsewhere = {**manifest(stage, 13), "about": {**about(stage), "backend": "tensorrt"}}
    assert estimate([stage], [checkpoint, elsewhere]) == {}


def test_a_workspace_whose_locks_cannot_be_opened_is_still_readable(
    planned: Planning, space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = planned()[0].fetch
    lock = space.store.root / "fetch" / f".{stage.key}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    assert not space.store.being_made("fetch", stage.key)


def test_of_a_workspace_that_was_moved_one_line_says_what_mends_it(
    planned: Planning, space: Workspace
) -> None:
    make(space, *planned())
    moved = Workspace(space.root.rename(space.root.with_name("moved")))
    each = planned(workspace=moved.root)[0]
    with pytest.raises(UserError, match=f"the workspace was {space.root} when") as caught:
        moved.repository(each)
    assert "run 'trtllm-deploy build'" in str(caught.value)
    assert "engines and checkpoints stay" in str(caught.value)
    make(moved, each)
    assert moved.repository(each).exists()

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from trtllm_deploy.plan.plan import CellPlan, distinct
from trtllm_deploy.store.leases import Lease, in_use
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment
from trtllm_deploy.workspace.folder import Built, Workspace
from trtllm_deploy.workspace.leftovers import in_use as workspace_in_use
from trtllm_deploy.workspace.leftovers import leftovers, sweep

from tests.deploy.workspace.artifacts import Planning, being_made, make


def needs(plans: Iterable[CellPlan]) -> list[tuple[str, str]]:
    return [(stage.kind, stage.key) for stage in distinct(plans)]


def test_what_a_file_needs_stays_and_the_rest_is_found(planned: Planning, space: Workspace) -> None:
    old, new = planned(), planned(samples=16)
    make(space, *old)
    make(space, *new)
    found = leftovers(needs(new), space)
    gone = {stage.key for stage in distinct(old)} - {stage.key for stage in distinct(new)}
    assert {each.key for each in found} == gone
    assert {each.title for each in found} == {
        "tiny fp8 tp1 pp1",
        "tiny_fp8_tp1_pp1_isl128_osl64_bs4",
        "tiny_fp8_tp1_pp1_isl128_osl64_bs8",
    }
    assert sweep(found, space) == []
    assert all(map(space.has, distinct(new)))
    assert leftovers(needs(new), space) == []


def test_a_name_whose_artifact_is_deleted_goes_too(planned: Planning, space: Workspace) -> None:
    make(space, *planned())
    fp16 = planned(precisions=["fp16"])
    sweep(leftovers(needs(fp16), space), space)
    names = sorted(path.name for path in (space.root / "engines").iterdir())
    assert names == [each.cell.name for each in fp16]


def test_what_a_killed_build_left_is_swept_and_the_artifact_beside_it_stays(
    planned: Planning, space: Workspace
) -> None:
    each = planned()[0]
    make(space, each)
    engine = space.artifact(each.engine)
    half = engine.with_name(f".{engine.name}.tmp-12345678")
    half.mkdir()
    (half / "rank0.engine").write_text("half")
    download = space.downloads / ("0" * 32)
    download.mkdir(parents=True)
    found = leftovers(needs([each]), space)
    assert [item.path for item in found] == [half, download]
    sweep(found, space)
    assert not half.exists()
    assert not download.exists()
    assert space.has(each.engine)


def test_what_is_just_being_made_is_not_swept(planned: Planning, space: Workspace) -> None:
    stage = planned()[0].fetch
    with being_made(stage, space):
        found = leftovers([], space)
        stayed = sweep(found, space)
    assert stayed == found != []
    assert space.has(stage)


@pytest.mark.parametrize("place", ["artifact", "half", "download"])
def test_of_a_link_only_the_link_is_deleted(
    place: str, planned: Planning, space: Workspace, tmp_path: Path
) -> None:
    make(space, *planned())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    engines = space.store.root / "engine"
    links = {
        "artifact": engines / ("0" * 32),
        "half": engines / f".{'0' * 32}.tmp-12345678",
        "download": space.downloads / ("0" * 32),
    }
    links[place].parent.mkdir(parents=True, exist_ok=True)
    links[place].symlink_to(outside)
    for _ in range(2):
        assert sweep(leftovers(needs(planned()), space), space) == []
    assert not links[place].is_symlink()
    assert (outside / "manifest.json").exists()


def test_folders_that_are_not_ours_are_not_deleted(
    planned: Planning, space: Workspace, tmp_path: Path
) -> None:
    make(space, *planned())
    (space.store.root / "engine" / "notes").mkdir()
    (tmp_path / "models" / ("1" * 32)).mkdir(parents=True)
    (space.store.root / "checkpoint").rename(tmp_path / "aside")
    (space.store.root / "checkpoint").symlink_to(tmp_path / "models")
    sweep(leftovers([], space), space)
    assert (space.store.root / "engine" / "notes").is_dir()
    assert (tmp_path / "models" / ("1" * 32)).is_dir()


def test_what_is_used_stays_with_all_it_was_made_from(planned: Planning, space: Workspace) -> None:
    used, other = planned()[0], planned()[3]
    make(space, used, other)
    with Lease(space.store.root) as lease:
        lease.hold([("repository", used.repository.key)])
        told = workspace_in_use(leftovers([], space), space)
        stayed = sweep(leftovers([], space), space)
    assert stayed == told
    assert {each.key for each in stayed} == {stage.key for stage in used.stages}
    assert all(map(space.has, used.stages))
    assert space.names(used)[1][0].exists()
    assert not space.has(other.engine)
    assert sweep(leftovers([], space), space) == []
    assert not space.has(used.engine)


_HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from trtllm_deploy.store.leases import Lease
lease = Lease(Path(sys.argv[1]))
lease.hold([("engine", "1" * 32)])
lease.hold([("engine", "2" * 32)])
print("held", flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lease_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD_AND_DIE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin
    assert holder.stdout
    holder.stdout.readline()
    assert in_use(tmp_path) == {("engine", "2" * 32)}
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    assert in_use(tmp_path) == frozenset()
    assert not list(tmp_path.glob("leases/*.json"))


def at(path: Path, planned: Planning, **changed: object) -> tuple[DeploymentFile, list[CellPlan]]:
    """The planned file as if it stood somewhere else."""
    plans = planned(**changed)
    text = (path.parent / "d.yaml").read_text()
    path.write_text(text)
    return load_deployment(path), plans


def test_a_workspace_knows_what_the_files_needed_that_were_built(
    planned: Planning, tmp_path: Path, space: Workspace
) -> None:
    one, plans = at(tmp_path / "one.yaml", planned)
    two, _ = at(tmp_path / "two.yaml", planned)
    assert space.deployment_files() == {}
    space.remember(one, plans)
    space.remember(two, plans[:1])
    space.remember(one, plans[2:])
    needed = {file: said.needs for file, said in space.deployment_files().items()}
    assert needed == {one.path: sorted(needs(plans[2:])), two.path: sorted(needs(plans[:1]))}
    space.forget([one.path])
    assert list(space.deployment_files()) == [two.path]


@pytest.mark.parametrize(
    "other", [{"triton": {"max_queue_size": 3}}, {"release": "0.11.0"}, {"backend": "tensorrt"}]
)
def test_cells_of_two_files_that_differ_otherwise_than_by_name_get_names_of_their_own(
    planned: Planning, tmp_path: Path, space: Workspace, other: dict[str, object]
) -> None:
    one, plans = at(tmp_path / "one.yaml", planned)
    space.remember(space.named_apart(one), plans)
    copy, _ = at(tmp_path / "copy.yaml", planned)
    two, _ = at(tmp_path / "two.yaml", planned, **other)
    apart = space.named_apart(two)
    names = [[cell.name for cell in space.named_apart(each).cells()] for each in (one, copy, two)]
    assert names[0] == names[1] == [plan.cell.name for plan in plans]
    assert names[2] == [f"{name}_{apart.variant}" for name in names[0]]
    assert len(apart.variant) == 6
    space.remember(apart, plans)
    space.forget([one.path])
    assert space.named_apart(two) == apart  # names stay what they were
    edited, _ = at(tmp_path / "two.yaml", planned, triton={"max_queue_size": 4})
    assert space.named_apart(edited).variant == apart.variant


def test_a_list_of_files_without_their_needs_is_read(tmp_path: Path, space: Workspace) -> None:
    space.root.mkdir()
    (space.root / "deployment-files.json").write_text('["/gone.yaml"]')
    assert space.deployment_files() == {Path("/gone.yaml"): Built(None)}

"""The hub here is a real HTTP server on this machine, told what to answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_perf.errors import UserError
from tests.deploy.hub import COMMIT, Hub, serving
from trtllm_deploy.checkpoint.fetch import fetch, resolve_folder

HEADER = json.dumps(
    {"weight": {"dtype": "U8", "shape": [300_000], "data_offsets": [0, 300_000]}}
).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"w" * 300_000
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"not needed",
    "README.md": b"not needed",
    "consolidated.safetensors": WEIGHTS,
    "original/model.safetensors": WEIGHTS,
    "model-of-nothing.safetensors": WEIGHTS,
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(FILES) as hub:
        yield hub


CHILD = """
import sys
from pathlib import Path
from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.fetch import fetch, resolve_hub
root, revision = Path(sys.argv[1]), sys.argv[2]
try:
    source = resolve_hub("acme/tiny", revision, root / "commits.json", offline_ok=False)
    (root / "target").mkdir(exist_ok=True)
    fetch(source, False, root / "target", root / "partial")
    print(source.identity["commit"])
except UserError as error:
    sys.exit(f"one line: {error}")
"""


def run(
    hub: Hub, root: Path, revision: str = "main", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(root), revision],
        env=hub.environment(root, **environment),
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_hub_id_is_resolved_to_its_commit_and_only_needed_files_come(
    hub: Hub, tmp_path: Path
) -> None:
    done = run(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == COMMIT
    there = {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()}
    assert set(there) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert there["model.safetensors"] == FILES["model.safetensors"]
    assert not (tmp_path / "partial").exists()
    weights = {name: hub.asked[name] for name in hub.asked if name.endswith(".safetensors")}
    assert set(weights) == {"model.safetensors"}


def test_of_a_model_in_parts_those_of_the_index_come(hub: Hub, tmp_path: Path) -> None:
    parts = {f"model-0000{part}-of-00002.safetensors": WEIGHTS for part in (1, 2)}
    del hub.files["model.safetensors"]
    index = json.dumps({"weight_map": {name: name for name in parts}}).encode()
    hub.files |= {**parts, "model.safetensors.index.json": index}
    assert run(hub, tmp_path).returncode == 0
    there = {path.name for path in (tmp_path / "target").glob("*.safetensors")}
    assert there == set(parts)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path)
    assert "Bearer hf_secretsecretsecret" in hub.tokens
    assert "secretsecret" not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secretsecret" not in path.read_bytes()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "GatedRepo", "is gated; set HF_TOKEN"),
        (401, "RepoNotFound", "has no model acme/tiny, or it is private"),
        (404, "RepoNotFound", "has no model acme/tiny, or it is private"),
        (404, "RevisionNotFound", "has no such revision"),
        (403, "", "refuses acme/tiny (HTTP 403)"),
        (429, "", "too many requests from here, the last for acme/tiny (HTTP 429); run the same"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, tmp_path: Path, status: int, code: str, says: str
) -> None:
    hub.status, hub.error_code = status, code
    done = run(hub, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("one line: ")
    assert says in last
    assert "Traceback" not in done.stderr


def test_an_unreachable_hub_is_one_line_unless_the_commit_is_known(
    hub: Hub, tmp_path: Path
) -> None:
    gone = Hub(url="http://127.0.0.1:9")  # discard: nobody listens
    done = run(gone, tmp_path)
    assert "can't be reached for acme/tiny" in done.stderr.splitlines()[-1]
    assert "run the same command again" not in done.stderr  # it wouldn't help
    assert run(hub, tmp_path).returncode == 0
    again = run(gone, tmp_path)  # the commit is known, the files aren't
    assert "can't be reached for acme/tiny" in again.stderr.splitlines()[-1]


@pytest.mark.parametrize("revision", ["main", COMMIT])
@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_the_hub_a_model_that_is_whole_in_the_cache_is_used(
    hub: Hub, tmp_path: Path, revision: str, offline: str
) -> None:
    cache = tmp_path / "hf" / "hub" / "models--acme--tiny"
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (cache / "blobs" / name).write_bytes(FILES[name])
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    gone = Hub(url="http://127.0.0.1:9")
    done = run(gone, tmp_path, revision, HF_HUB_OFFLINE=offline)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "target" / "model.safetensors").read_bytes() == WEIGHTS
    (snapshot / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "target")
    less = run(gone, tmp_path, revision, HF_HUB_OFFLINE=offline)
    why = "HF_HUB_OFFLINE is set" if offline == "1" else "can't be reached"
    assert why in less.stderr.splitlines()[-1]
    assert "run the same command again" not in less.stderr
    assert hub.asked == {}


def test_a_cut_download_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 100_000
    first = run(hub, tmp_path)
    assert first.returncode == 1
    assert "run the same command again" in first.stderr.splitlines()[-1]
    assert not list((tmp_path / "target").iterdir())
    hub.cut_after = None
    second = run(hub, tmp_path)
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "target" / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "custom.py").write_text("raise SystemExit")
    return folder


def test_a_local_folder_is_copied_without_what_isnt_needed(
    checkpoint: Path, tmp_path: Path
) -> None:
    source = resolve_folder(checkpoint, False, tmp_path / "digests.json")
    target = tmp_path / "target"
    target.mkdir()
    fetch(source, False, target, tmp_path / "partial")
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_the_same_bytes_elsewhere_are_the_same_source(checkpoint: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    first = resolve_folder(checkpoint, False, memory)
    moved = checkpoint.rename(tmp_path / "moved")
    assert resolve_folder(moved, False, memory).identity == first.identity
    (moved / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"v")
    assert resolve_folder(moved, False, memory).identity != first.identity


def test_code_of_a_checkpoint_comes_only_when_trusted(checkpoint: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    assert "custom.py" not in resolve_folder(checkpoint, False, memory).identity["files"]
    assert "custom.py" in resolve_folder(checkpoint, True, memory).identity["files"]


@pytest.mark.parametrize(
    ("lost", "says"), [("config.json", "no config.json"), ("model.safetensors", "no safetensors")]
)
def test_a_checkpoint_without_config_or_weights_is_refused(
    checkpoint: Path, tmp_path: Path, lost: str, says: str
) -> None:
    (checkpoint / lost).unlink()
    source = resolve_folder(checkpoint, False, tmp_path / "digests.json")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(
        UserError, match=f"has no {lost.partition('.')[0].replace('model', 'safe')}"
    ):
        fetch(source, False, target, tmp_path / "partial")


@pytest.mark.parametrize("kept", [0, 7, 100, 200_000])
def test_a_truncated_shard_is_refused_and_nothing_is_copied(
    checkpoint: Path, tmp_path: Path, kept: int
) -> None:
    (checkpoint / "model.safetensors").write_bytes(WEIGHTS[:kept])
    source = resolve_folder(checkpoint, False, tmp_path / "digests.json")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(UserError, match=r"model\.safetensors: .*truncated"):
        fetch(source, False, target, tmp_path / "partial")
    assert not list(target.iterdir())


def test_a_shard_that_the_index_names_and_nobody_has_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    source = resolve_folder(checkpoint, False, tmp_path / "digests.json")
    with pytest.raises(UserError, match=r"model-2\.safetensors: can't be read: No such file"):
        fetch(source, False, tmp_path, tmp_path / "partial")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_not_followed(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "secret"
    (checkpoint / name).rename(outside)
    (checkpoint / name).symlink_to(outside)
    with pytest.raises(UserError, match=rf"{name}: is a link out of the model's folder"):
        resolve_folder(checkpoint, False, tmp_path / "memory.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_pipe_in_the_folder_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(UserError, match=rf"{name}: isn't a regular file"):
        resolve_folder(checkpoint, False, tmp_path / "memory.json")


def test_links_within_the_folder_and_of_the_hub_s_cache_are_followed(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "tokenizer.json").rename(checkpoint / "other.json")
    (checkpoint / "tokenizer.json").symlink_to("other.json")
    within = resolve_folder(checkpoint, False, tmp_path / "memory.json")
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in within.identity["files"]:
        (blobs / name).write_bytes((checkpoint / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert resolve_folder(snapshot, False, tmp_path / "memory.json").identity == within.identity

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.machine.json_files import write_json
from trtllm_deploy.store.store import MANIFEST, Store, StoreError, content_key, link

MADE_FROM = {"model": "tiny", "flags": {"a": 1}}
KEY = content_key(MADE_FROM)


def fill(target: Path) -> None:
    (target / "config.json").write_text("{}")
    (target / "rank0").mkdir()
    (target / "rank0" / "weights").write_bytes(b"w" * 1000)


def test_an_artifact_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, made = store.make("engine", MADE_FROM, fill)
    again, made_again = store.make("engine", MADE_FROM, fill)
    assert (made, made_again) == (True, False)
    assert first == again == store.path("engine", KEY)
    assert (first / "rank0" / "weights").stat().st_size == 1000


def test_the_manifest_says_what_the_artifact_was_made_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make("engine", MADE_FROM, fill)
    manifest = store.manifest("engine", KEY)
    assert manifest is not None
    assert manifest["made_from"] == MADE_FROM
    assert manifest["files"] == {"config.json": 2, "rank0/weights": 1000}


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=6))
def test_a_key_depends_on_content_and_not_on_order(values: dict[str, object]) -> None:
    shuffled = dict(reversed(list(values.items())))
    assert content_key(values) == content_key(shuffled)
    assert content_key(values) != content_key({**values, "one more key": 0})


def test_what_has_no_manifest_does_not_exist(tmp_path: Path) -> None:
    store = Store(tmp_path)
    final, _ = store.make("engine", MADE_FROM, fill)
    (final / MANIFEST).unlink()
    assert not store.has("engine", KEY)
    _, made = store.make("engine", MADE_FROM, fill)
    assert made


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_damaged_artifact_is_made_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    final, _ = store.make("engine", MADE_FROM, fill)
    weights = final / "rank0" / "weights"
    weights.unlink() if damage == "gone" else weights.write_bytes(b"w")
    assert not store.has("engine", KEY)
    _, made = store.make("engine", MADE_FROM, fill)
    assert made
    assert weights.stat().st_size == 1000


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(target: Path) -> None:
        fill(target)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.make("engine", MADE_FROM, fail)
    assert not store.has("engine", KEY)
    assert [path for path in (tmp_path / "engine").iterdir() if path.is_dir()] == []


def _make_and_hang(root: Path, half_way: str) -> None:
    def hang(target: Path) -> None:
        fill(target)
        Path(half_way).touch()
        time.sleep(60)

    Store(root).make("engine", MADE_FROM, hang)


def test_a_killed_maker_leaves_no_artifact_and_no_lock(tmp_path: Path) -> None:
    half_way = tmp_path / "half-way"
    child = multiprocessing.get_context("spawn").Process(
        target=_make_and_hang, args=(tmp_path, str(half_way))
    )
    child.start()
    while not half_way.exists():
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    store = Store(tmp_path)
    assert not store.has("engine", KEY)
    _, made = store.make("engine", MADE_FROM, fill)
    assert made
    assert [path.name for path in (tmp_path / "engine").iterdir() if path.is_dir()] == [KEY]


def _make_slowly(root: Path, log: str) -> None:
    def slow(target: Path) -> None:
        with Path(log).open("a") as stream:
            stream.write("made\n")
        time.sleep(0.3)
        fill(target)

    Store(root).make("engine", MADE_FROM, slow)


def test_two_processes_make_a_thing_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_make_slowly, args=(tmp_path, str(log))) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert log.read_text() == "made\n"


@pytest.mark.parametrize("copied_from", [(), ("/from/model", None)])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, copied_from: tuple[str | None, ...]) -> None:
    def full(target: Path) -> None:
        names = (*copied_from, str(target / "weights"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)

    with pytest.raises(UserError, match=r"weights: the store can't be written: No space left"):
        Store(tmp_path).make("engine", MADE_FROM, full)


def test_a_full_disk_that_a_child_process_met_is_told_the_same_way(tmp_path: Path) -> None:
    def full(target: Path) -> None:
        raise UserError("trtllm-build ended: OSError: [Errno 28] No space left on device")

    with pytest.raises(StoreError, match="the store can't be written: No space left on device"):
        Store(tmp_path).make("engine", MADE_FROM, full)


def test_an_error_of_the_user_passes_as_it_is(tmp_path: Path) -> None:
    def refuse(target: Path) -> None:
        raise UserError("no such flag")

    with pytest.raises(UserError, match=r"^no such flag$") as caught:
        Store(tmp_path).make("engine", MADE_FROM, refuse)
    assert not isinstance(caught.value, StoreError)


def test_damages_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    final, _ = store.make("engine", MADE_FROM, fill)
    assert store.damages("engine", KEY) == []
    (final / "rank0" / "weights").unlink()
    assert store.damages("engine", KEY) == ["rank0/weights"]


def test_a_key_does_not_depend_on_what_a_manifest_tells_about_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make("engine", MADE_FROM, fill, about={"title": "one"})
    _, made = store.make("engine", MADE_FROM, fill, about={"title": "two"})
    assert not made
    assert [manifest["about"] for manifest in store.manifests("engine")] == [{"title": "one"}]


def test_another_error_of_a_maker_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def lost(target: Path) -> None:
        Path("/nonexistent/source").read_bytes()

    with pytest.raises(FileNotFoundError):
        Store(tmp_path).make("engine", MADE_FROM, lost)


def test_names_are_relative_links_and_can_change(tmp_path: Path) -> None:
    one, two = tmp_path / "store" / "1", tmp_path / "store" / "2"
    one.mkdir(parents=True)
    two.mkdir()
    name = tmp_path / "engines" / "cell"
    link(name, one)
    link(name, two)
    assert name.resolve() == two
    assert str(name.readlink()) == "../store/2"
    assert [path.name for path in name.parent.iterdir()] == ["cell"]


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert path.read_text() == "[\n  1\n]\n"
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]

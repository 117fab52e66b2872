"""The store: finished artifacts, addressed by what they were made from.

``<root>/<stage>/<key>/`` is an artifact if and only if it holds ``manifest.json``. Artifacts are
made in a temporary sibling and renamed into place when whole, so a crash at any moment leaves
either nothing or all of it. Knows nothing of what stages make.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_perf.errors import UserError
from llm_perf.files import sync
from trtllm_deploy.machine.json_files import read_json, write_json

MANIFEST = "manifest.json"

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_FOLDER = re.compile(r"\.?(?P<key>[0-9a-f]{32})(\.tmp-[0-9a-f]{8})?")
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class StoreError(UserError):
    """The store can't be written: no space left, read-only. Nothing else can be made either."""


def content_key(made_from: Mapping[str, Any]) -> str:
    """Key of an artifact: the first 128 bits of SHA-256 over canonical JSON, in hex."""
    text = json.dumps(made_from, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Artifacts below one folder, shared by any number of processes (also over NFS)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, stage: str, key: str) -> Path:
        """Where the artifact is, or would be."""
        return self.root / stage / key

    def manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        """The manifest of an artifact, or None where there is no artifact."""
        manifest: dict[str, Any] | None = read_json(self.path(stage, key) / MANIFEST)
        return manifest

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is there, each of its files with the size it had when made."""
        manifest = self.manifest(stage, key)
        return manifest is not None and not any(self._damages(stage, key, manifest))

    def damages(self, stage: str, key: str) -> list[str]:
        """Files of an artifact that are gone or have another size than when it was made."""
        manifest = self.manifest(stage, key)
        return list(self._damages(stage, key, manifest)) if manifest else []

    def _damages(self, stage: str, key: str, manifest: Mapping[str, Any]) -> Iterator[str]:
        folder = self.path(stage, key)
        for name, size in manifest["files"].items():
            if _size(f"{folder}/{name}") != size:
                yield name

    def manifests(self, stage: str) -> Iterator[dict[str, Any]]:
        """The manifests of all artifacts of one stage."""
        for file in (self.root / stage).glob(f"[!.]*/{MANIFEST}"):
            manifest = self.manifest(stage, file.parent.name)
            if manifest is not None:
                yield manifest

    def being_made(self, stage: str, key: str) -> bool:
        """Whether some process makes the artifact right now."""
        file = self._lock(stage, key)
        if not file.exists():
            return False
        try:
            with FileLock(file).acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # read-only
            return False

    def folders(self, stage: str) -> Iterator[tuple[str, Path]]:
        """All artifacts of a stage with their keys, and what is half made of some.

        Links in their place are among them; where the stage's own folder is a link, there are none.
        """
        folder = self.root / stage
        for path in sorted(folder.glob("*")) if not folder.is_symlink() else ():
            name = _FOLDER.fullmatch(path.name)
            if name and (path.is_symlink() or path.is_dir()):
                yield name["key"], path

    def discard(self, stage: str, key: str, path: Path) -> bool:
        """Delete a folder that belongs to a key; false when the artifact is just being made."""
        self.root.joinpath(stage).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._lock(stage, key)).acquire(timeout=0):
                _remove(path)
        except Timeout:
            return False
        return True

    def make(
        self,
        stage: str,
        made_from: Mapping[str, Any],
        maker: Callable[[Path], None],
        waiting: Callable[[], None] = lambda: None,
        about: Mapping[str, Any] | None = None,
    ) -> tuple[Path, bool]:
        """The artifact made from ``made_from``, and whether this call made it.

        ``maker`` fills the empty folder it is given; what it raises leaves no artifact behind. Of
        several processes one makes, the others wait (``waiting`` is called once if so). ``about``
        is kept in the manifest for people and estimates; the key doesn't depend on it. Raises
        StoreError: the store can't be written (read-only, no space left).
        """
        key = content_key(made_from)
        final = self.path(stage, key)
        if self.has(stage, key):
            return final, False
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._lock(stage, key), waiting):
                if self.has(stage, key):
                    return final, False
                self._make_locked(stage, key, made_from, maker, about or {})
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            place = error.filename2 or error.filename or final  # of a copy, where it was to go
            raise _unwritable(error.strerror, place) from error
        except UserError as error:  # a child process met the full disk, not we
            full = next((text for text in _FULL if text in str(error)), None)
            if full is None:
                raise
            raise _unwritable(full, final) from error
        return final, True

    def _lock(self, stage: str, key: str) -> Path:
        return self.root / stage / f".{key}.lock"

    def _half_made(self, stage: str, key: str) -> Iterator[Path]:
        return (self.root / stage).glob(f".{key}.tmp-*")

    def _make_locked(
        self,
        stage: str,
        key: str,
        made_from: Mapping[str, Any],
        maker: Callable[[Path], None],
        about: Mapping[str, Any],
    ) -> None:
        final = self.path(stage, key)
        for stale in (*self._half_made(stage, key), final):
            _remove(stale)
        temporary = final.parent / f".{key}.tmp-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            started = time.time()
            maker(temporary)
            manifest = {
                "stage": stage,
                "key": key,
                "made_from": made_from,
                "about": about,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 3),
                "files": _sizes(temporary),
            }
            write_json(temporary / MANIFEST, manifest)
            _sync_tree(temporary)
            temporary.rename(final)
            sync(final.parent)
        except BaseException:
            try:
                _remove(temporary)
            except KeyboardInterrupt:  # a signal came amid it; a second one won't
                _remove(temporary)
                raise
            raise


@contextmanager
def _locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def link(name: Path, target: Path) -> None:
    """Make ``name`` a relative symbolic link to ``target``, in one step."""
    name.parent.mkdir(parents=True, exist_ok=True)
    relative = os.path.relpath(target, name.parent)
    if name.is_symlink() and os.readlink(name) == relative:  # noqa: PTH115 (as written, unresolved)
        return
    temporary = name.parent / f".{name.name}.{uuid.uuid4().hex[:8]}"
    temporary.symlink_to(relative)
    temporary.replace(name)


def _unwritable(why: str | None, where: str | Path) -> StoreError:
    return StoreError(
        f"the store can't be written: {why}",
        where=where,
        fix="make room, or choose another --workspace; what is finished stays",
    )


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (called for every file of every artifact)
    except OSError:
        return None


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below ``folder``; links into other artifacts count as files there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def _remove(path: Path) -> None:
    """Delete a folder; its manifest goes first, so that half of it is never an artifact.

    Of a link only the link goes.
    """
    with suppress(FileNotFoundError):
        if path.is_symlink():
            path.unlink()
            return
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)

"""The fetch stage: a local folder or a Hugging Face id becomes a folder of checkpoint files.

Resolving says what a source is right now (a commit, or the digests of its files) without moving
weights; making copies or downloads it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.hub import UnreachableError, download, resolve_commit
from trtllm_deploy.checkpoint.source_files import check_weights, folder_files
from trtllm_deploy.machine.json_files import read_json, write_json

_LINK_FROM = 64 * 2**20  # bytes; larger local files are linked, not copied


@dataclass(frozen=True, slots=True)
class Source:
    """What a model comes from, resolved: the same ``identity`` means the same bytes."""

    identity: Mapping[str, Any]
    folder: Path | None = None
    unresolved: bool = False


def resolve_folder(folder: Path, remote_code: bool, memory: Path) -> Source:
    """Identity of a local checkpoint: the SHA-256 of each needed file.

    ``memory`` is a JSON file that keeps digests by path, size and time of change, so that the
    weights are read once.
    """
    known: dict[str, str] = read_json(memory) or {}
    digests, seen = {}, dict(known)
    for path in folder_files(folder, remote_code):
        status = path.stat()
        stamp = f"{path}:{status.st_size}:{status.st_mtime_ns}"
        if stamp not in seen:
            seen[stamp] = _digest(path)
        digests[path.name] = seen[stamp]
    if seen != known:
        write_json(memory, seen)
    return Source({"files": digests}, folder)


def resolve_hub(repo: str, revision: str, memory: Path, offline_ok: bool) -> Source:
    """Identity of a hub checkpoint: its commit.

    With ``offline_ok`` an id that can't be resolved is returned marked as unresolved. Raises
    UserError: no such repository or revision, no access, or no network and no earlier answer in
    ``memory`` or the Hugging Face cache.
    """
    try:
        return Source({"repo": repo, "commit": resolve_commit(repo, revision, memory)})
    except UnreachableError:
        if not offline_ok:
            raise
        return Source({"repo": repo, "commit": revision}, unresolved=True)


def fetch(source: Source, remote_code: bool, target: Path, partial: Path) -> None:
    """Fill ``target`` with the checkpoint's files.

    A download goes to ``partial`` first, which stays when it is cut, so that the next call goes on
    where this one ended. Raises UserError: no access, no network, or the source has no config.json
    or no whole weights.
    """
    if source.folder is not None:
        check_weights(source.folder)
        for path in folder_files(source.folder, remote_code):
            if path.stat().st_size > _LINK_FROM:
                (target / path.name).symlink_to(path.resolve())
            else:
                shutil.copyfile(path, target / path.name)
    else:
        download(source.identity["repo"], source.identity["commit"], remote_code, partial)
        check_weights(partial)
        for path in partial.iterdir():
            path.rename(target / path.name)
        partial.rmdir()
    for needed, what in (("config.json", "config.json"), ("*.safetensors", "safetensors weights")):
        if not any(target.glob(needed)):
            raise UserError(
                f"the checkpoint has no {what}",
                where=source.folder or source.identity["repo"],
                fix="choose a checkpoint in the safetensors format of Hugging Face",
            )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()

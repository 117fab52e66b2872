"""The fetch stage: a local folder or a Hugging Face id becomes a folder of checkpoint files.

Resolving says what a source is right now (a commit, or the digests of its files) without moving
weights; making copies or downloads it. HF_TOKEN is read by huggingface_hub from the environment
and appears nowhere else.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.trtllm_format import check_shard
from trtllm_deploy.machine.json_files import read_json, read_json_object, write_json

T = TypeVar("T")

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
    "*.tiktoken",
)
"""Patterns of what a tokenizer may be kept in."""

PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
)
"""Files of a checkpoint that later stages read; Python files only where the user trusts them."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
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
    for path in sorted(_needed(folder, remote_code)):
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

    ``memory`` is a JSON file of earlier resolutions, used when the hub can't be reached. With
    ``offline_ok`` an id that can't be resolved at all is returned marked as unresolved. Raises
    UserError: no such repository or revision, no access, or no network and no earlier answer.
    """
    if _COMMIT.fullmatch(revision):
        return Source({"repo": repo, "commit": revision})
    from huggingface_hub import HfApi  # 0.2 s to import

    name = f"{repo}@{revision}"
    known: dict[str, str] = read_json(memory) or {}
    try:
        commit = _ask_hub(repo, lambda: HfApi().model_info(repo, revision=revision).sha)
    except _UnreachableError as error:
        if name in known:
            return Source({"repo": repo, "commit": known[name]})
        if offline_ok:
            return Source({"repo": repo, "commit": revision}, unresolved=True)
        raise UserError(
            f"the Hugging Face hub can't be reached for {repo} ({error})",
            fix="check the network, or name a local folder as the source",
        ) from None
    if commit is None:
        raise UserError(f"the hub names no commit for {name}", fix="give a commit as revision")
    write_json(memory, {**known, name: commit})
    return Source({"repo": repo, "commit": commit})


def fetch(source: Source, remote_code: bool, target: Path, partial: Path) -> None:
    """Fill ``target`` with the checkpoint's files.

    A download goes to ``partial`` first, which stays when it is cut, so that the next call goes on
    where this one ended. Raises UserError: no access, no network, or the source has no config.json
    or no whole weights.
    """
    if source.folder is not None:
        check_weights(source.folder)
        for path in _needed(source.folder, remote_code):
            if path.stat().st_size > _LINK_FROM:
                (target / path.name).symlink_to(path.resolve())
            else:
                shutil.copyfile(path, target / path.name)
    else:
        _download(source, remote_code, partial)
        check_weights(partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)
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


def check_weights(folder: Path) -> None:
    """Each weight file of a Hugging Face checkpoint is there and whole; no weights are read.

    Raises UserError: a shard is missing, truncated or no safetensors file.
    """
    shards = set(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        listed = read_json_object(index).get("weight_map")
        if not isinstance(listed, dict):
            raise UserError("has no weight_map", where=index)
        shards |= {folder / name for name in listed.values()}
    for shard in sorted(shards):
        check_shard(shard)


def _download(source: Source, remote_code: bool, partial: Path) -> None:
    from huggingface_hub import snapshot_download

    repo = source.identity["repo"]
    patterns = [*PATTERNS, *(["*.py"] if remote_code else [])]
    try:
        _ask_hub(
            repo,
            lambda: snapshot_download(
                repo,
                revision=source.identity["commit"],
                allow_patterns=patterns,
                local_dir=partial,
            ),
        )
    except _UnreachableError as error:
        raise UserError(
            f"the download of {repo} was cut ({error})",
            fix="run the same command again: it goes on where it ended",
        ) from None


class _UnreachableError(Exception):
    """The hub gave no answer, or told us to come back later."""


def _ask_hub(repo: str, question: Callable[[], T]) -> T:
    """Run a hub call; what it raises becomes a UserError, or _UnreachableError if it may pass."""
    import httpx
    from huggingface_hub import errors

    token = "set HF_TOKEN to a token that may read it, and accept its license on the hub"
    try:
        return question()
    except errors.GatedRepoError:
        raise UserError(f"{repo} on the Hugging Face hub is gated", fix=token) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no such revision", fix="check 'revision:'") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face hub has no model {repo}, or it is private",
            fix=f"check it, or {token}",
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(f"the hub refuses {repo} (HTTP {status})", fix=token) from None
        if status == 429:
            raise UserError(
                f"the hub has had too many requests from here, the last for {repo} (HTTP 429)",
                fix="run the same command again in some minutes; with HF_TOKEN set it allows more",
            ) from None
        raise _UnreachableError(f"HTTP {status}") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _UnreachableError(type(error).__name__) from None
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise _UnreachableError(type(error).__name__) from None


def _needed(folder: Path, remote_code: bool) -> list[Path]:
    patterns = (*PATTERNS, "*.py") if remote_code else PATTERNS
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()

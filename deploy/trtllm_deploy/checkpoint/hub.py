"""The Hugging Face hub: which commit a name stands for, its small files, its weights.

Comes in: a repository and a revision. Goes out: a commit, a config, a folder of files, or why not
and what mends it. Where the hub can't be reached, what is whole in the Hugging Face cache serves.
HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are read by huggingface_hub; the token appears nowhere
else.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.source_files import (
    SIDE_CONFIGS,
    WEIGHT_INDEX,
    check_weights,
    needed_files,
    read_model_config,
)
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.machine.json_files import read_json, write_json

T = TypeVar("T")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = "set HF_TOKEN to a token that may read it, and accept its license on the hub"


class UnreachableError(UserError):
    """The hub gave no answer, or told us to come back later."""


class _NoFileError(Exception):
    """The repository is there, the file in it isn't."""


def resolve_commit(repo: str, revision: str, memory: Path) -> str:
    """The commit that a revision stands for.

    ``memory`` is a JSON file of earlier answers, used when the hub can't be reached, and after it
    the Hugging Face cache. Raises UserError: no such repository or revision, or no access;
    UnreachableError: no hub and nothing kept.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi  # 0.2 s to import

    name = f"{repo}@{revision}"
    known: dict[str, str] = read_json(memory) or {}
    try:
        commit = _ask(repo, lambda: HfApi().model_info(repo, revision=revision).sha)
    except UnreachableError:
        if name in known:
            return known[name]
        if cached := _cached(repo, revision, CONFIG):
            return cached.parent.name
        raise
    if commit is None:
        raise UserError(f"the hub names no commit for {name}", fix="give a commit as revision")
    write_json(memory, {**known, name: commit})
    return commit


def hub_config(repo: str, commit: str) -> dict[str, Any]:
    """The model's config.json, with what other small files say of its quantization.

    No weights are moved. Raises UserError: no config.json or no access; UnreachableError.
    """
    config = _small_file(repo, commit, CONFIG)
    if config is None:
        raise UserError(f"{repo} has no config.json", fix="choose a checkpoint of transformers")
    files = {CONFIG: config}
    for name in SIDE_CONFIGS:
        with suppress(UnreachableError):  # a config that is in the cache is judged offline too
            if file := _small_file(repo, commit, name):
                files[name] = file
    return read_model_config(files)


def download(repo: str, commit: str, remote_code: bool, partial: Path) -> None:
    """Bring the files that :func:`needed_files` names into ``partial``.

    What is there when it is cut stays, and the next call goes on. Raises UserError: no access, or
    no hub and no whole copy in the Hugging Face cache.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = _ask(repo, lambda: HfApi().list_repo_files(repo, revision=commit))
        index = _small_file(repo, commit, WEIGHT_INDEX) if WEIGHT_INDEX in names else None
        wanted = needed_files(names, index, remote_code)
        _ask(
            repo,
            lambda: snapshot_download(
                repo,
                revision=commit,
                allow_patterns=[glob.escape(name) for name in wanted],
                local_dir=partial,
            ),
        )
    except UnreachableError:
        if not _from_cache(repo, commit, remote_code, partial):
            raise
    shutil.rmtree(partial / ".cache", ignore_errors=True)


def _from_cache(repo: str, commit: str, remote_code: bool, partial: Path) -> bool:
    """Fill the folder from the Hugging Face cache if the model is whole there.

    Weights are linked hard where that can be, so that emptying the cache takes nothing away.
    """
    config = _cached(repo, commit, CONFIG)
    if config is None:
        return False
    snapshot = config.parent
    names = [path.name for path in snapshot.iterdir() if path.is_file()]
    index = snapshot / WEIGHT_INDEX
    try:
        check_weights(snapshot)
        wanted = needed_files(names, index if index.is_file() else None, remote_code)
    except UserError:
        return False
    if not any(fnmatch(name, "*.safetensors") for name in wanted):
        return False
    partial.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        (partial / name).unlink(missing_ok=True)
        with suppress(OSError):
            os.link((snapshot / name).resolve(), partial / name)
            continue
        shutil.copyfile(snapshot / name, partial / name)
    return True


def _small_file(repo: str, commit: str, name: str) -> Path | None:
    """One file in the Hugging Face cache, brought there if need be; None where there is none."""
    from huggingface_hub import hf_hub_download

    found = _cached(repo, commit, name)
    if found is not None:
        return found
    with suppress(_NoFileError):
        return Path(_ask(repo, lambda: hf_hub_download(repo, name, revision=commit)))
    return None


def _cached(repo: str, revision: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _ask(repo: str, question: Callable[[], T]) -> T:
    """Run a hub call; what it raises becomes a UserError, UnreachableError if it may pass."""
    import httpx
    from huggingface_hub import errors

    try:
        return question()
    except errors.GatedRepoError:
        raise UserError(f"{repo} on the Hugging Face hub is gated", fix=_TOKEN) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no such revision", fix="check 'revision:'") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face hub has no model {repo}, or it is private",
            fix=f"check it, or {_TOKEN}",
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 404:
            raise _NoFileError from None
        raise _refused(repo, status) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _unreachable(repo, error) from None
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise _unreachable(repo, error) from None


def _refused(repo: str, status: int | None) -> UserError:
    if status in (401, 403):
        return UserError(f"the hub refuses {repo} (HTTP {status})", fix=_TOKEN)
    if status == 429:
        return UserError(
            f"the hub has had too many requests from here, the last for {repo} (HTTP 429)",
            fix="run the same command again in some minutes; with HF_TOKEN set it allows more",
        )
    return UnreachableError(f"the Hugging Face hub fails for {repo} (HTTP {status})", fix=_LATER)


_LATER = "run the same command again: a download goes on where it ended"
_ELSEWHERE = (
    "or bring the model into the Hugging Face cache ('hf download'), or name a local folder"
)


def _unreachable(repo: str, error: BaseException) -> UnreachableError:
    """What helps: nothing here where offline mode is on, the network, or another try."""
    import httpx
    from huggingface_hub import constants

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if constants.HF_HUB_OFFLINE:
        return UnreachableError(
            f"HF_HUB_OFFLINE is set, and the Hugging Face cache has no whole copy of {repo}",
            fix=f"unset it, {_ELSEWHERE}",
        )
    why = next((each for each in causes if isinstance(each, httpx.HTTPError)), error)
    name = type(why).__name__
    cut = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
    if isinstance(why, cut) and not isinstance(why, httpx.ConnectError | httpx.ConnectTimeout):
        return UnreachableError(f"the Hugging Face hub was cut off for {repo} ({name})", fix=_LATER)
    asked = "HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else "the Hugging Face hub"
    return UnreachableError(
        f"{asked} can't be reached for {repo} ({name})", fix=f"check the network, {_ELSEWHERE}"
    )

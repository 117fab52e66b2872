"""What nothing in a workspace needs, and its end.

In: stages that are needed, a workspace. Out: folders; only ``sweep`` changes anything. It follows
no link, and leaves what somebody uses. Knows nothing of how artifacts are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from trtllm_deploy.plan.plan import StageKind
from trtllm_deploy.store import leases
from trtllm_deploy.store.leases import Artifact
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.questions import behind


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder that nothing needs: an artifact, what is half made of one, or a cut download.

    ``size`` in bytes on disk.
    """

    kind: StageKind
    key: str
    path: Path
    title: str
    size: int


def leftovers(needed: Iterable[Artifact], workspace: Workspace) -> list[Leftover]:
    """What is not ``needed``."""
    store, keep = workspace.store, set(needed)
    found = []
    for kind in get_args(StageKind):
        for key, path in store.folders(kind):
            if path.name != key:
                found.append(Leftover(kind, key, path, "half made", _bytes(path)))
            elif (kind, key) not in keep:
                about = (store.manifest(kind, key) or {}).get("about", {})
                title = "a link" if path.is_symlink() else about.get("title", "?")
                found.append(Leftover(kind, key, path, title, _bytes(path)))
    downloads = workspace.downloads
    for path in sorted(downloads.glob("*")) if not downloads.is_symlink() else ():
        if ("fetch", path.name) not in keep and (path.is_symlink() or path.is_dir()):
            found.append(Leftover("fetch", path.name, path, "download that was cut", _bytes(path)))
    return found


def _bytes(folder: Path) -> int:
    if folder.is_symlink():
        return 0
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def in_use(found: Iterable[Leftover], workspace: Workspace) -> list[Leftover]:
    """Those that a build, a server or a measurement uses, with all that they were made from."""
    held = leases.in_use(workspace.store.root)
    used = held | behind(held, workspace).keys()
    return [each for each in found if (each.kind, each.key) in used]


def sweep(found: Sequence[Leftover], workspace: Workspace) -> list[Leftover]:
    """Delete what was found, and names that lead nowhere then; returns what stays.

    That is what some process uses, or makes right now.
    """
    discard = workspace.store.discard
    with leases.nobody_else_begins(workspace.store.root):
        used = in_use(found, workspace)
        stayed = [
            each for each in found if each in used or not discard(each.kind, each.key, each.path)
        ]
        for name in workspace.named():
            if not name.exists():
                name.unlink()
    return stayed

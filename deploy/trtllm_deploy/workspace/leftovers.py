"""What nothing in a workspace needs, and its end.

In: stages that are needed, a workspace. Out: folders; only ``sweep`` changes anything. It follows
no link, and leaves what somebody uses. Knows nothing of how artifacts are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from trtllm_deploy.plan.plan import StageKind
from trtllm_deploy.store.leases import Artifact, nobody_else_begins
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


def sweep(found: Iterable[Leftover], workspace: Workspace) -> list[Leftover]:
    """Delete what was found, and names that lead nowhere then; returns what stays.

    That is what some process makes right now, or uses with all that it was made from.
    """
    discard = workspace.store.discard
    stayed = []
    with nobody_else_begins(workspace.store.root) as held:
        used = held | behind(held, workspace).keys()
        for each in found:
            if (each.kind, each.key) in used or not discard(each.kind, each.key, each.path):
                stayed.append(each)
        for name in workspace.named():
            if not name.exists():
                name.unlink()
    return stayed

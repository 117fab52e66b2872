"""Artifacts that hold next to nothing, of cells as they are planned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trtllm_deploy.builds.estimate import about
from trtllm_deploy.plan.plan import CellPlan, Stage, distinct
from trtllm_deploy.workspace.folder import Workspace

Planning = Callable[..., list[CellPlan]]


def make(space: Workspace, *plans: CellPlan) -> None:
    def fill(target: Path) -> None:
        (target / "weights").write_text("w" * 100)

    for stage in distinct(plans):
        space.store.make(stage.kind, stage.made_from, fill, about=about(stage))
    for each in plans:
        space.name(each)


@contextmanager
def being_made(stage: Stage, space: Workspace) -> Iterator[None]:
    half_way, go_on = threading.Event(), threading.Event()

    def slow(target: Path) -> None:
        half_way.set()
        go_on.wait()

    making = threading.Thread(target=space.store.make, args=("fetch", stage.made_from, slow))
    making.start()
    half_way.wait()
    try:
        yield
    finally:
        go_on.set()
        making.join()

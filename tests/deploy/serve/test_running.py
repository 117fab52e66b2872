"""Which records of a workspace are of servers of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trtllm_deploy.machine.ports import Ports
from trtllm_deploy.machine.remains import process_start
from trtllm_deploy.serve.running import Running, note, running
from trtllm_deploy.workspace.folder import Workspace


def test_a_copied_workspace_serves_nothing_of_its_original_s(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "one")
    started = process_start(os.getpid())
    assert started is not None
    served = Running(
        cell="c",
        pid=os.getpid(),
        started=started,
        state="ready",
        address="127.0.0.1",
        ports=Ports(),
        world_size=1,
        repository=str(space.root / "repository"),
        log_files=(str(space.server_log("c-8000")),),
        since="2026-01-01T00:00:00+00:00",
        starts=1,
        exit_seconds=1,
    )
    note(space, served)
    shutil.copytree(space.root, tmp_path / "copy")
    (tmp_path / "link").symlink_to(space.root)
    assert running(space) == [served]
    assert running(Workspace(tmp_path / "link")) == [served]
    assert running(Workspace(tmp_path / "copy")) == []

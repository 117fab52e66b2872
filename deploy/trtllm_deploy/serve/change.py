"""Changing a built cell's settings: its repository rendered again, a running server started anew.

In: a cell's plan with the new settings. Out: what changed, by file of the repository, and what a
running server made of it. Of stages only the repository is made. A server is not reloaded: Triton
lets whoever may load a model bring code of his own, so that door stays closed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from llm_perf.errors import UserError
from trtllm_deploy.builds.make import StageMaker
from trtllm_deploy.check.failures import first_errors
from trtllm_deploy.check.preflight import here, judge
from trtllm_deploy.plan.plan import CellPlan, Facts, find_plan
from trtllm_deploy.plan.plan import plan as plan_cells
from trtllm_deploy.serve.running import Running, running, start_anew
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.store.store import MANIFEST
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.questions import changes


def try_out(
    file: DeploymentFile,
    facts: Facts,
    plan: CellPlan,
    workspace: Workspace,
    show: Callable[[Mapping[str, list[str]]], None],
) -> str:
    """Make the cell's repository and start its servers on it; what came of it.

    The workspace keeps the settings from the start, so that no build meanwhile undoes them.
    ``show`` gets what changed. Raises UserError where preflight finds errors that weren't there
    before, or a server doesn't come up; then all is again as it was, and so kept.
    """
    repository = workspace.names(plan)[1][0]
    known, kept = _errors(repository), workspace.overrides
    try:
        workspace.keep_overrides(facts.overrides)
        changed = rerender(file, facts, plan, workspace)
        show(changed)
        for what in _errors(repository) - known:
            raise UserError(f"nothing was set: {what}", where=repository)
        return bring_up(workspace, plan.cell.name) if changed else "nothing changed"
    except UserError:
        workspace.keep_overrides(kept)
        old = replace(facts, overrides=kept)
        before = find_plan(plan_cells(file, old), file, plan.cell.name)
        rerender(file, old, before, workspace)
        for served in running(workspace):
            if served.cell == plan.cell.name and served.state == "refused":
                _start_anew(workspace, served)
        raise


def _errors(repository: Path) -> set[str]:
    """What preflight says stops a launch."""
    found = judge(repository, here())
    return {f"{each.what} ({each.why})" for each in found if each.level == "error"}


def rerender(
    file: DeploymentFile, facts: Facts, plan: CellPlan, workspace: Workspace
) -> dict[str, list[str]]:
    """Make the cell's repository and give it the cell's name; what changed, by file.

    Raises UserError: it can't be rendered; the name stays with the old one.
    """
    named = workspace.root / "ensemble_models" / plan.cell.name
    before = _files(named)
    StageMaker(file, facts, workspace)(plan.repository, lambda _: None)
    workspace.name(plan, trying=True)
    after = _files(named)
    differ = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return {
        name: list(changes(_settings(name, before), _settings(name, after))) or ["other code"]
        for name in differ
    }


def _files(repository: Path) -> dict[str, bytes]:
    """Every file of a repository, by its path in there."""
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.glob("**/*")
        if path.is_file() and path.name != MANIFEST and path.suffix != ".pyc"
    }


def _settings(name: str, files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """What a config says; nothing for files that are none."""
    text = files.get(name, b"").decode()
    if name.endswith(".yaml"):
        return dict(yaml.safe_load(text) or {})
    if name.endswith(".json") and "/" not in name:  # what a server is started with
        return dict(json.loads(text or "{}"))
    if not name.endswith(".pbtxt"):
        return {}
    from google.protobuf import json_format, text_format  # with tritonclient 0.2 s to import
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = text_format.Parse(text, ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def bring_up(workspace: Workspace, cell: str) -> str:
    """Start the servers of a cell anew, on what its repository is now; what came of it.

    Requests fail meanwhile, those in flight end as at a stop. Raises UserError: one is never ready.
    """
    servers = [each for each in running(workspace) if each.cell == cell]
    if not servers:
        return "it isn't served now"
    started = time.monotonic()
    for served in servers:
        _start_anew(workspace, served)
    return f"started anew, ready after {time.monotonic() - started:.1f} s"


def _start_anew(workspace: Workspace, served: Running) -> None:
    start_anew(served)
    while True:
        time.sleep(0.1)
        now = next((each for each in running(workspace) if each.pid == served.pid), None)
        if now is None or (now.starts > served.starts and now.state == "refused"):
            lines = Path(served.log_files[0]).read_text("utf-8", errors="replace").splitlines()
            said = " | ".join(first_errors(lines))
            raise UserError(
                f"the server of {served.cell} doesn't come up with it: {said}",
                where=served.log_files[0],
            )
        if now.starts > served.starts and now.state == "ready":
            return

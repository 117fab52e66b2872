"""Changing a built cell's settings: its repository rendered again, a running server reloaded.

In: a cell's plan with the new settings. Out: what changed, by file of the repository, and what a
running server made of it. Of stages only the repository is made.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.builds.make import StageMaker
from trtllm_deploy.check.preflight import here, judge
from trtllm_deploy.plan.plan import CellPlan, Facts, find_plan
from trtllm_deploy.plan.plan import plan as plan_cells
from trtllm_deploy.serve.launch import DIRECT
from trtllm_deploy.serve.running import Running, running
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.store.store import MANIFEST
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.questions import changes

_PATIENCE_S = 3600.0  # an engine of hundreds of GB from a network disk


def try_out(
    file: DeploymentFile,
    facts: Facts,
    plan: CellPlan,
    workspace: Workspace,
    show: Callable[[Mapping[str, list[str]]], None],
) -> str:
    """Make the cell's repository and have its servers load it; what came of it.

    ``show`` gets what changed. Raises UserError where preflight finds errors that weren't there
    before, or a server refuses; then all is again as the workspace keeps it.
    """
    repository = workspace.names(plan)[1][0]
    known = _errors(repository)
    changed = rerender(file, facts, plan, workspace)
    show(changed)
    try:
        for what in _errors(repository) - known:
            raise UserError(f"nothing was set: {what}", where=repository)
        models = {name.split("/")[0] for name in changed}
        if not models:
            return "nothing changed"
        return bring_up(workspace, plan.cell.name, models, file.deployment.backend)
    except UserError:
        old = replace(facts, overrides=workspace.overrides)
        before = find_plan(plan_cells(file, old), file, plan.cell.name)
        rerender(file, old, before, workspace)
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
    workspace.name(plan)
    after = _files(named)
    differ = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in set(differ) & set(after):  # Triton loads only what is newer than what it has, and
        (named / name).touch()  # a repository that was made before, for the same settings, isn't
    return {
        name: list(changes(_settings(name, before), _settings(name, after))) or ["other code"]
        for name in differ
    }


def _files(repository: Path) -> dict[str, bytes]:
    """Every file of a repository, by its path in there."""
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.glob("*/**/*")
        if path.is_file() and path.name != MANIFEST and path.suffix != ".pyc"
    }


def _settings(name: str, files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """What a config says; nothing for files that are none."""
    text = files.get(name, b"").decode()
    if name.endswith(".yaml"):
        return dict(yaml.safe_load(text) or {})
    if not name.endswith(".pbtxt"):
        return {}
    from google.protobuf import json_format, text_format  # with tritonclient 0.2 s to import
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = text_format.Parse(text, ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def bring_up(workspace: Workspace, cell: str, models: Set[str], backend: str) -> str:
    """Have the servers of a cell load the ``models`` that changed; what came of it.

    Raises UserError: the server refuses; what it had before goes on.
    """
    servers = [each for each in running(workspace) if each.cell == cell]
    if not servers:
        return "it isn't served now"
    started = time.monotonic()
    for served in servers:
        if served.key is not None:
            reload(served, models, unload_first=BACKENDS[backend].compiles)
    if any(served.key is None for served in servers):
        return (
            "its server can't load models again (several ranks, or not on loopback):"
            f" trtllm-deploy stop {cell}, then serve it"
        )
    return f"loaded {', '.join(sorted(models))} in {time.monotonic() - started:.1f} s; ready"


def reload(served: Running, models: Set[str], *, unload_first: bool) -> None:
    """Load models again; return when the server is ready. Raises UserError when it refuses.

    Triton loads an ensemble again with each of its models, and all its models with an ensemble.
    Requests go to the old model until the new one is there; but with ``unload_first`` they fail
    meanwhile: two engines rarely fit into a GPU's memory.
    """
    if unload_first and "tensorrt_llm" in models:
        _ask(served, "repository/models/tensorrt_llm/unload", {})
        while {"name": "tensorrt_llm", "version": "1", "state": "UNLOADING"} in _ask(
            served, "repository/index", {}
        ):  # requests in flight still have it
            time.sleep(0.2)
    roots = models & {"ensemble", "tensorrt_llm_bls"} if "ensemble" in models else models
    for model in sorted(roots):
        _ask(served, f"repository/models/{model}/load", {})
    _ask(served, "health/ready")


def _ask(served: Running, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """A request to the server's HTTP endpoint; what it answers, None for nothing."""
    request = urllib.request.Request(
        f"http://{served.address}:{served.ports.http}/v2/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers=dict(served.reload_headers),
    )
    try:
        with DIRECT.open(request, timeout=_PATIENCE_S) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace") or error.reason
        raise UserError(f"Triton refuses {path}: {said}", where=served.log_files[0]) from None
    except OSError as error:
        raise UserError(f"the server of {served.cell} doesn't answer: {error}") from None
    return json.loads(text) if text else None

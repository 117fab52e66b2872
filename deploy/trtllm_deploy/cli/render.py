"""The commands that carry a cell to a cluster, ``render``, and change a built one, ``set``.

They print, or write one file; what they print comes from :mod:`trtllm_deploy.serve.manifests` and
:mod:`trtllm_deploy.serve.change`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.cli.options import deployment_file, planned, workspace_folder
from trtllm_deploy.machine.console import console
from trtllm_deploy.spec.schema import BACKEND_NAMES

_WITH_OPTIONS = [name for name, what in BACKEND_NAMES.items() if what.get("options")]

TOOLS = ("trtllm-bench", "genai-perf", "perf-analyzer", "vllm-bench", "aiperf")
"""What study/tools.yaml has."""


@click.command()
@click.argument("kind", type=click.Choice(["slurm", "kubernetes", *_WITH_OPTIONS, *TOOLS]))
@deployment_file
@click.argument("cell")
@workspace_folder
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Default: standard output; for a tool the folder KIND-CELL.",
)
@click.option("-u", "--url", help="Tools: where the cell is served; default: here.")
@click.option("-m", "--model", help="Tools: the model's name there.")
@click.option("--image", help="Container; default: NVIDIA's of the release.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--partition", help="Slurm.")
@click.option("--account", help="Slurm.")
@click.option("--time", help="Slurm: limit of the job, as 1-00:00:00.")
@click.option("--address", help="Slurm: address to listen on; default: 127.0.0.1.")
@click.option("--namespace", help="Kubernetes; default: kubectl's own.")
@click.option("--pvc", help="Kubernetes: claim with the workspace; default: trtllm-workspace.")
@click.option(
    "--memory-per-gpu",
    type=click.IntRange(min=4),
    help="Kubernetes: GiB of the host, a quarter of it for shared memory; default: 32.",
)
def render(
    kind: str,
    file: Path,
    cell: str,
    workspace: Path,
    output: Path | None,
    image: str | None,
    gpus_per_node: int,
    **options: Any,
) -> None:
    """Write files to serve or measure CELL of FILE with other tools.

    For Slurm a script for sbatch, in a container by pyxis. For Kubernetes a Deployment, or a
    LeaderWorkerSet for several nodes, with Service and PodMonitor. The workspace has to be on every
    node, or in the claim, and gets the path that it has here. Nothing is submitted. For a server
    with options of its own its command, and the file of options.

    For a tool a folder with its command (run.sh), in the words of its version of today, for each
    load of FILE's measure: block, and with the prompts that 'run' asks in the tool's form.
    trtllm-bench has no server: it gets the cell's limits, and the prompts as token ids.
    """
    from trtllm_deploy.backends.backend import BACKENDS
    from trtllm_deploy.plan.plan import find_plan
    from trtllm_deploy.serve import manifests

    given = {name: value for name, value in options.items() if value is not None}
    if kind in TOOLS:
        _render_tool(kind, file, cell, workspace, output, given)
        return
    renderers: dict[str, Callable[..., str]] = {
        "slurm": manifests.slurm,
        "kubernetes": manifests.kubernetes,
    }
    renderer: Callable[..., str] = renderers.get(kind) or manifests.server
    if others := given.keys() - inspect.signature(renderer).parameters.keys():
        raise UserError(f"--{min(others).replace('_', '-')} isn't for {kind}", fix="leave it out")
    asked = planned(file, workspace, offline_ok=True)
    spec = asked.file.deployment
    chosen = find_plan(asked.plans, asked.file, cell).cell
    if kind in _WITH_OPTIONS and kind != chosen.backend:
        raise UserError(f"{cell} isn't of {kind}, but of {chosen.backend}", where=file)
    job = manifests.ClusterJob(
        chosen,
        BACKENDS[chosen.backend].cluster(spec.release, chosen),
        workspace=asked.workspace.root,
        gpus_per_node=gpus_per_node,
        image=image,
        environment=spec.env,
    )
    if kind in _WITH_OPTIONS:
        own = asked.facts.file_for(chosen, asked.file)
        given["options"] = BACKENDS[kind].serving(own, chosen)["options"]
    text = renderer(job, **given)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _render_tool(
    tool: str,
    file: Path,
    cell: str,
    workspace: Path,
    output: Path | None,
    given: Mapping[str, Any],
) -> None:
    from llm_perf.files import write_text
    from trtllm_deploy.plan.plan import find_plan
    from trtllm_deploy.study.asked import Asked
    from trtllm_deploy.study.tools import Served, tool_files

    if others := given.keys() - {"url", "model"}:
        raise UserError(f"--{min(others).replace('_', '-')} isn't for {tool}", fix="leave it out")
    asked = planned(file, workspace, offline_ok=True)
    settings = asked.file.deployment.measure
    if settings is None:
        raise UserError("there is no 'measure:' block, so nothing to measure", where=file)
    plan = find_plan(asked.plans, asked.file, cell)
    if not asked.workspace.has(plan.fetch):
        raise UserError(
            f"{cell}'s model isn't there, so nobody counts its prompts",
            where=asked.workspace.root,
            fix=f"build it: trtllm-deploy build {file}",
        )
    files = tool_files(
        tool,
        plan,
        asked.file,
        Asked(asked.file, settings, asked.workspace).of(plan, counted=True),
        {stage.kind: asked.workspace.artifact(stage) for stage in plan.stages},
        Served(**given),
    )
    folder = output or Path(f"{tool}-{cell}")
    for name, text in files.items():
        write_text(folder / name, text)
    click.echo(f"Wrote {', '.join(str(folder / name) for name in files)}: sh {folder}/run.sh")


@click.command("set")
@deployment_file
@click.argument("cell")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE...]")
@workspace_folder
def set_(file: Path, cell: str, changes: tuple[str, ...], workspace: Path) -> None:
    """Change settings of CELL that need no build.

    They are keys of FILE's 'triton:' block. Without any, say which are changed. They hold, whatever
    is built meanwhile, until 'set FILE CELL KEY=' brings back what FILE says. A server that runs is
    started anew. What 'check' calls an error, or the server refuses, changes nothing.
    """
    from trtllm_deploy.plan.plan import find_plan
    from trtllm_deploy.serve.change import try_out
    from trtllm_deploy.spec.deployment_file import load_deployment
    from trtllm_deploy.spec.overrides import overridden, parse_changes, shown
    from trtllm_deploy.workspace.folder import Workspace

    space = Workspace(workspace.resolve())
    kept, document = space.overrides, load_deployment(file)
    if not changes:
        for line in shown(kept.get(cell, {})) or ["nothing is set: all is as the file says"]:
            click.echo(plain(line))
        return
    wanted = {**kept.get(cell, {}), **parse_changes(changes, document)}
    kept[cell] = {key: value for key, value in wanted.items() if value is not None}
    overridden(document, kept[cell])
    asked = planned(file, workspace, offline_ok=True, overrides=kept)
    chosen = find_plan(asked.plans, asked.file, cell)
    out = console()
    if not all(map(space.has, chosen.stages[:-1])):
        space.keep_overrides(kept)
        out.print("kept for the next build: it isn't built yet")
        return

    def show(changed: Mapping[str, list[str]]) -> None:
        for name, lines in changed.items():
            shown = [f"[bold]{escape(name)}[/]", *(escape(plain(line)) for line in lines)]
            out.print("\n  ".join(shown), soft_wrap=True)

    said = try_out(asked.file, asked.facts, chosen, space, show)
    space.keep_overrides(kept)
    out.print(escape(plain(said)), soft_wrap=True)


COMMANDS = (render, set_)

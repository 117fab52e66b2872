"""The command ``tune``: a deployment file's ``tune:`` block in, a table and a patch out.

How points become cells is here; the search is :mod:`trtllm_deploy.study.tune`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from llm_perf.duration import spell_duration
from llm_perf.errors import UserError
from llm_perf.files import write_text
from llm_perf.screen import plain
from trtllm_deploy.cli.options import (
    Planned,
    Where,
    deployment_file,
    planned,
    where_to_run,
    workspace_folder,
)
from trtllm_deploy.machine.console import console

if TYPE_CHECKING:
    from llm_perf import api
    from trtllm_deploy.spec.studies import TuneSpec
    from trtllm_deploy.store.leases import Artifact, Lease
    from trtllm_deploy.study.space import Point, Space
    from trtllm_deploy.study.tune import Placed, Tuned

_KEY: Final = ("tune", "settings")


@click.command()
@deployment_file
@workspace_folder
@where_to_run
@click.option(
    "--gpu-memory", help="Memory of a GPU, as 80GiB; default: that of the first one here."
)
@click.option("--again", is_flag=True, help="Measure anew what the ledger has already.")
def tune(file: Path, workspace: Path, where: Where, gpu_memory: str | None, again: bool) -> int:
    """Find the settings of FILE's ``tune:`` block that serve best.

    Cells compete with the first of all values in paired blocks, which are in the ledger before the
    next begin: killed, the same command goes on. Ends with a table of changes, what shows which
    limit binds, and the best settings as a patch of FILE. Only what is measured is built.
    """
    from trtllm_deploy.builds.local import visible_gpus
    from trtllm_deploy.plan.memory import parse_size
    from trtllm_deploy.store.leases import Lease
    from trtllm_deploy.study.blocks import Study
    from trtllm_deploy.study.page import write_page
    from trtllm_deploy.study.price import price, rehearse
    from trtllm_deploy.study.tune import Tuning, Ways, space_of, tuner_of

    size = parse_size(gpu_memory) if gpu_memory else None
    asked = planned(file, workspace, where)
    spec = asked.file.deployment.tune
    if spec is None:
        raise UserError(
            "there is no 'tune:' block, so nothing to choose from",
            where=file,
            fix="add one with 'settings:', like settings: {max_batch_size: [8, 16]}",
        )
    limits = _limits(asked, spec)
    study = Study(
        f"tune {file.stem}",
        asked.workspace.results,
        lambda text: click.echo(plain(text), err=True),
        again,
    )
    if size is None and asked.facts.gpus:
        size = asked.facts.gpus[0].memory
    with Lease(asked.workspace.store.root) as lease:
        cells = _Cells(asked, size, lease)
        for point in space_of(spec).apart():  # what is wrong there shows before the first build
            cells.place(point)
        ways = Ways(cells.place, cells.unfit, cells.build, cells.expected, visible_gpus(where.gpus))
        rehearsed = rehearse(tuner_of(spec, ways))
        study.say(f"{price(rehearsed, spec)} {cells.to_make(rehearsed.points)}")
        for point, why in rehearsed.excluded.items():
            study.say(f"left out: {point}: {why}")
        tuned = Tuning(asked.file, spec, limits, ways, asked.workspace, study).run()
    _print(tuned, asked, space_of(spec))
    lines = [each for blocks in tuned.came.values() for each in blocks]
    name = f"tune-{file.stem}.html"
    write_page(lines, asked.workspace.results, list(map(str, limits)), study.name, console(), name)
    return 0


def _limits(asked: Planned, spec: TuneSpec) -> list[api.Limit]:
    """What must hold. Raises UserError where the load to compare at isn't told by it."""
    from llm_perf import api

    measure = asked.file.deployment.measure
    said = spec.limits or (measure.limits if measure else [])
    limits = [api.parse_limit(each, "tune.limits") for each in said]
    if spec.concurrency is not None and spec.request_rate is not None:
        raise asked.file.error(("tune", "request_rate"), "there are two loads", "give one of them")
    if spec.concurrency is None and spec.request_rate is None:
        searched = [each for each in limits if each.metric != "score"]
        if not searched:
            raise asked.file.error(
                ("tune",),
                "without limits there is no highest rate to compare at",
                "give limits such as ttft.p95<1s, or a concurrency or request_rate",
            )
        for each in searched:
            api.Criterion(each)  # raises where no search can tell
    return limits


@dataclass(frozen=True, slots=True)
class _Cells:
    """Points as cells of a file that has them alone."""

    asked: Planned
    gpu_memory: int | None
    lease: Lease
    held: set[Artifact] = field(default_factory=set)

    def place(self, point: Point) -> Placed:
        """Plan a point."""
        from trtllm_deploy.backends.backend import BACKENDS
        from trtllm_deploy.plan.plan import plan
        from trtllm_deploy.spec.rewrite import of_values
        from trtllm_deploy.study.evidence import EngineLimits
        from trtllm_deploy.study.tune import Placed

        file = of_values(self.asked.file, dict(point.values), _KEY)
        (made,) = plan(file, self.asked.facts)
        serving = self.asked.facts.file_for(made.cell, file).deployment.triton
        block = int(file.flag(made.cell, "tokens_per_block") or 32)
        chunk = block if serving.enable_chunked_context else None
        limits = EngineLimits(
            made.cell.max_batch_size,
            file.step_tokens(made.cell),
            block,
            chunk=1 if BACKENDS[made.cell.backend].splits_anywhere else chunk,
            reserves=serving.batch_scheduler_policy != "max_utilization",
        )
        return Placed(made, file, limits)

    def unfit(self, point: Point) -> str | None:
        """Why the memory plan excludes a point."""
        from trtllm_deploy.plan.memory import plan_memory

        try:
            placed = self.place(point)
        except UserError as error:
            return str(error)
        shape = self.asked.facts.shapes.get(placed.plan.cell.model)
        if shape is None or self.gpu_memory is None:
            return None
        memory = plan_memory(placed.file, placed.plan.cell, shape, self.gpu_memory)
        return "the memory plan says it doesn't fit" if memory.verdict == "doesn't fit" else None

    def build(self, placed: Placed) -> str | None:
        """Make what a point lacks; why it couldn't be made."""
        from trtllm_deploy.cli.building import build_cells

        self.held.update((stage.kind, stage.key) for stage in placed.plan.stages)
        self.lease.hold(self.held)
        if all(map(self.asked.workspace.has, placed.plan.stages)):
            return None
        own = replace(self.asked, file=placed.file)
        outcome = build_cells(own, [placed.plan], trial=True)
        return (
            next(iter(outcome.failures.values()), "it can't be built") if outcome.unbuilt else None
        )

    def to_make(self, points: Sequence[Point]) -> str:
        """What lacks, in words."""
        from trtllm_deploy.builds.estimate import estimate
        from trtllm_deploy.plan.plan import distinct

        space = self.asked.workspace
        stages = distinct([self.place(each).plan for each in points])
        missing = [each for each in stages if not space.has(each)]
        if not missing:
            return "All is built."
        kinds = dict.fromkeys(each.kind for each in missing)
        known = estimate(missing, (x for kind in kinds for x in space.store.manifests(kind)))
        counts = ", ".join(f"{sum(x.kind == kind for x in missing)} {kind}" for kind in kinds)
        all_s = sum(known.values()) if len(known) == len(missing) else 0.0
        return f"To make: {counts}{f', some {spell_duration(all_s)}' if all_s >= 1 else ''}."

    def expected(self, point: Point) -> float:
        """Tokens/s by the roofline under the load of the block, 0 where it doesn't tell."""
        from trtllm_deploy.plan.memory import plan_memory
        from trtllm_deploy.plan.roofline import LISTED, predict

        file, facts = self.asked.file, self.asked.facts
        placed = self.place(point)
        cell = placed.plan.cell
        shape, gpu = facts.shapes.get(cell.model), facts.gpus[0] if facts.gpus else None
        kind = LISTED.get(gpu.name) if gpu else None
        if shape is None or gpu is None or kind is None:
            return 0.0
        memory = plan_memory(placed.file, cell, shape, self.gpu_memory or gpu.memory)
        spec = file.deployment.tune
        load = (spec.concurrency if spec else None) or cell.max_batch_size
        found = predict(placed.file, cell, shape, kind, load, memory)
        return found.tokens_per_s if found else 0.0


def _print(tuned: Tuned, asked: Planned, space: Space) -> None:
    from llm_perf import api
    from trtllm_deploy.spec.rewrite import patch
    from trtllm_deploy.study.tuned_table import HEADS, LEAST, remarks, rows

    title = f"trtllm-deploy tune {asked.file.path.name}  at {tuned.offer.load.title}"
    api.print_table(title, HEADS, rows(tuned), remarks(tuned, space), least=LEAST)
    best = tuned.ending.best
    said = "" if best == tuned.baseline else patch(asked.file, dict(best.values))
    if not said:
        kept = "the file has the best settings" if best != tuned.baseline else "the baseline stays"
        broken = tuned.ending.excluded.get(best)
        click.echo(f"nothing is better{f', but {broken}' if broken else ''}: {kept}")
        return
    target = asked.workspace.results / f"tune-{asked.file.path.stem}.patch"
    write_text(target, said)
    click.echo(f"the best settings, as {target} (patch -p1 < it):\n{said}")


COMMANDS = (tune,)

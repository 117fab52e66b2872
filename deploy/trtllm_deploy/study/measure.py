"""Measuring built cells one after the other: serve, offer each load, stop, write down.

The figures are the client's; this module only adds which cell they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llm_perf import api
from llm_perf.screen import plain
from trtllm_deploy.machine.json_files import read_json, write_json
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.schema import MeasureSpec
from trtllm_deploy.store.leases import Lease
from trtllm_deploy.study.up import served
from trtllm_deploy.workspace.folder import Workspace

Row = dict[str, Any]


def measure_cells(
    plans: Iterable[CellPlan],
    file: DeploymentFile,
    settings: MeasureSpec,
    workspace: Workspace,
    say: Callable[[str], None],
) -> list[Row]:
    """Measure each cell under each load; one row per cell and load.

    ``results/<cell>/`` gets the client's files. ``results/summary.json`` gets the rows after each
    cell, in the place of that cell's earlier ones; those of other cells stay. Raises UserError: the
    prompts can't be read, or a server doesn't come up.
    """
    plans = list(plans)
    summary = workspace.results / "summary.json"
    rows: list[Row] = []
    with Lease(workspace.store.root) as lease:
        lease.hold((stage.kind, stage.key) for plan in plans for stage in plan.stages)
        for number, plan in enumerate(plans, start=1):
            say(f"[{number}/{len(plans)}] serving {plan.cell.name}")
            new = _measure_cell(plan, file, settings, workspace)
            others = [row for row in read_json(summary) or () if row["cell"] != plan.cell.name]
            write_json(summary, others + new)
            rows += new
    return rows


def _measure_cell(
    plan: CellPlan, file: DeploymentFile, settings: MeasureSpec, workspace: Workspace
) -> list[Row]:
    cell = plan.cell
    workload = api.load_workload(
        file.resolve(settings.data),
        workspace.artifact(plan.fetch),
        max_tokens=settings.max_tokens or cell.osl,
    )
    rows = []
    with served(plan, file, workspace) as up:
        for concurrency in settings.concurrency:
            load = api.Concurrency(concurrency)
            with api.show_progress(f"  concurrency {concurrency}") as watch:
                conditions = api.Conditions(settings.request_timeout, watch)
                run = api.measure(up.endpoint, workload, load, conditions)
            api.write_run(run, workspace.results / cell.name / f"{load.name}.json")
            rows.append(_row(plan, file, concurrency, run))
    return rows


def _row(plan: CellPlan, file: DeploymentFile, concurrency: int, run: api.Run) -> Row:
    """A run's figures, and all that says what was measured."""
    spec = file.deployment
    return {
        "cell": plan.cell.name,
        "backend": spec.backend,
        **asdict(plan.cell),
        "build": dict(plan.cell.build),
        "concurrency": concurrency,
        "score": run.score,
        "requests_ok": run.requests_ok,
        "requests_failed": run.requests_failed,
        "metrics": run.metrics,
        "notes": list(run.notes),
        "release": spec.release,
        "triton": plan.repository.made_from["triton"],
        "repository": plan.repository.key,
        "workload_sha256": run.workload.sha256,
        "started_at": run.started_at,
    }


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("model", lambda row: row["model"]),
    ("tp", lambda row: str(row["tp"])),
    ("pp", lambda row: str(row["pp"])),
    ("ISL", lambda row: str(row["isl"])),
    ("OSL", lambda row: str(row["osl"])),
    ("precision", lambda row: row["precision"]),
    ("batch", lambda row: str(row["max_batch_size"])),
    ("conc.", lambda row: str(row["concurrency"])),
    ("score", lambda row: "-" if row["score"] is None else f"{row['score']:.3f}"),
    ("failed", lambda row: str(row["requests_failed"])),
    ("TTFT p50", lambda row: _figure(row, "time_to_first_token", "p50")),
    ("TTFT p99", lambda row: _figure(row, "time_to_first_token", "p99")),
    ("ITL avg", lambda row: _figure(row, "inter_token_latency", "avg")),
    ("tok/s", lambda row: _figure(row, "output_token_throughput", "avg")),
    ("req/s", lambda row: _figure(row, "request_throughput", "avg")),
    ("backend", lambda row: row["backend"]),
)
_TITLE = {"model", "tp", "pp", "ISL", "OSL"}  # in the title where all cells agree


def print_summary(rows: list[Row], results: Path, console: Console) -> None:
    """One table over all cells and loads, what went wrong, and where the files are."""
    same = {name: text(rows[0]) for name, text in _COLUMNS if len({*map(text, rows)}) == 1}
    title = "  ".join(f"{name} {text}" for name, text in same.items() if name in _TITLE)
    caption = f"times in ms; details: {results}/"
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    columns = [each for each in _COLUMNS if each[0] not in _TITLE & set(same)]
    for name, _ in columns:
        text = name in {"model", "precision", "backend"}
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row) for _, text in columns))
    console.print(table)
    for row in rows:
        if row["requests_failed"]:
            notes = plain("; ".join(row["notes"]))
            console.print(f"{row['cell']} at {row['concurrency']}: {notes}", markup=False)
    if any(row["backend"] == "reference" for row in rows):
        console.print(
            "The reference backend shows that the pipeline works and how a precision answers; "
            "its speed says nothing about TensorRT-LLM."
        )


def _figure(row: Row, metric: str, statistic: str) -> str:
    value = row["metrics"][metric][statistic]
    return "-" if value is None else f"{value:,.2f}"

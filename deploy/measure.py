"""Measuring built cells one after the other: serve, offer each load, stop, write down.

The figures are the client's; this module only adds which cell they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from client import api
from client.progress import show_progress
from deploy.launch import TritonServer, free_ports
from deploy.plan import CellPlan
from deploy.spec import Cell, DeploymentFile, MeasureSpec
from deploy.store import write_json
from deploy.workspace import Workspace

Row = dict[str, Any]


def measure_cells(
    plans: Iterable[CellPlan],
    file: DeploymentFile,
    settings: MeasureSpec,
    workspace: Workspace,
    say: Callable[[str], None],
) -> list[Row]:
    """Measure each cell under each load; one row per cell and load.

    ``results/<cell>/`` gets the client's files and ``results/summary.json`` all rows so far,
    written anew after each cell, so that a cut run keeps what it measured.

    Raises:
        UserError: the prompts can't be read, or a server doesn't come up.
    """
    plans = list(plans)
    rows: list[Row] = []
    for number, plan in enumerate(plans, start=1):
        say(f"[{number}/{len(plans)}] serving {plan.cell.name}")
        rows += _measure_cell(plan, file, settings, workspace)
        write_json(workspace.results / "summary.json", rows)
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
    with TritonServer(
        workspace.repository(plan),
        ports=free_ports(),
        log_file=workspace.server_log(cell.name),
        cache_dir=workspace.triton,
    ) as server:
        server.wait_ready()
        endpoint = api.Endpoint(server.grpc_url, "grpc", "ensemble")
        for concurrency in settings.concurrency:
            load = api.Concurrency(concurrency)
            with show_progress(f"  concurrency {concurrency}") as watch:
                options = api.Options(settings.request_timeout, watch)
                run = api.measure(endpoint, workload, load, options)
            api.write_run(run, workspace.results / cell.name / f"{load.name}.json")
            rows.append(_row(cell, file.deployment.backend, concurrency, run))
    return rows


def _row(cell: Cell, backend: str, concurrency: int, run: api.Run) -> Row:
    return {
        "cell": cell.name,
        "backend": backend,
        "model": cell.model,
        "precision": cell.precision,
        "max_batch_size": cell.max_batch_size,
        "concurrency": concurrency,
        "score": run.score,
        "requests_ok": run.requests_ok,
        "requests_failed": run.requests_failed,
        "metrics": run.metrics,
        "notes": list(run.notes),
        "workload_sha256": run.workload.sha256,
    }


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("model", lambda row: row["model"]),
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


def print_summary(rows: list[Row], results: Path, console: Console) -> None:
    """One table over all cells and loads, and where the files are."""
    models = {row["model"] for row in rows}
    title = f"All cells of {models.pop()}" if len(models) == 1 else "All cells"
    columns = _COLUMNS if models else _COLUMNS[1:]
    caption = f"times in ms; details: {results}/"
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for name, _ in columns:
        text = name in {"model", "precision", "backend"}
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row) for _, text in columns))
    console.print(table)
    if any(row["backend"] == "reference" for row in rows):
        console.print(
            "The reference backend shows that the pipeline works and how a precision answers; "
            "its speed says nothing about TensorRT-LLM."
        )


def _figure(row: Row, metric: str, statistic: str) -> str:
    value = row["metrics"][metric][statistic]
    return "-" if value is None else f"{value:,.2f}"

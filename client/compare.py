"""The command ``llm_perf compare A.json B.json``: what changed, for the eye, for CI and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from client.comparison import Change, Comparison, Side

CHECK_FAILED: Final = 3  # exit code
_SHOWN: Final = 3
_SIDE: Final = click.Path(path_type=Path)


@click.command(
    name="compare",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("a", type=_SIDE)
@click.argument("b", type=_SIDE)
@click.option(
    "--fail-if",
    "rules",
    multiple=True,
    metavar="RULE",
    help="Exit code 3 when the change from A to B is so: METRIC.STATISTIC, an operator, ±X or "
    "±X%, as in 'time_to_first_token.p99 > +5%' or 'score.avg < -0.01'. Can be repeated.",
)
@click.option("--force", is_flag=True, help="Compare runs of different workloads all the same.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def compare_command(a: Path, b: Path, rules: tuple[str, ...], force: bool, as_json: bool) -> int:
    """Compare two runs of one workload, request by request.

    A and B are JSON files that llm_perf wrote, each with its jsonl beside it. Intervals are paired
    bootstrap (95 %) over the requests that both runs answered.
    """
    from client.comparison import compare, parse_rule, read_side

    checks = [parse_rule(rule) for rule in rules]
    before, after = read_side(a), read_side(b)
    seen = compare(before, after, force=force)
    broken = [check.text for check in checks if check.broken(before, after)]
    if as_json:
        click.echo(json.dumps({**asdict(seen), "failed": broken}, ensure_ascii=False, indent=2))
    else:
        _print(seen, before, after)
        for text in broken:
            click.echo(f"FAILED: {text}")
    return CHECK_FAILED if broken else 0


def _print(seen: Comparison, a: Side, b: Side) -> None:
    from rich.table import Table

    from client.report import console_for

    table = Table(title=f"llm_perf compare | A {a.path} | B {b.path}")
    table.add_column("Figure")
    for head in ("A", "B", "B − A", "%", "95 % interval of B − A", "n"):
        table.add_column(head, justify="right", no_wrap=True)
    for change in seen.changes:
        table.add_row(*_row(change))
    console = console_for(None)
    console.print(table)
    for line in _foot(seen, a, b):
        console.print(line, markup=False, soft_wrap=True)


def _row(change: Change) -> tuple[str, ...]:
    percent, interval = "-", "-"
    if change.percent is not None:
        percent = f"{change.percent:+.1f}"
    if change.low is not None:
        interval = f"{change.low:+,.3f} to {change.high:+,.3f}{' *' if change.sure else '  '}"
    figures = (f"{change.a:,.3f}", f"{change.b:,.3f}", f"{change.difference:+,.3f}")
    return (f"{change.metric}.{change.statistic}", *figures, percent, interval, str(change.n))


def _foot(seen: Comparison, a: Side, b: Side) -> list[str]:
    lines = [
        "* the interval excludes no change; figures are of the whole runs, intervals of the "
        f"{seen.pairs} requests that both answered",
        f"Answers that changed: {len(seen.changed)} of {seen.pairs}",
    ]
    for index in seen.changed[:_SHOWN]:
        was, became = (_answer(side, index) for side in (a, b))
        lines.append(f"  prompt {index}: {was!r} became {became!r}")
    if seen.p is not None:
        lines.append(
            f"Right only in A: {seen.only_a}, only in B: {seen.only_b}; "
            f"McNemar's exact p = {seen.p:.4f}"
        )
    return lines


def _answer(side: Side, index: int) -> str:
    line: Mapping[str, Any] = next(line for line in side.lines if line["index"] == index)
    return str(line["answer"])

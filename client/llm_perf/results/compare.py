"""The command ``llm_perf compare A.json B.json``: what changed from A to B, and how surely.

Two runs or sweeps that ``llm_perf.results.export`` wrote come in; changes and verdicts go out, for
the eye, for CI and as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from llm_perf.errors import UserError
from llm_perf.figures.limits import parse_limit
from llm_perf.json_text import json_text
from llm_perf.results.change import Comparison, compare, load_of, pairs, told_load
from llm_perf.results.change_table import print_changes
from llm_perf.results.rule import judge
from llm_perf.results.written import Side, read_sides

CHECK_FAILED: Final = 3  # exit code
_SHOWN: Final = 3  # changed answers
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
    help="Exit code 3 when the change from A to B is surely so, by the near end of its interval: "
    "METRIC.STATISTIC, an operator, ±X, ±X% or ±X with a unit of time, as in "
    "'ttft.p99 > +5%' or 'score < -0.01'. Can be repeated.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Compare runs of different workloads, loads or failures all the same.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def compare_command(a: Path, b: Path, rules: tuple[str, ...], force: bool, as_json: bool) -> int:
    """Compare two runs of one workload, or two sweeps load by load, request by request.

    A and B are JSON files that llm_perf wrote, each with its jsonl beside it. Intervals are paired
    bootstrap (95 %) over the prompts that both runs answered. Where they answered none in common,
    the exit code is 3 too.
    """
    checks = [parse_limit(rule, "--fail-if", "change") for rule in rules]
    sides = read_sides(a), read_sides(b)
    met = _met(*sides)
    compared = []
    for before, after in met:
        seen = compare(before, after, force=force)
        both = pairs(before, after)
        verdicts = [judge(check, before, after, both) for check in checks] if both else []
        failed = [each.rule for each in verdicts if each.outcome == "broken"]
        if not both:
            failed = [_nothing(before, after), *rules]
        judged = {"failed": failed, "rules": [asdict(each) for each in verdicts]}
        compared.append({**asdict(seen), **judged})
        if not as_json:
            said = map(str, verdicts) if both else (f"FAILED: {each}" for each in failed)
            title = f"llm_perf compare | A {before.path} | B {after.path}"
            print_changes(title, seen.changes, (*_foot(seen, before, after), *said))
    if as_json:
        named = [
            {"a": str(x.path), "b": str(y.path), **each}
            for (x, y), each in zip(met, compared, strict=True)
        ]
        told = compared[0] if max(map(len, sides)) == 1 else {"loads": named}
        click.echo(json_text(told, indent=2))
    return CHECK_FAILED if any(each["failed"] for each in compared) else 0


def _met(a: Sequence[Side], b: Sequence[Side]) -> list[tuple[Side, Side]]:
    """The runs of both, of sweeps those under one load; what only one has is told on stderr."""
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    left, met, alone = list(b), [], []
    for side in a:
        other = next((each for each in left if load_of(each) == load_of(side)), None)
        if other is None:
            alone.append(side)
        else:
            left.remove(other)
            met.append((side, other))
    if not met:
        raise UserError("A and B have no load in common", fix="compare runs under the same load")
    for name, sides in (("A", alone), ("B", left)):
        if sides:
            loads = ", ".join(told_load(load_of(each)) for each in sides)
            click.echo(f"Only in {name}: {loads}", err=True)
    return met


def _nothing(a: Side, b: Side) -> str:
    return (
        f"there is nothing to compare: A answered {a.answered} of {len(a.lines)} requests, "
        f"B {b.answered} of {len(b.lines)}, and none in common"
    )


def _foot(seen: Comparison, a: Side, b: Side) -> Iterator[str]:
    yield (
        "* the interval excludes no change; figures are of the whole runs, intervals of the "
        f"{seen.pairs} requests that both answered"
    )
    yield from (f"Warning: {each}" for each in seen.warnings)
    yield f"Answers that changed: {len(seen.changed)} of {seen.pairs}"
    for index in seen.changed[:_SHOWN]:
        lines = (next(line for line in side.lines if line["index"] == index) for side in (a, b))
        was, became = (str(line["answer"]) for line in lines)
        yield f"  prompt {index}: {was!r} became {became!r}"
    if seen.p is not None:
        yield (
            f"Prompts right only in A: {seen.only_a}, only in B: {seen.only_b}; "
            f"McNemar's exact p = {seen.p:.4f}"
        )

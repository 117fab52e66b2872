"""The command ``llm_perf compare A.json B.json``: what changed from A to B, and how surely.

Two runs that ``llm_perf.results.export`` wrote come in; changes and verdicts go out, for the eye,
for CI and as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from llm_perf.figures.limits import parse_limit
from llm_perf.results.change import Comparison, compare, pairs
from llm_perf.results.change_table import print_changes
from llm_perf.results.rule import judge
from llm_perf.results.written import Side, read_side

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
    """Compare two runs of one workload, request by request.

    A and B are JSON files that llm_perf wrote, each with its jsonl beside it. Intervals are paired
    bootstrap (95 %) over the prompts that both runs answered. Where they answered none in common,
    the exit code is 3 too.
    """
    checks = [parse_limit(rule, "--fail-if", "change") for rule in rules]
    before, after = read_side(a), read_side(b)
    seen = compare(before, after, force=force)
    both = pairs(before, after)
    verdicts = [judge(check, before, after, both) for check in checks] if both else []
    failed = [each.rule for each in verdicts if each.outcome == "broken"]
    if not both:
        failed = [_nothing(before, after), *rules]
    if as_json:
        told = {"failed": failed, "rules": [asdict(each) for each in verdicts]}
        click.echo(json.dumps({**asdict(seen), **told}, ensure_ascii=False, indent=2))
    else:
        said = map(str, verdicts) if both else (f"FAILED: {each}" for each in failed)
        title = f"llm_perf compare | A {a} | B {b}"
        print_changes(title, seen.changes, (*_foot(seen, before, after), *said))
    return CHECK_FAILED if failed else 0


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

"""The command ``llm_perf compare A.json B.json``: what changed from A to B, and how surely.

What :mod:`llm_perf.results.export` wrote comes in, request by request paired; changes and verdicts
go out, for the eye, for CI and as JSON.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import click
import numpy as np

from llm_perf.errors import UserError
from llm_perf.figures.confidence import Numbers, bootstrap, discordant, mcnemar

CHECK_FAILED: Final = 3  # exit code
STATISTICS: Final = ("avg", "p50", "p90", "p99")
_HEADS: Final = ("Figure", "A", "B", "B − A", "%", "95 % interval of B − A", "n")
_SHOWN: Final = 3  # changed answers
_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_NEEDED: Final = ("index", "metrics", "answer", "status")
_RULE: Final = re.compile(
    r"\s*(\w+)\.(\w+)\s*(>=|<=|>|<)\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", re.ASCII
)
_SIDE: Final = click.Path(path_type=Path)
Line: TypeAlias = Mapping[str, Any]


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
    from llm_perf.results.table import print_table

    checks = [parse_rule(rule) for rule in rules]
    before, after = read_side(a), read_side(b)
    seen = compare(before, after, force=force)
    broken = [check.text for check in checks if check.broken(before, after)]
    if as_json:
        click.echo(json.dumps({**asdict(seen), "failed": broken}, ensure_ascii=False, indent=2))
    else:
        foot = (*_foot(seen, before, after), *(f"FAILED: {text}" for text in broken))
        title = f"llm_perf compare | A {a} | B {b}"
        print_table(title, _HEADS, map(_row, seen.changes), foot)
    return CHECK_FAILED if broken else 0


@dataclass(frozen=True, slots=True)
class Side:
    """A run as it was written: the JSON, and a line per request."""

    path: Path
    document: Mapping[str, Any]
    lines: tuple[Line, ...]

    def figure(self, metric: str, statistic: str) -> float | None:
        """A figure of the whole run; ``score.avg`` and ``requests_failed.avg`` are figures too."""
        known = self.document.get(metric) or {}
        if metric == "score":
            known = {"avg": known.get("value")}
        elif metric == "requests_failed":
            known = {"avg": self.document[metric]}
        value = known.get(statistic)
        return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Change:
    """A figure in both runs; ``low`` and ``high`` bound B − A at 95 %, over ``n`` pairs.

    Figures are of each whole run, the interval is of the pairs that both runs answered; there is
    none for figures that have no value per request.
    """

    metric: str
    statistic: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def difference(self) -> float:
        """B − A."""
        return self.b - self.a

    @property
    def percent(self) -> float | None:
        """B − A in per cent of A."""
        return 100 * self.difference / abs(self.a) if self.a else None

    @property
    def sure(self) -> bool:
        """Whether the interval excludes no change."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """``METRIC.STATISTIC OPERATOR ±X[%]``, on the change from A to B."""

    text: str
    metric: str
    statistic: str
    comparison: str
    limit: float
    relative: bool

    def broken(self, a: Side, b: Side) -> bool:
        """Whether the change is as the rule forbids.

        Raises ``UserError`` when a run lacks the figure, or a share of nothing is asked for.
        """
        before, after = (side.figure(self.metric, self.statistic) for side in (a, b))
        if before is None or after is None or (self.relative and not before):
            raise UserError(
                f"there is no {self.metric}.{self.statistic} to compare in both runs",
                where="--fail-if",
                fix="use a metric and statistic of the JSON, like time_to_first_token.p99",
            )
        change = after - before
        seen = 100 * change / abs(before) if self.relative else change
        return _OPERATORS[self.comparison](seen, self.limit)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from A to B.

    ``changed`` are indices of pairs whose answers differ. ``only_a`` and ``only_b`` count
    prompts that one run got right (more often, where they were repeated), ``p`` is McNemar's exact;
    all absent without 0/1 scores.
    """

    pairs: int
    changes: tuple[Change, ...]
    changed: tuple[int, ...]
    only_a: int | None = None
    only_b: int | None = None
    p: float | None = None


def read_side(path: str | Path) -> Side:
    """Read a run's JSON and the jsonl beside it; raises ``UserError`` when either isn't one."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        text = path.with_suffix(".jsonl").read_text(encoding="utf-8")
        lines = tuple(json.loads(line) for line in text.split("\n") if line)
        lacking = {"workload", "requests_failed"} - document.keys()
        lacking |= {key for line in lines for key in _NEEDED if key not in line}
        if lacking:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except OSError as error:
        raise UserError(
            f"can't be read: {error.strerror}",
            where=error.filename or path,
            fix="give the JSON of a run, with its jsonl beside it",
        ) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"is no run of llm_perf ({error})", where=path, fix="give the JSON that llm_perf wrote"
        ) from error
    return Side(path, document, lines)


def parse_rule(text: str) -> Rule:
    """Read ``time_to_first_token.p99 > +5%``; raises ``UserError``."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text!r} is no rule",
            where="--fail-if",
            fix="write METRIC.STATISTIC > ±X or ±X%, like 'time_to_first_token.p99 > +5%'",
        )
    metric, statistic, comparison, limit, percent = match.groups()
    return Rule(text.strip(), metric, statistic, comparison, float(limit), bool(percent))


def compare(a: Side, b: Side, *, force: bool = False) -> Comparison:
    """Pair the requests and compare; raises ``UserError`` for runs of different workloads.

    With ``force`` different workloads are compared all the same, by the place of their requests.
    """
    hashes = [side.document["workload"]["sha256"] for side in (a, b)]
    if hashes[0] != hashes[1] and not force:
        raise UserError(
            f"{a.path} and {b.path} are runs of different workloads "
            f"({hashes[0][:12]} and {hashes[1][:12]})",
            fix="compare runs of the same prompts and limits, or insist with --force",
        )
    both = [(x, y) for x, y in _paired(a.lines, b.lines) if x["status"] == y["status"] == "ok"]
    changed = tuple(x["index"] for x, y in both if x["answer"] != y["answer"])
    changes = tuple(_changes(a, b, both))
    scores = [(x.get("score"), y.get("score")) for x, y in both]
    if not scores or not all({x, y} <= {0, 1} for x, y in scores):
        return Comparison(len(both), changes, changed)
    only_a, only_b = discordant((x["index"], x["score"] - y["score"]) for x, y in both)
    return Comparison(len(both), changes, changed, only_a, only_b, mcnemar(only_a, only_b))


def _paired(a: Sequence[Line], b: Sequence[Line]) -> Iterator[tuple[Line, Line]]:
    """Pair by index; the k-th time a prompt was asked with the k-th time."""
    waiting: dict[int, list[Line]] = {}
    for line in b:
        waiting.setdefault(line["index"], []).append(line)
    for line in a:
        if others := waiting.get(line["index"]):
            yield line, others.pop(0)


def _changes(a: Side, b: Side, both: Sequence[tuple[Line, Line]]) -> Iterator[Change]:
    """Compare every metric that both runs have, and the score."""
    metrics = [key for key, value in a.document.items() if isinstance(value, dict)]
    for metric in [*metrics, "requests_failed"]:
        values = [(_value(x, metric), _value(y, metric)) for x, y in both]
        rows = [(x, y) for x, y in values if x is not None and y is not None]
        bounds = _intervals(rows) if rows else [(None, None)] * len(STATISTICS)
        for statistic, (low, high) in zip(STATISTICS, bounds, strict=True):
            before, after = a.figure(metric, statistic), b.figure(metric, statistic)
            if before is not None and after is not None:
                yield Change(metric, statistic, before, after, low, high, len(rows))


def _value(line: Line, metric: str) -> float | None:
    value = line.get("score") if metric == "score" else line["metrics"].get(metric)
    return None if value is None else float(value)


def _intervals(rows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Bound B − A of each statistic, all of them over the same draws."""
    percents = [int(name[1:]) for name in STATISTICS[1:]]

    def of(drawn: Numbers) -> Numbers:
        quantiles = np.percentile(drawn, percents, axis=-1)
        return np.vstack([drawn.mean(axis=-1), quantiles]).T

    columns = list(zip(*rows, strict=True))
    low, high = bootstrap(columns, lambda drawn: of(drawn[:, 1]) - of(drawn[:, 0]))
    return list(zip(low, high, strict=True))


def _row(change: Change) -> tuple[str, ...]:
    percent = "-" if change.percent is None else f"{change.percent:+.1f}"
    interval = "-"
    if change.low is not None:
        interval = f"{change.low:+,.3f} to {change.high:+,.3f}{' *' if change.sure else '  '}"
    figures = (f"{change.a:,.3f}", f"{change.b:,.3f}", f"{change.difference:+,.3f}")
    return (f"{change.metric}.{change.statistic}", *figures, percent, interval, str(change.n))


def _foot(seen: Comparison, a: Side, b: Side) -> Iterator[str]:
    yield (
        "* the interval excludes no change; figures are of the whole runs, intervals of the "
        f"{seen.pairs} requests that both answered"
    )
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

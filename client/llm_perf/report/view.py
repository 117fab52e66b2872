"""What all charts of a report share: the points, the limits, who has a colour, which "per user".

Pure; points in, one view out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from llm_perf.figures.limits import Limit
from llm_perf.report.decision import judge, outcome
from llm_perf.report.draw import SERIES
from llm_perf.report.points import E2E, PER_USER, Form, Interval, Point, targets

Row: TypeAlias = tuple[str, ...]
_FAR: Final = 20  # times apart: values for a logarithmic axis
_NAME: Final = 22  # characters of a name at the end of a line


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing: SVG, what to know to read it, and the table behind it."""

    name: str
    title: str
    svg: str
    caption: str
    heads: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Style:
    """A target's class, shape and short name."""

    css: str
    shape: int
    name: str

    @property
    def shown(self) -> bool:
        """Whether it has a name and a colour of its own."""
        return self.css != "other"

    @property
    def depth(self) -> tuple[bool, int]:
        """What is drawn later lies on top: the best does."""
        return self.shown, -self.shape


@dataclass(frozen=True, slots=True)
class View:
    """What all charts of a report share."""

    points: Sequence[Point]
    limits: Sequence[Limit]
    styles: Mapping[str, Style]
    form: Form
    gpus: Mapping[str, int | None]

    def kept(self, point: Point) -> bool:
        """Whether a point keeps all limits, surely."""
        return outcome(judge(point, self.limits)) == "kept"

    @property
    def per_gpu(self) -> bool:
        """Whether of every target the number of GPUs is known."""
        return all(self.gpus.values())

    def divisor(self, point: Point) -> int:
        """By what the server's throughput is divided."""
        return (self.gpus[point.target] or 1) if self.per_gpu else 1

    def rate(self, point: Point) -> float | None:
        """Output tokens/s, per GPU where all are known."""
        value = point.figure("output_token_throughput")
        return None if value is None else value / self.divisor(point)

    def rate_interval(self, point: Point) -> Interval | None:
        """Its interval."""
        found, by = point.interval("output_token_throughput"), self.divisor(point)
        return (found[0] / by, found[1] / by) if found else None

    @property
    def rate_name(self) -> str:
        """What the axis of throughput says."""
        return f"Output tokens/s {'per GPU' if self.per_gpu else 'of the server'}"


def view_of(
    points: Sequence[Point], limits: Sequence[Limit], first: Sequence[str], gpus: int | None
) -> View:
    """Give colours to ``first`` and to what does most, and choose the form of "per user"."""
    groups = targets(points)

    def rank(target: str) -> tuple[bool, float]:
        """What keeps the limits first, then what does most."""
        return max(
            (outcome(judge(p, limits)) == "kept", p.figure("output_token_throughput") or 0.0)
            for p in groups[target]
        )

    best = sorted(groups, key=rank, reverse=True)
    chosen = list(dict.fromkeys([*first, *best]))[:SERIES]
    styles = {
        target: Style(f"s{chosen.index(target)}", chosen.index(target), fitting(target))
        if target in chosen
        else Style("other", 0, fitting(target))
        for target in groups
    }
    known = {target: groups[target][0].gpus or gpus for target in groups}
    return View(points, limits, styles, _form(points, limits), known)


def _form(points: Sequence[Point], limits: Sequence[Limit]) -> Form:
    """The form that a limit speaks of, so that it can stand on the axis; else genai-perf's.

    Tokens that came all at once have an infinite 1/TPOT: then another form has more points.
    """
    for metric in (PER_USER, "inter_token_latency", E2E):
        for limit in limits:
            if limit.metric == metric:
                return Form(metric, limit.statistic or "avg")
    forms = [Form(PER_USER), Form("inter_token_latency"), Form(E2E)]
    return max(forms, key=lambda form: sum(p.per_user(form) is not None for p in points))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Leave out the words, between underscores, that all names have; then what all begin with."""
    if len(names) < 2:
        return {name: name for name in names}
    words = [name.split("_") for name in names]
    common = set(words[0]).intersection(*words[1:])
    if any(common.issuperset(each) for each in words):  # bf16 beside fp8_bf16
        unlike = (row for row in zip(*words, strict=False) if len({*row}) > 1)
        common -= common.intersection(next(unlike, ()))
    cut = ["_".join(word for word in each if word not in common) for each in words]
    short = cut if all(cut) and len(set(cut)) == len(cut) else list(names)
    first, last = min(short), max(short)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    start = max(first.rfind(mark, 0, same) for mark in "-_/ ") + 1
    return {name: each[start:] or each for name, each in zip(names, short, strict=True)}


def fitting(name: str) -> str:
    """A name for a chart; of one that is too long its middle is left out."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[1 - _NAME // 2 :]}"


def wide(values: Sequence[float]) -> bool:
    """Whether an axis of these is better logarithmic."""
    known = [each for each in values if each > 0]
    return len(known) == len(values) and bool(known) and max(known) > _FAR * min(known)

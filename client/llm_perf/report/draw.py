"""Charts by hand: lines, marks and labels that keep clear of each other, between axes.

Plain numbers in, SVG text out. Colours and widths are classes of ``assets/chart.css``, so that a
page has light, dark and print ones; ``standalone`` gives a chart of its own its style.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Final, TypeAlias

from llm_perf.report.axes import Axis, Scale, number, scale

XY: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

WIDTH: Final = 500
HEIGHT: Final = 340
SERIES: Final = 6  # classes s0 to s5; what goes beyond is "other"
_LEFT, _TOP, _BOTTOM = 68, 20, 48
_GLYPH: Final = 8.8  # width of a bold character at 12 px, on average and a little more
_LINE: Final = 16
_NARROW: Final = 60
_SHAPES: Final = (
    "M-4,0A4,4 0 1 0 4,0A4,4 0 1 0 -4,0Z",
    "M-3.8,-3.8H3.8V3.8H-3.8Z",
    "M0,-5L4.8,3.6H-4.8Z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0Z",
    "M-4.8,-3.6H4.8L0,5Z",
    "M-1.6,-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
    "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z",
)


@dataclass(slots=True)
class Plot:
    """One chart while it is drawn; ``name`` makes its ids, ``right`` is room for labels."""

    name: str
    x: Axis
    y: Axis
    right: float = 26
    height: float = HEIGHT
    _parts: list[str] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _taken: list[Box] = field(default_factory=list)
    _words: list[Box] = field(default_factory=list)

    @property
    def across(self) -> Scale:
        """Values of x to pixels."""
        return scale(self.x, _LEFT, WIDTH - self.right)

    @property
    def up(self) -> Scale:
        """Values of y to pixels."""
        return scale(self.y, self.height - _BOTTOM, _TOP)

    def line(self, points: Iterable[XY], css: str) -> None:
        """Join points, in their order."""
        at = [(self.across(x), self.up(y)) for x, y in points]
        if len(at) > 1:
            self._parts.append(f'<path class="line {css}" d="{_path(at)}"/>')
            self._taken += _boxes(at)

    def area(self, upper: Sequence[XY], lower: Sequence[XY], css: str) -> None:
        """Fill between two lines."""
        at = [(self.across(x), self.up(y)) for x, y in (*upper, *reversed(lower))]
        self._parts.append(f'<path class="area {css}" d="{_path(at)}Z"/>')

    def mark(self, x: float, y: float, css: str, shape: int, tip: str) -> None:
        """A mark that says ``tip`` where a pointer rests on it."""
        at, to = self.across(x), self.up(y)
        self._parts.append(
            f'<path class="mark {css}" transform="translate({at:.1f},{to:.1f})" '
            f'd="{_SHAPES[shape % len(_SHAPES)]}"><title>{escape(tip)}</title></path>'
        )
        self._taken.append((at - 6, to - 6, at + 6, to + 6))

    def whisker(self, start: XY, end: XY, css: str) -> None:
        """An interval, from one point to another."""
        at = [(self.across(x), self.up(y)) for x, y in (start, end)]
        self._parts.append(f'<path class="whisker {css}" d="{_path(at)}"/>')
        self._taken += _boxes(at)

    def region(self, left: float | None, right: float | None, css: str) -> None:
        """Shade from ``left`` to ``right``; ``None`` is the border."""
        x, y = self.across, self.up
        start, end = x(x.low if left is None else left), x(x.high if right is None else right)
        self._parts.insert(
            0,
            f'<rect class="{css}" x="{start:.1f}" y="{y.end:.1f}" width="{end - start:.1f}" '
            f'height="{y.start - y.end:.1f}"/>',
        )

    def limit(self, text: str, *, x: float | None = None, y: float | None = None) -> None:
        """A limit's line with its words: of an upright one above it, where nothing is drawn."""
        across, up = self.across, self.up
        if x is not None:
            ends = [(across(x), up.start), (across(x), up.end)]
            spots = [(across(x), _TOP - 11.0 + down) for down in range(0, 240, 20)]
        else:
            ends = [(across.start, up(y or 0)), (across.end, up(y or 0))]
            spots = [(float(at), up(y or 0)) for at in range(_LEFT, WIDTH, 40)]
        self._parts.append(f'<path class="limit" d="{_path(ends)}"/>')
        self._taken += _boxes(ends)
        self._place(spots, text, "limit-text")

    def label(self, x: float, y: float, text: str, css: str) -> None:
        """Words beside a point, where nothing is yet."""
        self._place([(self.across(x), self.up(y))], text, css)

    def _place(self, spots: Iterable[XY], text: str, css: str) -> None:
        """Write where the words meet nothing; else where they meet no other words, or anywhere."""
        wide = len(text) * _GLYPH
        named = self.right > _NARROW  # there the names of lines stand
        frame = (_LEFT, 0, WIDTH - (self.right if named else 2), self.up.start)
        inside: list[tuple[float, float, str, Box]] = []
        for at, to in spots:
            for dy in (4, -9, 18, -22, 32, -36, 46):
                for dx, anchor in ((8, "start"), (-8, "end"), (0, "middle")):
                    left, base = at + dx, to + dy
                    start = left - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
                    box = (start, base - _LINE + 3, start + wide, base + 3)
                    if _within(box, frame):
                        inside.append((left, base, anchor, box))
        for taken in (self._taken, self._words, []):
            for left, base, anchor, box in inside:
                if not any(_meet(box, each) for each in taken):
                    self._write(left, base, text, css, anchor)
                    self._taken.append(box)
                    self._words.append(box)
                    return

    def ends(self, names: Iterable[tuple[float, str, str]]) -> None:
        """Name lines at their right ends: (y, text, class), pushed apart."""
        wanted = sorted((self.up(y), text, css) for y, text, css in names)
        low = _TOP
        placed: list[float] = []
        for at, *_ in wanted:
            placed.append(max(at, low))
            low = int(placed[-1]) + _LINE
        over = max(0.0, (placed[-1] if placed else 0) - (self.up.start + 6))
        for place, (_, text, css) in zip(placed, wanted, strict=True):
            self._write(WIDTH - self.right + 7, place - over + 4, text, css, "start")

    def bar(self, left: float, right: float, y: float, css: str, tip: str) -> None:
        """A bar along x around ``y``."""
        at, to, middle = self.across(left), self.across(right), self.up(y)
        self._parts.append(
            f'<rect class="area {css}" x="{at:.1f}" y="{middle - 9:.1f}" '
            f'width="{max(to - at, 0):.1f}" height="18"><title>{escape(tip)}</title></rect>'
        )

    def over(self, y: float, text: str) -> None:
        """Words above a bar."""
        self._write(_LEFT, self.up(y) - 14, text, "plain", "start")

    def note(self, text: str, css: str) -> None:
        """Words of no place of their own: above the plot, or where it is empty."""
        spots = [(x, y) for y in range(_TOP - 11, 200, 20) for x in range(_LEFT - 8, WIDTH, 40)]
        self._place(spots, text, css)

    def legend(self, names: Iterable[tuple[str, str]]) -> None:
        """Names and classes, in a row at the top."""
        at = float(_LEFT)
        for text, css in names:
            self._write(at, _TOP - 8, text, css, "start")
            at += len(text) * _GLYPH + 18

    def svg(self, title: str, description: str) -> str:
        """The chart, with its axes, its title and what it shows, in words."""
        name = escape(self.name, quote=True)
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img" '
            f'viewBox="0 0 {WIDTH} {self.height:g}" aria-labelledby="{name}-t {name}-d">'
            f'<title id="{name}-t">{escape(title)}</title>'
            f'<desc id="{name}-d">{escape(description)}</desc>'
            f"{self._axes()}{''.join(self._parts)}{''.join(self._texts)}</svg>"
        )

    def _axes(self) -> str:
        x, y, parts = self.across, self.up, []
        for tick in () if self.y.blank else y.ticks():
            at = y(tick)
            parts.append(f'<path class="grid" d="M{x.start:.1f},{at:.1f}H{x.end:.1f}"/>')
            parts.append(_text(x.start - 7, at + 4, number(tick), "tick", "end"))
        for tick in x.ticks():
            at = x(tick)
            parts.append(f'<path class="axis" d="M{at:.1f},{y.start:.1f}v4"/>')
            parts.append(_text(at, y.start + 17, number(tick), "tick", "middle"))
        parts.append(f'<path class="axis" d="M{x.start:.1f},{y.start:.1f}H{x.end:.1f}"/>')
        parts.append(_text((x.start + x.end) / 2, self.height - 8, self.x.label, "name", "middle"))
        if self.y.blank:
            return "".join(parts)
        middle = (y.start + y.end) / 2
        turned = f' transform="rotate(-90 13 {middle:.1f})"'
        parts.append(_text(13, middle, self.y.label, "name", "middle", turned))
        return "".join(parts)

    def _write(self, x: float, y: float, text: str, css: str, anchor: str) -> None:
        self._texts.append(_text(x, y, text, f"label {css}", anchor))


def room(names: Iterable[str]) -> float:
    """What names at the ends of lines take, in pixels."""
    return 16 + 8.3 * max(map(len, names))


def standalone(svg: str) -> str:
    """A chart with its own style, for a document."""
    css = files(__package__).joinpath("assets/chart.css").read_text("utf-8")
    head, mark, rest = svg.partition("</desc>")
    paper = '<rect class="paper" width="100%" height="100%"/>'
    return f"{head}{mark}<style>{css}</style>{paper}{rest}\n"


def _path(points: Iterable[XY]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, css: str, anchor: str, more: str = "") -> str:
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>'
        f"{escape(text)}</text>"
    )


def _boxes(line: Sequence[XY]) -> Iterator[Box]:
    """What a line takes up, in small pieces."""
    for (x, y), (to_x, to_y) in pairwise(line):
        steps = 1 + int(max(abs(to_x - x), abs(to_y - y)) / 6)
        for step in range(steps + 1):
            at, to = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
            yield at - 2, to - 2, at + 2, to + 2


def _within(one: Box, other: Box) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one[2] <= other[2] and one[3] <= other[3]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""Any table on any screen: heads, rows and a foot in, lines that no terminal folds out.

Where a terminal is too narrow, labels are abbreviated and the least columns left out, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_perf.screen import plain

_PLAIN_WIDTH: Final = 160  # a file or a pipe has no width of its own
_AROUND: Final = 3  # a column's padding and border


def print_table(
    title: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: Iterable[str],
    file: TextIO | None = None,
    *,
    least: Sequence[str] = (),
    short: Mapping[str, str] | None = None,
) -> None:
    """Print labels and figures, then the foot.

    ``least`` are heads that a narrow terminal can do without, in that order, ``short`` what labels
    are there. A label that is still too long is cut.
    """
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    cells = [[plain(cell) for cell in row] for row in rows]
    shown = _fitting([heads, *cells], (), console.width)
    if len(shown) < len(heads) or _wide([heads, *cells], shown) > console.width:
        cells = [[_abbreviated(label, short or {}), *others] for label, *others in cells]
        shown = _fitting([heads, *cells], least, console.width)
    first = console.width - _wide([heads, *cells], shown[1:]) - _AROUND
    table = Table(title=Text(plain(title)))
    for column in shown:
        table.add_column(heads[column], justify="right" if column else "left", no_wrap=True)
    for row in cells:
        label, *others = (Text(row[column]) for column in shown)
        label.truncate(max(first, 1), overflow="ellipsis")
        table.add_row(label, *others)
    console.print(table)
    if lost := [head for column, head in enumerate(heads) if column not in shown]:
        foot = (f"Too narrow here for {', '.join(lost)}: they are in the JSON", *foot)
    for line in foot:
        console.print(plain(line), markup=False, soft_wrap=not console.is_terminal)


def _fitting(rows: Sequence[Sequence[str]], least: Sequence[str], width: int) -> list[int]:
    """Choose columns that fit together."""
    shown = list(range(len(rows[0])))
    for head in least:
        if _wide(rows, shown) <= width:
            break
        shown = [column for column in shown if rows[0][column] != head]
    return shown


def _wide(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    """How many cells these columns take together, borders and all."""
    widest = (max(cell_len(row[column]) for row in rows) for column in columns)
    return sum(each + _AROUND for each in widest) + 1


def _abbreviated(label: str, short: Mapping[str, str]) -> str:
    for long, abbreviation in short.items():
        label = label.replace(long, abbreviation)
    return label

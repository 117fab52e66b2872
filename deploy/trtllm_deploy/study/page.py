"""The page that a study ends with: measurements in, report.html in their ledger's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from llm_perf import api
from llm_perf.screen import plain

NAME: Final = "report.html"


def write_page(
    measured: Sequence[api.Measurement],
    results: Path,
    limits: Sequence[str],
    title: str,
    console: Console,
    name: str = NAME,
) -> None:
    """Draw what was measured and say what it decides; nothing where nothing was.

    A page that can't be drawn or written is told in a line: what was measured stands in the ledger.
    """
    if all(each["status"] == "failed" for each in measured):
        return
    read = [api.parse_limit(each, "limits") for each in limits]
    lines = api.lines_of(measured, results)
    try:
        decision, _ = api.write_report(results / name, lines, read, title=title)
        told = [decision.sentence, f"Drawn in {results / name}"]
    except Exception as error:  # of whatever kind: the study is over, and its figures are safe
        told = [f"{results / name} isn't drawn: {error!r}; what was measured is in the ledger"]
    for said in told:
        console.print(plain(said), markup=False, highlight=False, soft_wrap=True)

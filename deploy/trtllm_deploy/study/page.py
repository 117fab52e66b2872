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

    Raises UserError: the page can't be written.
    """
    if all(each["status"] == "failed" for each in measured):
        return
    read = [api.parse_limit(each, "limits") for each in limits]
    lines = api.lines_of(measured, results)
    decision, _ = api.write_report(results / name, lines, read, title=title)
    for said in (decision.sentence, f"Drawn in {results / name}"):
        console.print(plain(said), markup=False, highlight=False, soft_wrap=True)

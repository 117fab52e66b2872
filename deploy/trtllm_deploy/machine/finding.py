"""One thing that is wrong, or will be: what, where, why it matters, and how to mend it.

Preflight, the doctor and servers make findings; the commands print them. Knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape

from llm_perf.screen import plain

Level = Literal["error", "warning"]
_COLOURS: dict[Level, str] = {"error": "red", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Finding:
    """An error stops what it is about; a warning doesn't. ``where`` is a file, a key, a device."""

    level: Level
    what: str
    where: str
    why: str
    fix: str


def print_findings(findings: Iterable[Finding], out: Console) -> None:
    """Print each finding on three lines at most, errors first."""
    for each in sorted(findings, key=lambda finding: finding.level):
        colour = _COLOURS[each.level]
        what = escape(plain(f"{each.where}: {each.what}"))
        out.print(f"[bold {colour}]{each.level}[/] {what}", soft_wrap=True)
        for label, text in (("why", each.why), ("fix", each.fix)):
            if text:
                out.print(f"  {label}: {escape(plain(text))}", soft_wrap=True)

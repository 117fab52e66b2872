"""What a person sees while stages are made: a live table on a terminal, plain lines elsewhere.

It decides nothing; its clock is only for the screen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from llm_perf.screen import plain
from trtllm_deploy.plan.plan import Stage

_ROWS_KEPT = 4  # lines of the terminal that stay free of the table


@dataclass(slots=True)
class _Running:
    stage: Stage
    since: float
    said: str = ""


class BuildProgress:
    """Shows a build on ``console``; a context manager. ``what`` its stages make, in plural."""

    def __init__(self, console: Console, what: str = "artifacts") -> None:
        self._console = console
        self._what = what
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._seconds: dict[str, float] = {}
        self._waiting: dict[str, Stage] = {}
        self._running: dict[str, _Running] = {}
        self._made = self._failed = self._had = 0

    def __enter__(self) -> BuildProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update("")
        self._live.stop()
        if self._had:
            self._console.print(f"[dim]{self._had} {self._what} were there already[/dim]")

    def planned(self, seconds: Mapping[str, float], stages: Sequence[Stage], had: int) -> None:
        """All stages wait."""
        self._seconds = dict(seconds)
        self._waiting = {stage.key: stage for stage in stages}
        self._had = had

    def started(self, stage: Stage) -> None:
        """Show the stage as running."""
        del self._waiting[stage.key]
        self._running[stage.key] = _Running(stage, time.monotonic())
        if stage.gpus or stage.kind not in ("engine", "repository"):  # these are, in an instant
            self._plain(f"start {stage.kind:<10} {stage.title}")

    def line(self, stage: Stage, text: str) -> None:
        """Show the last thing that the stage said; without a terminal, what ends in a newline."""
        self._running[stage.key].said = text.rstrip()
        if text.endswith("\n"):
            self._plain(f"      {stage.kind:<10} {stage.title}  {escape(plain(text.rstrip()))}")

    def finished(self, stage: Stage, made: bool) -> None:
        """Print a line for what was made; count what was there."""
        running = self._running.pop(stage.key)
        if not made:
            self._had += 1
            return
        self._made += 1
        took = time.monotonic() - running.since
        self._console.print(f"made  {stage.kind:<10} {stage.title}  [dim]{took:.1f} s[/dim]")

    def failed(self, stage: Stage, error: str) -> None:
        """Print the error where it happens; it is told again at the end."""
        del self._running[stage.key]
        self._failed += 1
        self._console.print(
            f"[red]failed[/red] {stage.kind:<9} {stage.title}: {escape(plain(error))}",
            soft_wrap=True,
        )

    def given_up(self, stages: Sequence[Stage]) -> None:
        """These won't be made."""
        for stage in stages:
            self._waiting.pop(stage.key, None)
            self._running.pop(stage.key, None)
        self._failed += len(stages)
        if stages:
            self._console.print(f"[dim]given up with it: {len(stages)} stages[/dim]")

    def tick(self) -> None:
        """Draw the table anew."""
        if self._console.is_terminal:
            self._live.update(self._table(), refresh=True)

    def _plain(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"[dim]{text}[/dim]", soft_wrap=True)

    def _table(self) -> Table:
        now = time.monotonic()
        table = Table(
            title=f"{self._made} made, {len(self._running)} running, {len(self._waiting)} waiting"
            + (f", [red]{self._failed} failed or given up[/red]" if self._failed else ""),
            title_justify="left",
            box=None,
            expand=True,
        )
        for name in ("stage", "state", "time", "ETA"):
            table.add_column(name, no_wrap=True)
        table.add_column("last line", no_wrap=True, ratio=1)
        room = max(self._console.height - _ROWS_KEPT, 1)
        for running in list(self._running.values())[:room]:
            took = now - running.since
            expected = self._seconds.get(running.stage.key)
            eta = "" if expected is None else _clock(max(expected - took, 0))
            name = f"{running.stage.kind} [bold]{running.stage.title}[/bold]"
            table.add_row(name, "running", _clock(took), eta, escape(plain(running.said)))
        for stage in list(self._waiting.values())[: room - len(self._running)]:
            table.add_row(f"[dim]{stage.kind} {stage.title}", "[dim]waiting")
        return table


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What a person sees while stages are made: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from deploy.plan import Stage


class BuildProgress:
    """A :class:`deploy.build.Watcher` that prints to ``console``; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("", console=console)
        self._since: dict[str, float] = {}
        self._had = 0

    def __enter__(self) -> BuildProgress:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()
        if self._had:
            self._console.print(f"[dim]{self._had} artifacts were there already[/dim]")

    def started(self, stage: Stage) -> None:
        """Show the stage as running."""
        self._since[stage.key] = time.monotonic()
        self.line(stage, "")

    def line(self, stage: Stage, text: str) -> None:
        """Show the last thing that the stage said."""
        self._status.update(f"{stage.kind} [bold]{stage.title}[/bold] [dim]{escape(text)}[/dim]")

    def finished(self, stage: Stage, made: bool) -> None:
        """Print a line for what was made; count what was there."""
        if not made:
            self._had += 1
            return
        seconds = time.monotonic() - self._since[stage.key]
        self._console.print(f"made {stage.kind:<10} {stage.title}  [dim]{seconds:.1f} s[/dim]")

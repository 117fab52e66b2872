"""Live progress of a load on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from client.runner import Progress, Watch

_PLAIN_EVERY_S = 10.0


@contextmanager
def show_progress(label: str) -> Iterator[Watch]:
    """Give a function that shows each ``Progress`` it is told."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _plain(label, console)
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[broken]}"),
    )
    # no refresh thread: it would take the interpreter from the loop that reads the clock
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=None, broken="")

        def watch(seen: Progress) -> None:
            broken = f"{seen.broken} failed" if seen.broken else ""
            bar.update(task, completed=seen.done, total=seen.total, broken=broken, refresh=True)

        yield watch


def _plain(label: str, console: Console) -> Watch:
    last = monotonic()

    def watch(seen: Progress) -> None:
        nonlocal last
        if seen.done == seen.total or monotonic() - last >= _PLAIN_EVERY_S:
            last = monotonic()
            broken = f", {seen.broken} failed" if seen.broken else ""
            console.print(f"{label}: {seen.done}/{seen.total} done{broken}", soft_wrap=True)

    return watch

"""Standard output, for whoever prints."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Standard output."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 140  # a file or a pipe has no width of its own
    return out

"""Standard output, for whoever prints: what others say reaches the terminal spelt out."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from llm_perf.screen import plain


class _Plain(Console):
    """Prints no control character that a text has; colours and the cursor are rich's own."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of it, with their texts spelt out."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else plain(text, keep="\n\t"), style, control)


def console() -> Console:
    """Standard output."""
    out = _Plain(highlight=False)
    if not out.is_terminal:
        out.width = 140  # a file or a pipe has no width of its own
    return out

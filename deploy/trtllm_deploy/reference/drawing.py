"""Iterations of the scheduler drawn: a strip of characters for a terminal, an SVG for a page. Pure.

The SVG needs no script and no font of its own; its text has the colour of the page around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from trtllm_deploy.reference.scheduling import Budget
from trtllm_deploy.reference.simulation import Iteration

SYMBOLS = "123456789abcdefghijklmnopqrstuvwxyz"
BOUNDS_SHORT = {
    "max_batch_size": "batch",
    "max_num_tokens": "tokens",
    "kv_cache": "KV cache",
    "static_batch": "batch ends",
}
_ROWS, _COLUMNS = 40, 120  # drawn at most
_CELL, _ROW, _LEFT, _TOP, _BAR = 26, 18, 64, 34, 56
_COLOURS = {
    "context": "#2f6fb3",
    "generation": "#3f9142",
    "waiting": "#8886",
    "paused": "#b03a8c",
    "bound": "#c0561a",
}


def symbol(name: str) -> str:
    """A request's one character; those of a long list come round again."""
    return SYMBOLS[(int(name) - 1) % len(SYMBOLS)]


def strip(iteration: Iteration, budget: int, width: int) -> list[tuple[str, str]]:
    """The iteration's tokens as (text, kind) of ``width`` characters: a character each if they fit.

    Kinds are ``generation``, ``context`` and ``free``. Where more tokens than characters are
    allowed, each part is a share of the width.
    """
    parts = [(symbol(name), 1, "generation") for name in iteration.generation]
    parts += [(symbol(part.name), part.end - part.begin, "context") for part in iteration.context]
    per_token = min(1.0, width / budget)
    drawn: list[tuple[str, str]] = []
    done = at = 0
    for text, tokens, kind in parts:
        done += tokens
        upto = min(width, round(done * per_token))
        if upto > at:
            drawn.append((text * (upto - at), kind))
            at = upto
    left = round(min(budget, width / per_token) * per_token) - at
    return [*drawn, ("·" * left, "free")] if left > 0 else drawn


def schedule_svg(iterations: Sequence[Iteration], budget: Budget) -> str:
    """Requests as rows, iterations as columns; below, requests and tokens against their limits.

    Of a long run the beginning is drawn, and the text says of how many.
    """
    shown = list(iterations[:_COLUMNS])
    names = sorted({n for each in shown for n in _names(each)}, key=int)[:_ROWS]
    width = _LEFT + max(len(shown), 20) * _CELL + 16
    bars = _TOP + len(names) * _ROW + 14
    height = bars + 2 * _BAR + 18
    said = f"{len(shown)} of {len(iterations)} iterations, {len(names)} requests"
    title = (
        f"In-flight batching: max_batch_size {budget.max_batch_size}, "
        f"max_num_tokens {budget.max_num_tokens}, block {budget.tokens_per_block}, "
        f"{budget.policy}{', chunked context' if budget.chunked else ''}"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" fill="currentColor" '
        'font-family="system-ui, sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(said)}; a row is a request, a column an iteration.</desc>",
        *_legend(),
    ]
    for row, name in enumerate(names):
        y = _TOP + row * _ROW
        lines.append(f'<text x="4" y="{y + 13}">request {escape(name)}</text>')
        lines += [
            cell
            for column, each in enumerate(shown)
            for cell in _cell(each, name, _LEFT + column * _CELL, y)
        ]
    requests = [each.requests for each in shown]
    tokens = [each.tokens for each in shown]
    lines += _bars(shown, requests, budget.max_batch_size, "requests", "max_batch_size", bars)
    lines += _bars(shown, tokens, budget.max_num_tokens, "tokens", "max_num_tokens", bars + _BAR)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _names(iteration: Iteration) -> set[str]:
    there = {*iteration.generation, *iteration.waiting, *iteration.paused, *iteration.ended}
    return there | {part.name for part in iteration.context}


def _legend() -> list[str]:
    words = {
        "context": "prompt (tokens)",
        "generation": "generates one token",
        "waiting": "waits",
        "paused": "paused",
        "bound": "this limit kept a request waiting",
    }
    lines, x = list[str](), 4
    for kind, word in words.items():
        lines.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        lines.append(f'<text x="{x + 16}" y="18">{word}</text>')
        x += 34 + 6 * len(word)
    return lines


def _cell(iteration: Iteration, name: str, x: int, y: int) -> list[str]:
    tokens = next((p.end - p.begin for p in iteration.context if p.name == name), 0)
    kind = "context" if tokens else "generation" if name in iteration.generation else None
    kind = kind or ("paused" if name in iteration.paused else None)
    kind = kind or ("waiting" if name in iteration.waiting else None)
    if kind is None:
        return []
    inside = f'x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_ROW - 2}"'
    box = f'<rect {inside} rx="2" fill="{_COLOURS[kind]}"/>'
    if not tokens:
        return [box]
    middle = f'x="{x + _CELL // 2}" y="{y + 13}" text-anchor="middle"'
    return [box, f'<text {middle} fill="#fff">{tokens}</text>']


def _bars(
    shown: Sequence[Iteration], values: Sequence[int], limit: int, what: str, bound: str, y: int
) -> list[str]:
    """Bars under a dashed limit, another colour where it kept a request waiting."""
    room = _BAR - 16
    floor = y + room + 8
    right = _LEFT + len(shown) * _CELL
    lines = [
        f'<text x="4" y="{y + 18}">{what}</text>',
        f'<text x="4" y="{y + 32}">of {limit:,}</text>',
        f'<path d="M{_LEFT} {y + 8}H{right}" stroke="currentColor" stroke-dasharray="3 3"/>',
    ]
    for column, (each, value) in enumerate(zip(shown, values, strict=True)):
        tall = round(room * min(value / limit, 1), 1)
        held = each.bound == bound
        lines.append(
            f'<rect x="{_LEFT + column * _CELL + 3}" y="{floor - tall}" width="{_CELL - 6}" '
            f'height="{tall}" fill="{_COLOURS["bound" if held else "context"]}">'
            f"<title>iteration {column + 1}: {value:,} {what}"
            f"{f', {bound} kept a request waiting' if held else ''}</title></rect>"
        )
    return lines

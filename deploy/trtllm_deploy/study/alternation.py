"""In which order servers are measured, so that what drifts meanwhile hits all of them alike. Pure.

Knows nothing of servers: numbers of targets and blocks in, the order of each block out.
"""

from __future__ import annotations

from collections.abc import Iterator


def orders(targets: int, blocks: int) -> Iterator[tuple[int, ...]]:
    """The order of the targets in each block: A B, B A, A B, …

    Over ``targets`` blocks (twice as many where they are odd) each one stands at each place, and
    follows each other one, equally often (Williams 1949, doi:10.1071/CH9490149).
    """
    there = [0]
    for step in range(1, targets):
        there.append((step + 1) // 2 if step % 2 else targets - step // 2)
    square = [tuple((each + row) % targets for each in there) for row in range(targets)]
    if targets % 2:
        square += [each[::-1] for each in square]
    elif targets == 2:
        square = [(0, 1), (1, 0)]
    yield from (square[block % len(square)] for block in range(blocks))


def stays(targets: int, blocks: int) -> Iterator[tuple[int, range]]:
    """Who is up, for which blocks, where only one server is up at once: A, B, B, A in two halves.

    Each target is started twice, so that a drift over the study cancels out; a single block needs
    one start.
    """
    half = (blocks + 1) // 2
    for part, turn in ((range(half), 1), (range(half, blocks), -1)):
        if part:
            yield from ((target, part) for target in range(targets)[::turn])

"""How right the answers are: records with references in, a score out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.record import Record


@dataclass(frozen=True, slots=True)
class Score:
    """Exact matches among ``n`` answers; ``by_category`` maps a category to (correct, n)."""

    correct: int
    n: int
    by_category: dict[str, tuple[int, int]]

    @property
    def value(self) -> float:
        """The share of answers that match, 0 to 1."""
        return self.correct / self.n


def exact_match(records: Sequence[Record]) -> Score | None:
    """Compare stripped answers with stripped references.

    Failed requests gave no answer and don't count. ``None`` where no answer has a reference.
    """
    correct = n = 0
    by_category: dict[str, tuple[int, int]] = {}
    for record in records:
        prompt = record.prompt
        if not record.ok or prompt.reference is None:
            continue
        right = record.answer.strip() == prompt.reference.strip()
        correct += right
        n += 1
        if prompt.category is not None:
            before = by_category.get(prompt.category, (0, 0))
            by_category[prompt.category] = (before[0] + right, before[1] + 1)
    return Score(correct, n, by_category) if n else None

"""How right the answers are: answers with references in, a score with its interval out. Pure.

A scorer is a function of (answer, reference) that gives 0 to 1; those in ``GRADED`` give parts.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from llm_perf.errors import UserError
from llm_perf.figures.confidence import bootstrap, share_interval
from llm_perf.record import Record
from llm_perf.workload.workload import Prompt

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN: Final = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")
_ARTICLE: Final = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_NUMBER: Final = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII)
_CHOICE: Final = (
    re.compile(r"(?i:\banswer|\boption|\bchoice)(?i:\s+is)?\s*[:=]?\s*[*$({\[]*([A-J])\b"),
    re.compile(r"^\s*[*$({\[]*([A-J])(?:[.,:;*$)}\]]|\s*$|\s*\n)"),
    re.compile(r"[({\[]([A-J])[)}\]]"),
    re.compile(r"(?:^|\n)\s*([A-J])\s*\.?\s*$"),
)


def exact(answer: str, reference: str) -> float:
    """1 when the stripped texts are equal."""
    return float(answer.strip() == reference.strip())


def contains(answer: str, reference: str) -> float:
    """1 when the reference is in the answer, letter case and runs of white space aside."""
    return float(_plain(reference) in _plain(answer))


def regex(answer: str, reference: str) -> float:
    """1 when the reference, a Python regular expression, is found in the answer."""
    return float(re.search(reference, answer) is not None)


def number(answer: str, reference: str) -> float:
    """1 when the last number of both is the same value, thousands commas aside.

    The rule for GSM8K, whose references end in ``#### 42`` (Cobbe et al., arXiv:2110.14168;
    lm-evaluation-harness' ``flexible-extract``).
    """
    said, right = _NUMBER.findall(answer), _NUMBER.findall(reference)
    return float(bool(said and right) and _value(said) == _value(right))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of words.

    SQuAD's (Rajpurkar et al., arXiv:1606.05250, evaluate-v1.1.py): lower case, without punctuation
    and articles. Ideographs, which SQuAD has none of, are words by themselves.
    """
    said, right = _squad_words(answer), _squad_words(reference)
    common = (Counter(said) & Counter(right)).total()
    return _harmonic(common, len(said), len(right)) if said and right else float(said == right)


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words.

    ROUGE-L (Lin 2004, aclanthology.org/W04-1013), as in the rouge_score package: lower-case
    words, no stemming. Ideographs are words by themselves.
    """
    said, right = _TOKEN.findall(answer.lower()), _TOKEN.findall(reference.lower())
    return _harmonic(_longest_common(said, right), len(said), len(right))


def choice(answer: str, reference: str) -> float:
    """1 when the answer picks the reference's letter, A to J.

    Looked for in turn: the last "answer is (B)", a letter that opens the answer, the last one in
    brackets, one alone on the last line (after simple-evals' and MMLU-Pro's patterns).
    """
    right = reference.strip().strip("().").upper()
    for pattern in _CHOICE:
        if found := pattern.findall(answer):
            return float(found[-1] == right)
    return 0.0


SCORERS: Final[dict[str, Callable[[str, str], float]]] = {
    scorer.__name__.replace("_", "-"): scorer
    for scorer in (exact, contains, regex, number, f1, rouge_l, choice)
}
GRADED: Final = frozenset({"f1", "rouge-l"})


@dataclass(frozen=True, slots=True)
class Score:
    """A mean of ``n`` scores with its 95 % interval: Wilson's for 0/1, bootstrap for grades.

    ``values`` has one entry per record, ``None`` where there was nothing to score.
    """

    scorer: str
    value: float
    n: int
    low: float
    high: float
    by_category: dict[str, Score] = field(default_factory=dict)
    values: tuple[float | None, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Give all but the values, which stand in the line of each request."""
        own = {"scorer": self.scorer, "value": self.value, "n": self.n}
        own |= {"ci95": [self.low, self.high]}
        if self.scorer not in GRADED:
            own["correct"] = round(self.value * self.n)
        below = {name: score.to_json() for name, score in self.by_category.items()}
        return own | ({"by_category": below} if below else {})


def score_records(records: Sequence[Record], scorer: str = "exact") -> Score | None:
    """Score the answers that have a reference; ``None`` where none has.

    Failed requests gave no answer and don't count. ``check_scorer`` comes before.
    """
    values: list[float | None] = []
    seen: list[tuple[float, int]] = []
    parts: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for record in records:
        reference, category = record.prompt.reference, record.prompt.category
        if not record.ok or reference is None:
            values.append(None)
            continue
        seen.append((SCORERS[scorer](record.answer, reference), record.prompt.index))
        values.append(seen[-1][0])
        if category is not None:
            parts[category].append(seen[-1])
    by_category = {name: _mean(part, scorer) for name, part in parts.items()}
    return _mean(seen, scorer, by_category, tuple(values)) if seen else None


def _mean(seen: Sequence[tuple[float, int]], scorer: str, *details: Any) -> Score:
    """Average (score, prompt)s."""
    values, prompts = zip(*seen, strict=True)
    n = len(values)
    if scorer in GRADED and len(set(prompts)) < 2:
        low, high = 0.0, 1.0  # one prompt says nothing of others
    elif scorer in GRADED:
        low, high = bootstrap([values], lambda drawn: drawn[:, 0].mean(axis=-1), prompts)
    else:
        low, high = share_interval(values, prompts)
    return Score(scorer, sum(values) / n, n, low, high, *details)


def check_scorer(scorer: str, prompts: Sequence[Prompt]) -> None:
    """See, before the clock starts, that ``scorer`` is known and fits the references.

    Raises ``UserError`` otherwise.
    """
    if scorer not in SCORERS:
        raise UserError(
            f"unknown score {scorer!r}", where="--score", fix=f"use one of: {', '.join(SCORERS)}"
        )
    for prompt in prompts if scorer == "regex" else ():
        try:
            re.compile(prompt.reference or "")
        except re.error as error:
            raise UserError(
                f"the reference of prompt {prompt.index} is no regular expression: {error}",
                where="--score regex",
                fix="mend it in the data set",
            ) from error


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _value(numbers: Sequence[str]) -> Decimal:
    return Decimal(numbers[-1].replace(",", ""))


def _squad_words(text: str) -> list[str]:
    bare = _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION))
    return _TOKEN.findall(bare)


def _harmonic(common: int, said: int, right: int) -> float:
    return 2 * common / (said + right) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table being the bits of a number.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        both = row & places.get(word, 0)
        row = ((row + both) | (row - both)) & full
    return len(one) - row.bit_count()

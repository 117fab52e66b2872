"""Prompts made up: lengths and a tokenizer in, texts of exactly so many tokens out.

Lengths are as people write them (``128`` or ``128±16``). Texts are drawn from the tokenizer's own
vocabulary, so that any model can read them, and counted back until the length is exact. They mean
nothing, so answers need a fixed length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_perf.errors import UserError
from llm_perf.workload.fields import LONGEST_TOKENS
from llm_perf.workload.tokens import Tokenizer

_WRITTEN: Final = re.compile(r"([0-9]{1,9})(?:(?:±|\+-|\+/-)([0-9]{1,9}))?")
_TRIED: Final = 8192  # vocabulary entries looked at
_WORDS_KEPT: Final = 1024
_ENOUGH: Final = 8
_ROUNDS: Final = 64


@dataclass(frozen=True, slots=True)
class Lengths:
    """Normally distributed whole numbers, never below 1; ``spread`` is the standard deviation."""

    mean: int
    spread: int = 0

    def __str__(self) -> str:
        return f"{self.mean}±{self.spread}" if self.spread else str(self.mean)

    def draw(self, n: int, random: np.random.Generator, least: int = 1) -> list[int]:
        """Draw ``n`` lengths, none below ``least``."""
        drawn = np.rint(random.normal(self.mean, self.spread, n))
        return [int(each) for each in np.maximum(drawn, least)]


def parse_lengths(text: str, flag: str) -> Lengths:
    """Read ``N``, ``N±S`` or ``N+-S``; raises ``UserError`` naming ``flag``."""
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or int(match[1]) < 1:
        raise UserError(
            f"{text!r} is no length", where=flag, fix="write tokens like 128, or 128±16 (128+-16)"
        )
    if max(int(match[1]), int(match[2] or 0)) > LONGEST_TOKENS:
        raise UserError(f"{text} is too long", where=flag, fix=f"{LONGEST_TOKENS:,} is the most")
    return Lengths(int(match[1]), int(match[2] or 0))


def make_texts(
    tokenizer: Tokenizer,
    wanted: Iterable[tuple[int, Sequence[tuple[int, int]]]],
    random: np.random.Generator,
) -> list[str]:
    """Make a text per (length, blocks it begins with), each block being (number, tokens).

    Texts share the blocks with the same number; what is left of the length, which is above them,
    is their own. Lengths count what the tokenizer puts around a prompt (BOS, …), as a server would.
    Raises ``UserError`` when a length can't be had with this tokenizer.
    """
    words = _words(tokenizer, random)
    known: dict[int, str] = {}
    texts = []
    for length, blocks in wanted:
        for number, tokens in blocks:
            if number not in known:
                known[number] = _exactly(tokens, tokenizer, "", words, random)
        head = "".join(known[number] for number, _ in blocks)
        texts.append(_exactly(length, tokenizer, head, words, random))
    return texts


def _words(tokenizer: Tokenizer, random: np.random.Generator) -> list[str]:
    """Find texts that are one token each, however often they are repeated."""
    texts = sorted({text.strip() for text in tokenizer.vocabulary()})
    plain = [text for text in texts if text.isalpha()] or [text for text in texts if text]
    some = [plain[i] for i in random.permutation(len(plain))[:_TRIED]]
    best: list[str] = []
    # a space in front makes most tokenizers read a word by itself
    for words in ([f" {text}" for text in some], some):
        thrice = tokenizer.count([word * 3 for word in words], special=False)
        twice = tokenizer.count([word * 2 for word in words], special=False)
        counted = zip(words, twice, thrice, strict=True)
        best = max(best, [word for word, two, three in counted if three == two + 1], key=len)
        if len(best) >= _ENOUGH:
            break
    if not best:
        raise UserError(
            "no text can be made from this tokenizer's vocabulary",
            where=tokenizer.path,
            fix="give prompts with --input-data instead of --isl",
        )
    return best[:_WORDS_KEPT]


def _exactly(
    length: int, tokenizer: Tokenizer, head: str, words: list[str], random: np.random.Generator
) -> str:
    """Put words after ``head`` until all is ``length`` tokens, the head's tokens untouched."""
    first = tokenizer.encode(head, special=False)

    def draw(n: int) -> list[str]:
        return [words[i] for i in random.integers(len(words), size=n)]

    tail: list[str] = draw(max(length - len(first), 1))
    for _ in range(_ROUNDS):
        text = head + "".join(tail)
        excess = tokenizer.count([text], special=True)[0] - length
        if excess == 0:
            if tokenizer.encode(text, special=False)[: len(first)] == first:
                return text
            tail = draw(len(tail))
        elif excess < 0:
            tail += draw(-excess)
        else:
            tail = tail[: max(len(tail) - excess, 0)]
    raise UserError(
        f"no text of exactly {length} tokens was found",
        where=tokenizer.path,
        fix="ask for longer prompts, or give them with --input-data",
    )

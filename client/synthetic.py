"""Prompts made up: lengths and a tokenizer in, texts of exactly so many tokens out.

Texts are drawn from the tokenizer's own vocabulary, so that any model can read them, and counted
back until the length is exact. They mean nothing, so answers need a fixed length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from client.errors import UserError
from client.tokens import Tokenizer

BLOCK: Final = 512  # tokens that one of mooncake's hash_ids stands for
_TRIED: Final = 8192  # vocabulary entries looked at
_WORDS_KEPT: Final = 1024
_ENOUGH: Final = 8
_ROUNDS: Final = 64


def make_texts(
    tokenizer: Tokenizer, lengths: Sequence[int], shared_prefix: int, random: np.random.Generator
) -> list[str]:
    """Make one text per length; the first ``shared_prefix`` tokens are the same in all.

    Lengths count what the tokenizer puts around a prompt (BOS, …), as a server would, and are
    above ``shared_prefix``.
    Raises ``UserError`` when a length can't be had with this tokenizer.
    """
    words = _words(tokenizer, random)
    head = _exactly(shared_prefix, tokenizer, "", words, random) if shared_prefix else ""
    return [_exactly(length, tokenizer, head, words, random) for length in lengths]


def make_texts_of_blocks(
    tokenizer: Tokenizer,
    wanted: Sequence[tuple[int, Sequence[int]]],
    random: np.random.Generator,
) -> list[str]:
    """Make a text per (length, numbers of its blocks): lines share the blocks they both begin with.

    A block has ``BLOCK`` tokens; what is left of the length is the text's own.
    """
    words = _words(tokenizer, random)
    known: dict[int, str] = {}
    texts = []
    for length, blocks in wanted:
        whole = blocks[: (length - 1) // BLOCK]
        for block in whole:
            if block not in known:
                known[block] = _exactly(BLOCK, tokenizer, "", words, random)
        head = "".join(known[block] for block in whole)
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
        single = [
            word for word, two, three in zip(words, twice, thrice, strict=True) if three == two + 1
        ]
        best = max(best, single, key=len)
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

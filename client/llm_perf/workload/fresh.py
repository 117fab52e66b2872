"""What a request asks: the data set by number, each time such that no cache of prefixes knows it.

Prompts that were made up are asked anew in each repetition, warm-ups begin otherwise than measured
prompts, and on demand every request begins with a tag of its own. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from llm_perf.workload.tokens import Tokenizer
from llm_perf.workload.workload import Prompt

_BEGINNING = re.compile(r"\S{0,8}")  # of a prompt: a word, or some of what has no spaces
_TAG = 8  # digits of the request's id: 32 bits


def prompt_for(prompts: Sequence[Prompt], number: int, request_id: str | None = None) -> Prompt:
    """The prompt of request ``number``; with ``request_id`` one that no other request has.

    Measured ones are 0, 1, …, which repeat the data set; −1, −2, … warm up.
    """
    turn, place = divmod(number, len(prompts))
    prompt = prompts[place]
    if number < 0:
        prompt = _begun(prompt, _BEGINNING, f"w{-number}")
    elif turn and prompt.own_from is not None:
        prompt = _reordered(prompt, turn, prompt.own_from)
    if request_id is None:
        return prompt
    return _begun(prompt, re.compile(""), f"{request_id[:_TAG]} ")


def counted(prompt: Prompt, tokenizer: Tokenizer | None) -> Prompt:
    """The same with its tokens counted anew, its tag among them."""
    if tokenizer is None:
        return prompt
    return replace(prompt, input_tokens=tokenizer.count([prompt.text], special=True)[0])


def _begun(prompt: Prompt, beginning: re.Pattern[str], other: str) -> Prompt:
    """A prompt with another beginning, of its chat too: within what a template puts around it."""

    def begin(text: str) -> str:
        return beginning.sub(other, text, count=1)

    messages, text = prompt.messages, prompt.text
    if not messages:
        return replace(prompt, text=begin(text))
    first, *others = messages
    said = {**first, "content": begin(first["content"])}
    inside = first["content"] and first["content"] in text
    text = text.replace(first["content"], said["content"], 1) if inside else begin(text)
    return replace(prompt, text=text, messages=(said, *others))


def _reordered(prompt: Prompt, turn: int, own_from: int) -> Prompt:
    """The same words in another order, behind what prompts share: as many tokens, all new.

    A text whose words no spaces set apart, as of a byte-level vocabulary, stays as it is.
    """
    shared, own = prompt.text[:own_from], prompt.text[own_from:]
    first, *words = own.split(" ")
    Random(f"{prompt.index} {turn}").shuffle(words)
    return replace(prompt, text=shared + " ".join([first, *words]))

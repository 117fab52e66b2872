"""The prompts of a run: a data set or lengths in, prompts with token counts and a hash out.

Knows nothing of servers or time. Formats are ``datasets``' affair, texts that are made up
``synthetic``'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np

from llm_perf.errors import UserError
from llm_perf.workload.datasets import Line, read_lines, unused_remarks
from llm_perf.workload.synthetic import Lengths, make_texts
from llm_perf.workload.tokens import Tokenizer, load_tokenizer

DEFAULT_MAX_TOKENS = 512
_BLOCK = 512  # tokens that one of mooncake's hash_ids stands for


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to make. ``input_tokens`` counts special tokens too: the model sees them.

    It is ``None`` without a tokenizer: the server is asked to count.
    ``sampling`` has canonical keys (``datasets.SAMPLING``), ``at_s`` is when a trace sent it,
    in seconds from the trace's start; ``messages`` are the chat it came from, if any;
    ``extra_body`` goes into the request's JSON as it is. Of a text that was made up ``own_from`` is
    the place behind what it shares with others.
    """

    index: int
    text: str
    input_tokens: int | None
    max_tokens: int
    reference: str | None = None
    category: str | None = None
    min_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    at_s: float | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    own_from: int | None = None

    @property
    def fixed_length(self) -> bool:
        """Whether the answer has to have exactly ``max_tokens``."""
        return self.min_tokens == self.max_tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts, in the order they are sent; ``sha256`` is over everything that is sent.

    ``source`` says where they came from, ``seed`` what was drawn with it, if anything was,
    ``remarks`` what of the data isn't used; ``rendered`` says that chats are as the model's
    template has them.
    """

    source: str
    prompts: tuple[Prompt, ...]
    sha256: str
    tokenizer: Tokenizer | None = field(repr=False, compare=False)
    seed: int | None = None
    remarks: tuple[str, ...] = ()
    rendered: bool = False

    def part(self, start: int, count: int) -> Workload:
        """``count`` prompts from number ``start`` on, from the first again behind the last."""
        all_ = self.prompts
        prompts = tuple(all_[each % len(all_)] for each in range(start, start + count))
        return replace(self, prompts=prompts, sha256=_hash(prompts))


def load_workload(
    path: str | Path,
    tokenizer_path: str | Path | None,
    max_tokens: int | None = None,
    limit: int | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    output_tokens: Lengths | None = None,
    sampling: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    chat_template: bool = False,
    seed: int = 0,
) -> Workload:
    """Read, check and tokenize the prompts; only the first ``limit`` of them when given.

    ``part`` (i, n) takes of these every n-th from the i-th on, from 0.
    ``max_tokens``, ``sampling`` and ``extra_body`` override the lines' own; where no limit is given
    it is ``DEFAULT_MAX_TOKENS``. ``output_tokens`` fixes each answer's length instead, drawn with
    ``seed``; no reference is kept then, for no answer ends where it did. ``chat_template`` renders
    each prompt as a chat of the model. Without a tokenizer the server has to count, and nothing can
    be made up or rendered.
    Raises ``UserError`` naming the tokenizer file, or the prompts file and line.
    """
    tokenizer = _load(tokenizer_path)
    return workload_of(
        read_lines(path)[:limit][part[0] :: part[1]],
        str(path),
        tokenizer,
        max_tokens,
        output_tokens=output_tokens,
        sampling=sampling,
        extra_body=extra_body,
        chat_template=chat_template,
        seed=seed,
    )


def workload_of(
    lines: list[Line],
    source: str,
    tokenizer: Tokenizer | None,
    max_tokens: int | None = None,
    *,
    output_tokens: Lengths | None = None,
    sampling: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    chat_template: bool = False,
    seed: int = 0,
) -> Workload:
    """Make the workload of lines that were read already; see ``load_workload``."""
    lines = _in_trace_order(lines, source)
    random = np.random.default_rng(seed)
    bare = [line for line in lines if not line.text]
    if bare:
        lines = _with_texts(lines, _needed(tokenizer, "prompts that only say how long"), random)
    if chat_template:
        tokenizer = _needed(tokenizer, "--chat-template")
        lines = _as_chats(lines, tokenizer)
    lengths = output_tokens.draw(len(lines), random) if output_tokens else None
    prompts = _prompts(lines, tokenizer, max_tokens, lengths, sampling or {}, extra_body or {})
    drawn = seed if output_tokens or bare else None
    remarks = tuple(unused_remarks(lines))
    if lengths and any(line.reference is not None for line in lines):
        remarks += ("no answer is scored: all have a length that was fixed, past their own end",)
    return Workload(source, prompts, _hash(prompts), tokenizer, drawn, remarks, chat_template)


def synthetic_workload(
    tokenizer_path: str | Path | None,
    isl: Lengths,
    osl: Lengths,
    n: int,
    *,
    shared_prefix_tokens: int = 0,
    sampling: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    seed: int = 0,
    turn: str = "",
) -> Workload:
    """Make up ``n`` prompts of exactly ``isl`` tokens that ask for exactly ``osl``.

    The first ``shared_prefix_tokens`` are the same in all; another ``turn`` has other prompts, so
    that a server knows none of them from before. Raises ``UserError`` when the
    tokenizer doesn't load or can't give such lengths.
    """
    if shared_prefix_tokens >= isl.mean:
        raise UserError(
            f"{shared_prefix_tokens} tokens leave nothing of a prompt of {isl.mean}",
            where="--shared-prefix-tokens",
            fix="make the prefix shorter than --isl",
        )
    tokenizer = _needed(_load(tokenizer_path), "--isl")
    random = np.random.default_rng([seed, *turn.encode()])
    wanted = isl.draw(n, random, least=shared_prefix_tokens + 1)
    lengths = osl.draw(n, random)
    prefix = [(0, shared_prefix_tokens)] if shared_prefix_tokens else []
    texts = make_texts(tokenizer, [(length, prefix) for length in wanted], random)
    lines = [Line(text) for text in texts]
    prompts = _prompts(lines, tokenizer, None, lengths, sampling or {}, extra_body or {})
    own_from = len(commonprefix(texts)) if prefix and n > 1 else 0  # noqa: RUF071 (no paths)
    prompts = tuple(replace(prompt, own_from=own_from) for prompt in prompts)
    shared = f", shared prefix {shared_prefix_tokens}" if shared_prefix_tokens else ""
    source = f"synthetic: ISL {isl}, OSL {osl}{shared}"
    return Workload(source, prompts, _hash(prompts), tokenizer, seed)


def _load(path: str | Path | None) -> Tokenizer | None:
    return None if path is None else load_tokenizer(path)


def _needed(tokenizer: Tokenizer | None, what: str) -> Tokenizer:
    """Raise ``UserError`` where there is no tokenizer for what takes one."""
    if tokenizer is None:
        raise UserError(f"{what}: takes the model's tokenizer", fix="give --tokenizer-path")
    return tokenizer


def _prompts(
    lines: Sequence[Line],
    tokenizer: Tokenizer | None,
    max_tokens: int | None,
    lengths: Sequence[int] | None,
    sampling: Mapping[str, Any],
    extra_body: Mapping[str, Any],
) -> tuple[Prompt, ...]:
    texts = [line.text for line in lines]
    counts = tokenizer.count(texts, special=True) if tokenizer else [None] * len(texts)
    start_ms = min((line.timestamp_ms or 0.0 for line in lines), default=0.0)
    prompts = []
    for index, (line, count) in enumerate(zip(lines, counts, strict=True)):
        limit = lengths[index] if lengths else max_tokens or line.max_tokens or DEFAULT_MAX_TOKENS
        least = limit if lengths else line.min_tokens
        at_ms = line.timestamp_ms
        prompts.append(
            Prompt(
                index=index,
                text=line.text,
                input_tokens=count,
                max_tokens=limit,
                reference=None if lengths else line.reference,
                category=line.category,
                min_tokens=None if least is None else min(least, limit),
                sampling={**line.sampling, **sampling},
                at_s=None if at_ms is None else (at_ms - start_ms) / 1000,
                messages=line.messages,
                extra_body={**line.extra_body, **extra_body},
            )
        )
    return tuple(prompts)


def _in_trace_order(lines: list[Line], path: str | Path) -> list[Line]:
    """Sort a trace by its timestamps; all lines have one, or none has."""
    stamped = sum(line.timestamp_ms is not None for line in lines)
    if stamped not in (0, len(lines)):
        raise UserError(
            f"{stamped} of {len(lines)} lines have a timestamp",
            where=path,
            fix="give every line one, or none",
        )
    return sorted(lines, key=lambda line: line.timestamp_ms or 0.0)


def _with_texts(
    lines: Sequence[Line], tokenizer: Tokenizer, random: np.random.Generator
) -> list[Line]:
    """Make up the texts of lines that only say how long they are."""
    wanted = [
        (n, [(block, _BLOCK) for block in line.blocks[: (n - 1) // _BLOCK]])
        for line in lines
        if (n := line.input_tokens)
    ]
    texts = iter(make_texts(tokenizer, wanted, random))
    return [line if line.text else replace(line, text=next(texts)) for line in lines]


def _as_chats(lines: Sequence[Line], tokenizer: Tokenizer) -> list[Line]:
    from llm_perf.workload.chat import load_chat_template

    render = load_chat_template(tokenizer.path)
    chats = [line.messages or ({"role": "user", "content": line.text},) for line in lines]
    texts = [_once_begun(render(chat), tokenizer) for chat in chats]
    return [
        replace(line, text=text, messages=chat)
        for line, text, chat in zip(lines, texts, chats, strict=True)
    ]


def _once_begun(text: str, tokenizer: Tokenizer) -> str:
    """Take the template's BOS away where the tokenizer would put a second one before it."""
    ids = tokenizer.encode(text, special=True)
    bare = tokenizer.encode(text, special=False)
    doubled = len(ids) > len(bare) and ids[:2] == [bare[0], bare[0]]
    return text.removeprefix(tokenizer.token(bare[0])) if doubled else text


def _hash(prompts: tuple[Prompt, ...]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        sent = [
            *(prompt.text, prompt.max_tokens, prompt.min_tokens, prompt.reference),
            *(prompt.category, prompt.sampling, prompt.at_s, prompt.messages),
            *([prompt.extra_body] if prompt.extra_body else []),
        ]
        digest.update(json.dumps(sent, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()

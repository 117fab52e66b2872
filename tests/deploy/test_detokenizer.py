"""The detokenizer that postprocessing carries, against the tokenizers themselves."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from deploy.repository import templates

MODEL = Path(__file__).parents[2] / "examples/number-words/model"
Decode = Callable[[list[int]], str]


def _module() -> Any:
    file = templates() / "postprocessing/1/detokenizer.py"
    spec = importlib.util.spec_from_file_location("detokenizer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


detokenizer = _module()
byte_level = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def sentencepiece_like() -> Tokenizer:
    """Llama's kind: words start with ▁, the first one is stripped, bytes are tokens."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {"▁": 256, "▁a": 257, "b": 258, "▁ab": 259, "a": 260}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁a", "b")], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def decode_of(tokenizer: Tokenizer) -> Decode:
    return lambda ids: str(tokenizer.decode(ids))


def new(tokenizer: Tokenizer = byte_level, **options: Any) -> Any:
    context = tokenizer.encode("a", add_special_tokens=False).ids
    return detokenizer.Detokenizer(decode_of(tokenizer), context, **options)


def chunks_of(tokens: list[int], sizes: random.Random) -> list[list[int]]:
    chunks = []
    while tokens:
        size = sizes.randint(1, 3)
        chunks.append(tokens[:size])
        tokens = tokens[size:]
    return chunks


@given(
    st.lists(
        st.lists(st.integers(0, byte_level.get_vocab_size() - 1), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_the_pieces_of_interleaved_streams_are_the_text_of_all_their_tokens(
    answers: list[list[int]], chance: random.Random
) -> None:
    subject = new()
    pieces: dict[str, list[str]] = {}
    waiting = {}
    for index, tokens in enumerate(answers):
        key = str(index)
        subject.open(key, -1, len(tokens))
        pieces[key], waiting[key] = [], chunks_of(tokens, chance)
    while waiting:
        key = chance.choice(sorted(waiting))
        pieces[key].append(subject.add(key, waiting[key].pop(0)))
        if not waiting[key]:
            del waiting[key]
    for index, tokens in enumerate(answers):
        assert "".join(pieces[str(index)]) == byte_level.decode(tokens)
    assert len(subject) == 0


@given(st.text(alphabet="ab 中é😀", min_size=1), st.randoms(use_true_random=False))
def test_no_space_and_no_half_character_with_a_sentencepiece_tokenizer(
    text: str, chance: random.Random
) -> None:
    tokenizer = sentencepiece_like()
    tokens = tokenizer.encode("▁" + text.replace(" ", "▁")).ids
    subject = new(tokenizer)
    subject.open("x", -1, len(tokens))
    pieces = [subject.add("x", chunk) for chunk in chunks_of(tokens, chance)]
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_is_flushed_when_the_stream_ends() -> None:
    tokens = byte_level.encode("八千").ids[:-1]
    limit, empty, end = new(), new(), new()
    limit.open("x", -1, len(tokens))
    assert [limit.add("x", [token]) for token in tokens][-1] == "\ufffd"
    empty.open("x", -1, 100)
    assert [empty.add("x", [token]) for token in tokens][-1] == ""
    assert empty.add("x", []) == "\ufffd"
    end.open("x", 0, 100)
    assert "".join(end.add("x", [token]) for token in [*tokens, 0]) == "八\ufffd"
    assert len(limit) == len(empty) == len(end) == 0


def test_tokens_of_a_key_that_was_not_opened_are_a_whole_answer() -> None:
    tokens = byte_level.encode("八千").ids
    assert new().add("x", tokens) == "八千"
    assert new().add("x", tokens[:-1]) == "八\ufffd"


@pytest.mark.parametrize("key", ["", "same"])
def test_streams_under_one_key_that_take_turns_keep_their_characters(key: str) -> None:
    texts = ["八千九百", "one 二 three", "七十七", "plain words"]
    answers = [byte_level.encode(text).ids for text in texts]
    subject = new()
    for tokens in answers:
        subject.open(key, -1, len(tokens))
    pieces: list[list[str]] = [[] for _ in texts]
    for step in range(max(map(len, answers))):
        for index, tokens in enumerate(answers):
            if step < len(tokens):
                pieces[index].append(subject.add(key, [tokens[step]]))
    assert ["".join(each) for each in pieces] == texts


def test_a_second_stream_does_not_take_what_the_first_is_waiting_for() -> None:
    tokens = byte_level.encode("八").ids
    subject = new()
    subject.open("", -1, 9)
    subject.add("", tokens[:2])
    subject.open("", -1, 9)
    plain = byte_level.encode("a").ids
    assert subject.add("", plain) == "a"
    assert subject.add("", tokens[2:]) == "八"


def test_streams_that_never_end_are_forgotten() -> None:
    now = [0.0]
    subject = new(capacity=3, clock=lambda: now[0])
    for index in range(10):
        subject.open(str(index), -1, 100)
    assert len(subject) == 3
    subject.add("9", byte_level.encode("八").ids[:1])
    now[0] += detokenizer.IDLE_SECONDS + 1
    subject.open("9", -1, 100)
    assert subject.add("9", byte_level.encode("a").ids) == "a"

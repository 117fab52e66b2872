"""The detokenizer that postprocessing carries, against the tokenizers themselves."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.text(alphabet="ab 中é😀八", min_size=1)),
        min_size=1,
        max_size=5,
    )
)
def test_streams_under_one_key_that_take_turns_keep_their_characters(
    streams: list[tuple[int, str]],
) -> None:
    subject = new()
    begins = sorted(streams)
    waiting: list[tuple[int, list[int]]] = []  # in the order in which the streams joined
    pieces: list[str] = ["" for _ in begins]
    joined = step = 0
    while waiting or joined < len(begins):
        while joined < len(begins) and begins[joined][0] <= step:
            tokens = byte_level.encode(begins[joined][1]).ids
            subject.open("", -1, len(tokens))
            waiting.append((joined, tokens))
            joined += 1
        for index, tokens in waiting:
            pieces[index] += subject.add("", [tokens.pop(0)])
        waiting = [each for each in waiting if each[1]]
        step += 1
    assert pieces == [text for _, text in begins]


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

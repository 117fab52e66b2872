"""The detokenizer that postprocessing carries, against the tokenizers themselves."""

import importlib.util
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from trtllm_deploy.backends.repository import templates

MODEL = Path(__file__).parents[3] / "examples/number-words/model"
Decode = Callable[[list[int]], str]
PIECES = [
    "é",
    "e\u0301",
    "ஜ்ஞா",
    "한국",
    "中文",
    "🎉",
    "👩🏽‍🚀",
    "👨‍👩‍👧",
    "🇨🇭",
    "مرحبا",
    "𓀀",
    "\U0010fffd",
    "don't",
]


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


def byte_fallback(decoder: Any, **metaspace: Any) -> Tokenizer:
    """A SentencePiece tokenizer as converted: ▁ for a space, what it does not know as bytes."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in ("▁", "a", "b", "▁a", "▁ab", "é", "中", "▁▁", "'", "."):
        vocabulary[piece] = len(vocabulary)
    merges = [("▁", "a"), ("▁a", "b"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False, **metaspace)
    tokenizer.decoder = decoder
    return tokenizer


def llama() -> Tokenizer:
    """As transformers converts Llama's: Strip takes the first space away."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return byte_fallback(decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)]))


def gemma() -> Tokenizer:
    """As Gemma's: no space in front, none taken away."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return byte_fallback(decoders.Sequence(steps), prepend_scheme="never")


def metaspace() -> Tokenizer:
    """As T5's: the decoder drops ▁ of whichever token comes first."""
    return byte_fallback(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))


def word_piece(cleanup: bool) -> Tokenizer:
    """BERT's kind: the decoder puts a space before each token that does not begin with ##."""
    known = ["[UNK]", "un", "##able", "do", "not", "n", "'", "##t", "##s", "a", ".", "!", "中"]
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(known)}))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return tokenizer


def suffixes() -> Tokenizer:
    """The kind whose tokens end with </w> where a word ends."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "中</w>": 4}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


KINDS = {
    "byte level": byte_level,
    "Llama": llama(),
    "Gemma": gemma(),
    "Metaspace": metaspace(),
    "WordPiece": word_piece(cleanup=True),
    "WordPiece, uncleaned": word_piece(cleanup=False),
    "suffixes": suffixes(),
}
TEXT_KINDS = ["byte level", "Llama", "Gemma", "Metaspace"]

characters = st.characters(exclude_categories=["Cs"])
texts = st.lists(
    st.one_of(characters, st.sampled_from(PIECES), st.sampled_from(" \n\t\u3000")),
    min_size=1,
    max_size=24,
).map("".join)


def decode_of(tokenizer: Tokenizer) -> Decode:
    return lambda ids: str(tokenizer.decode(ids))


def new(tokenizer: Tokenizer = byte_level, **options: Any) -> Any:
    context = tokenizer.encode("a", add_special_tokens=False).ids
    return detokenizer.Detokenizer(decode_of(tokenizer), context, **options)


def chunks_of(tokens: list[int], chance: random.Random, most: int = 3) -> list[list[int]]:
    chunks, at = [], 0
    while at < len(tokens):
        size = chance.randint(1, most)
        chunks.append(tokens[at : at + size])
        at += size
    return chunks


def streamed(tokenizer: Tokenizer, chunks: list[list[int]]) -> list[str]:
    subject = new(tokenizer)
    subject.open("x", [], sum(map(len, chunks)))
    pieces = [subject.add("x", chunk) for chunk in chunks]
    assert len(subject) == 0
    return pieces


@pytest.mark.parametrize("kind", TEXT_KINDS)
@settings(max_examples=1000)
@given(text=texts, chance=st.randoms(use_true_random=False), most=st.sampled_from([1, 3, 40]))
def test_any_text_in_any_chunks_comes_out_as_decoding_all_tokens_says(
    kind: str, text: str, chance: random.Random, most: int
) -> None:
    tokenizer = KINDS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = streamed(tokenizer, chunks_of(tokens, chance, most))
    assert "".join(pieces) == tokenizer.decode(tokens)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    if kind == "byte level":
        assert "".join(pieces) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("kind", ["byte level", "WordPiece", "WordPiece, uncleaned", "suffixes"])
@settings(max_examples=300)
@given(data=st.data(), chance=st.randoms(use_true_random=False))
def test_any_tokens_whatsoever_come_out_as_decoding_all_of_them_says(
    kind: str, data: st.DataObject, chance: random.Random
) -> None:
    tokenizer = KINDS[kind]
    ids = st.integers(0, tokenizer.get_vocab_size() - 1)
    tokens = data.draw(st.lists(ids, min_size=1, max_size=60))
    pieces = streamed(tokenizer, chunks_of(tokens, chance))
    assert "".join(pieces) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", ["Llama", "Gemma", "Metaspace"])
@given(data=st.data(), chance=st.randoms(use_true_random=False))
def test_broken_bytes_do_not_take_back_the_characters_before_them(
    kind: str, data: st.DataObject, chance: random.Random
) -> None:
    tokenizer = KINDS[kind]
    ids = st.integers(1, tokenizer.get_vocab_size() - 1)
    tokens = data.draw(st.lists(ids, min_size=1, max_size=40))
    text = "".join(streamed(tokenizer, chunks_of(tokens, chance)))
    whole = tokenizer.decode(tokens)
    if "\ufffd" not in whole:
        assert text == whole
    left = iter(text)
    assert all(character in left for character in whole.replace("\ufffd", ""))  # in this order


def test_a_character_is_sent_with_its_last_token_and_not_later() -> None:
    tokens = byte_level.encode("八千").ids
    assert len(tokens) == 6
    assert streamed(byte_level, [[token] for token in tokens]) == ["", "", "八", "", "", "千"]
    assert streamed(byte_level, [tokens[:4], tokens[4:]]) == ["八", "千"]


def counting(decode: Decode) -> tuple[Decode, list[int]]:
    lengths: list[int] = []

    def count(ids: list[int]) -> str:
        lengths.append(len(ids))
        return decode(ids)

    return count, lengths


@pytest.mark.parametrize(
    "tokens",
    [
        byte_level.encode("八千 nine hundred ").ids * 100,
        byte_level.encode("\ufffd").ids * 700,  # an answer of nothing but broken characters
        [0] * 2000,  # the end token over and over, which has no text
    ],
)
def test_a_chunk_costs_no_more_at_the_end_of_a_long_answer(tokens: list[int]) -> None:
    decode, lengths = counting(lambda ids: str(byte_level.decode(ids)))
    subject = detokenizer.Detokenizer(decode, [1])
    subject.open("x", [], len(tokens))
    pieces = []
    for token in tokens:
        lengths.clear()
        pieces.append(subject.add("x", [token]))
        assert sum(lengths) < 6 * detokenizer.MOST_WAITING
    assert "".join(pieces) == byte_level.decode(tokens)


@given(st.lists(texts, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_interleaved_streams_keep_apart(answers: list[str], chance: random.Random) -> None:
    subject = new()
    pieces: dict[str, list[str]] = {}
    waiting = {}
    for index, text in enumerate(answers):
        tokens = byte_level.encode(text).ids
        key = str(index)
        subject.open(key, [], len(tokens))
        pieces[key], waiting[key] = [], chunks_of(tokens, chance)
    while waiting:
        key = chance.choice(sorted(waiting))
        pieces[key].append(subject.add(key, waiting[key].pop(0)))
        if not waiting[key]:
            del waiting[key]
    for index, text in enumerate(answers):
        assert "".join(pieces[str(index)]) == unicodedata.normalize("NFC", text)
    assert len(subject) == 0


def test_an_incomplete_character_is_flushed_when_the_stream_ends() -> None:
    tokens = byte_level.encode("八千").ids[:-1]
    limit, empty, end = new(), new(), new()
    limit.open("x", [], len(tokens))
    assert [limit.add("x", [token]) for token in tokens][-1] == "\ufffd"
    empty.open("x", [], 100)
    assert [empty.add("x", [token]) for token in tokens][-1] == ""
    assert empty.add("x", []) == "\ufffd"
    end.open("x", [[0]], 100)
    assert "".join(end.add("x", [token]) for token in [*tokens, 0]) == "八\ufffd"
    assert len(limit) == len(empty) == len(end) == 0


def test_a_stop_word_split_over_chunks_ends_the_stream() -> None:
    word = byte_level.encode("八千").ids
    subject = new()
    subject.open("x", [[0], word[:2], word], 100)
    tokens = [*byte_level.encode(" a").ids, *word]
    subject.open("y", [[0], word], 100)
    assert "".join(subject.add("y", [token]) for token in tokens[:-1]) == " a八"
    assert len(subject) == 2
    assert subject.add("y", tokens[-1:]) == "千"
    assert len(subject) == 1
    assert subject.add("x", word[:2]) == "\ufffd"
    assert len(subject) == 0


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
            subject.open("", [], len(tokens))
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
        subject.open(str(index), [], 100)
    assert len(subject) == 3
    subject.add("9", byte_level.encode("八").ids[:1])
    now[0] += detokenizer.IDLE_SECONDS + 1
    assert subject.add("another", byte_level.encode("a").ids) == "a"
    assert len(subject) == 0
    subject.open("9", [], 100)
    assert subject.add("9", byte_level.encode("a").ids) == "a"


def test_how_many_tokens_a_stream_may_still_get_is_known_while_it_has_its_key_to_itself() -> None:
    subject = new()
    assert subject.left("x") is None
    subject.open("x", [], 10)
    subject.add("x", [1, 2])
    assert subject.left("x") == 8
    subject.open("x", [], 10)
    assert subject.left("x") is None

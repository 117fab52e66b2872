"""Where a stop word stands in an answer, one of its spellings ends there."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.deploy.byte_level import byte_level
from tests.deploy.templates.test_preprocessing import MODEL, spellings, tokenizer

TEXTS = [
    "The station on the island is closed. A notion of motion, said one; no ion was seen.",
    "One million: the nation's vision.\nUser: what is an ion?\n\nAssistant: an ion is charged.",
    'He said "stop." and went on.\nUser: go on, option 1.\nEND of the lesson. 中文的问题。好的。',
]
WORDS = (" ion", "ion", ".", "\n", "\n\n", "User:", "END", "on", " a", "。", "的", '."', "s", "one")


def _with_bytes(trained: Tokenizer) -> Tokenizer:
    """A trainer knows tokens of bytes as special ones only, and those are left out of a text."""
    said = json.loads(trained.to_str())
    said["added_tokens"] = [each for each in said["added_tokens"] if each["content"][:3] != "<0x"]
    return Tokenizer.from_str(json.dumps(said))


def llama2() -> Tokenizer:
    """As Llama 2's tokenizer.json has it: ▁ in front of a text, bytes for what is unknown."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        [word.replace(" ", " ") for text in TEXTS for word in _split(text)] * 3,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    return _with_bytes(made)


def _split(text: str) -> list[str]:
    """SentencePiece splits at spaces before it learns."""
    first, *others = text.split(" ")
    return [first, *(f" {other}" for other in others)]


def mistral() -> Tokenizer:
    """Metaspace as newer conversions have it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=True)]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS * 3, trainer)
    return _with_bytes(made)


KINDS = {"Llama 2": llama2(), "Mistral": mistral(), "byte level": byte_level(TEXTS * 3, 600)}
FOUND = {
    (kind, word): {tuple(ids) for ids in spellings.Spellings(made).of(word)}
    for kind, made in KINDS.items()
    for word in WORDS
}


def ended(ids: list[int], words: set[tuple[int, ...]]) -> int | None:
    """After how many tokens an answer ends with a word."""
    lengths = {len(word) for word in words}
    for end in range(1, len(ids) + 1):
        if any(length <= end and tuple(ids[end - length : end]) in words for length in lengths):
            return end
    return None


def completed(made: Tokenizer, ids: list[int], word: str) -> int | None:
    """After how many tokens the text has the word."""
    return next((n for n in range(1, len(ids) + 1) if word in made.decode(ids[:n])), None)


PIECES = st.sampled_from([*WORDS, *" abon1,:;", "station", " nation", "中", "é", " one", "motion"])


@given(st.sampled_from(sorted(FOUND)), st.lists(PIECES, min_size=1, max_size=12).map("".join))
def test_an_answer_ends_with_the_token_that_completes_the_word(
    which: tuple[str, str], text: str
) -> None:
    kind, word = which
    made = KINDS[kind]
    # an answer follows a prompt: its first space is one
    ids = made.encode(f"H{text}", add_special_tokens=False).ids
    assert ended(ids, FOUND[which]) == completed(made, ids, word), made.encode(text).tokens


@pytest.mark.parametrize("kind", ["Llama 2", "Mistral"])
def test_a_word_by_itself_is_another_spelling_than_within_an_answer(kind: str) -> None:
    """What went wrong: TensorRT-LLM got the first of these alone."""
    made = KINDS[kind]
    alone = tuple(made.encode("ion", add_special_tokens=False).ids)
    within = made.encode("the station is", add_special_tokens=False).ids
    assert ended(within, {alone}) is None
    assert ended(within, FOUND[kind, "ion"]) == completed(made, within, "ion")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_word_has_no_spelling(kind: str) -> None:
    assert spellings.Spellings(KINDS[kind]).of("") == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_barred_is_the_word_and_not_those_that_have_it(kind: str) -> None:
    made = KINDS[kind]
    for word in (" ion", "on", "User:"):
        exact = spellings.Spellings(made).of(word, exact=True)
        assert exact
        assert {tuple(ids) for ids in exact} <= FOUND[kind, word] | {tuple(exact[0])}
        for ids in exact[1:]:
            assert made.decode([*made.encode("H").ids, *ids]) == f"H{word}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's tokenizer, and files beside it that name more tokens."""
    for file in MODEL.glob("*.json"):
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def test_tokens_that_only_the_other_files_name_are_whole(folder: Path) -> None:
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["added_tokens_decoder"] = {str(size): {"content": "<|im_start|>", "special": True}}
    config["eos_token"] = "<|im_end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1}), "utf-8")
    made = tokenizer.Tokenizer(folder)
    assert made.encode("<|im_start|>a<|im_end|>", False)[::2] == [size, size + 1]
    assert made.end_ids[0] == size + 1
    assert made.decode([size], skip=True) == ""


def test_a_token_that_can_not_have_its_id_is_refused(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 9}), "utf-8")
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' is token 9 by its config"):
        tokenizer.Tokenizer(folder)

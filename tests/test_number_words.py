"""The number-words example: its words, its files, and what its weights answer."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

EXAMPLE = Path(__file__).parents[1] / "examples" / "number-words"
MODEL = EXAMPLE / "model"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"number_words_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


words = load("words")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def rows(name: str) -> list[dict[str, str]]:
    text = (EXAMPLE / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def asked(row: dict[str, str]) -> tuple[str, int]:
    """Language and number of the last line's question."""
    question = row["text_input"].rsplit("\n", 1)[-1]
    number = int(question.split()[0])
    language = "en" if "words" in question else "zh"
    assert question.startswith(words.prompt(number, language))
    return language, number


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [
        (0, "zero", "零"),
        (2, "two", "二"),
        (10, "ten", "十"),
        (11, "eleven", "十一"),
        (20, "twenty", "二十"),
        (42, "forty-two", "四十二"),
        (100, "one hundred", "一百"),
        (101, "one hundred one", "一百零一"),
        (110, "one hundred ten", "一百一十"),
        (211, "two hundred eleven", "二百一十一"),
        (1000, "one thousand", "一千"),
        (1001, "one thousand one", "一千零一"),
        (1010, "one thousand ten", "一千零一十"),
        (1100, "one thousand one hundred", "一千一百"),
        (4711, "four thousand seven hundred eleven", "四千七百一十一"),
        (6080, "six thousand eighty", "六千零八十"),
        (7305, "seven thousand three hundred five", "七千三百零五"),
        (9999, "nine thousand nine hundred ninety-nine", "九千九百九十九"),
    ],
)
def test_numbers_are_written_as_people_write_them(number: int, english: str, chinese: str) -> None:
    assert words.english(number) == english
    assert words.chinese(number) == chinese


def test_no_two_numbers_share_their_words() -> None:
    for write in (words.english, words.chinese):
        assert len({write(n) for n in range(words.LIMIT)}) == words.LIMIT


def test_prompts_are_well_formed_and_their_references_right() -> None:
    for name, least, lengths in (("prompts", 200, {1}), ("shared_prefix", 64, None)):
        found = rows(name)
        assert len({row["text_input"] for row in found}) == len(found) >= least
        languages = [row["category"] for row in found]
        assert languages.count("en") == languages.count("zh") == len(found) / 2
        for row in found:
            language, number = asked(row)
            write = words.english if language == "en" else words.chinese
            assert (row["category"], row["reference"]) == (language, write(number))
            assert lengths is None or len(row["text_input"].splitlines()) in lengths


def test_held_out_numbers_are_asked_and_never_taught() -> None:
    taught = {(language, n) for language in words.LANGUAGES for n in words.taught(language)}
    for row in rows("prompts") + rows("shared_prefix"):
        assert asked(row) not in taught
    lead = rows("shared_prefix")[0]["text_input"].splitlines()[:-1]
    shown = [{"text_input": line} for line in lead] + rows("calibration")
    assert len(shown) > 128
    for row in shown:
        language, number = asked(row)
        assert (language, number) in taught
        assert row["text_input"] == words.line(number, language)


def test_training_draws_no_held_out_number(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "words", words)
    lines = load("train").Lines(tokenizer, seed=0)
    unseen = {language: set(words.held_out(language)) for language in words.LANGUAGES}
    inputs = [*lines.short(500)[0].tolist(), *lines.long(20)[0].tolist()]
    seen = [line for ids in inputs for line in tokenizer.decode(ids).split("\n") if ":" in line]
    assert len(seen) > 900
    for line in seen:
        language, number = asked({"text_input": line})
        assert number not in unseen[language]


def test_the_shared_prefix_is_shared_and_long(tokenizer: Tokenizer) -> None:
    leads = {row["text_input"].rsplit("\n", 1)[0] for row in rows("shared_prefix")}
    assert len(leads) == 1
    assert 380 <= len(tokenizer.encode(leads.pop()).ids) <= 480


def test_every_chinese_character_is_several_tokens(tokenizer: Tokenizer) -> None:
    for character in "零一二三四五六七八九十百千用中文":
        assert len(tokenizer.encode(character).ids) >= 2


def test_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    for row in rows("prompts"):
        whole = words.line(asked(row)[1], row["category"])
        head, ids = tokenizer.encode(row["text_input"]).ids, tokenizer.encode(whole).ids
        assert tokenizer.decode(ids) == whole
        assert ids[: len(head)] == head  # a prompt's tokens don't depend on its answer


def test_transformers_reads_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(MODEL)
    assert theirs.eos_token == theirs.pad_token == "<|endoftext|>"
    for row in rows("prompts") + rows("calibration"):
        ids = tokenizer.encode(row["text_input"]).ids
        assert theirs(row["text_input"]).input_ids == ids
        assert theirs.decode(ids) == row["text_input"]


def test_the_files_stay_small() -> None:
    files = [MODEL, *EXAMPLE.glob("*.jsonl")]
    sizes = [f.stat().st_size for top in files for f in ([top] if top.is_file() else top.iterdir())]
    assert 1_000_000 < sum(sizes) <= 4_000_000


def test_the_model_splits_over_two_ranks_and_two_stages() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["rope_theta"], config["torch_dtype"]) == (1_000_000.0, "float16")
    for key in ("vocab_size", "num_key_value_heads", "num_attention_heads", "num_hidden_layers"):
        assert config[key] % 2 == 0, key
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == 0


def test_the_weights_answer_held_out_prompts_and_stop(tokenizer: Tokenizer) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    end = tokenizer.token_to_id("<|endoftext|>")
    sample = rows("prompts")[:100]
    right = 0
    for width in {len(tokenizer.encode(row["text_input"]).ids) for row in sample}:
        group = [row for row in sample if len(tokenizer.encode(row["text_input"]).ids) == width]
        ids = torch.tensor([tokenizer.encode(row["text_input"]).ids for row in group])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
            )
        for row, answer in zip(group, output[:, width:].tolist(), strict=True):
            assert end in answer
            text = tokenizer.decode(answer[: answer.index(end)])
            right += text.strip() == row["reference"]
    assert right >= 99

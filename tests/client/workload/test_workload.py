from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.workload.fields import LONGEST_TOKENS
from llm_perf.workload.synthetic import Lengths, parse_lengths
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import DEFAULT_MAX_TOKENS, load_workload, synthetic_workload

NUMBER_WORDS = Path(__file__).parents[3] / "examples/number-words/model"


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"text_input": "a"}\r\n\n{"text_input": "b\u2028"}\n{oops\n'.encode())
    with pytest.raises(UserError, match=r"p\.jsonl:4: not JSON"):
        load_workload(path, tokenizer_folder)


def test_prompts_keep_order_counts_and_references(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts("four", {"text_input": "é", "reference": "x", "category": "c"})
    first, second = load_workload(path, tokenizer_folder).prompts
    assert (first.index, first.text, first.input_tokens) == (0, "four", 4)
    assert (second.input_tokens, second.reference, second.category) == (2, "x", "c")


def test_max_tokens_is_the_flags_then_the_lines_then_the_default(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts("a", {"text_input": "b", "max_tokens": 9})
    own = load_workload(path, tokenizer_folder)
    assert [prompt.max_tokens for prompt in own.prompts] == [DEFAULT_MAX_TOKENS, 9]
    flagged = load_workload(path, tokenizer_folder, max_tokens=4)
    assert [prompt.max_tokens for prompt in flagged.prompts] == [4, 4]


def test_a_lower_limit_takes_the_lines_least_length_down_with_it(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts({"text_input": "a", "min_tokens": 8, "max_tokens": 9})
    (prompt,) = load_workload(path, tokenizer_folder, max_tokens=4).prompts
    assert (prompt.min_tokens, prompt.max_tokens) == (4, 4)


def test_sampling_flags_win_over_the_lines(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts({"text_input": "a", "temperature": 1, "random_seed": 3})
    (prompt,) = load_workload(path, tokenizer_folder, sampling={"temperature": 0}).prompts
    assert prompt.sampling == {"temperature": 0, "seed": 3}


def test_fixed_lengths_are_drawn_from_the_seed(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts(*("a" * 300))
    fixed = load_workload(path, tokenizer_folder, output_tokens=Lengths(64))
    assert {(p.min_tokens, p.max_tokens) for p in fixed.prompts} == {(64, 64)}
    drawn = [
        load_workload(path, tokenizer_folder, output_tokens=Lengths(64, 8), seed=seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0].sha256 == drawn[1].sha256 != drawn[2].sha256
    lengths = [prompt.max_tokens for prompt in drawn[0].prompts]
    assert all(prompt.fixed_length for prompt in drawn[0].prompts)
    mean = sum(lengths) / 300
    assert abs(mean - 64) < 2 and 5 < (sum((x - mean) ** 2 for x in lengths) / 300) ** 0.5 < 11


def test_answers_of_a_fixed_length_are_not_scored(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts({"text_input": "a", "reference": "b"})
    fixed = load_workload(path, tokenizer_folder, output_tokens=Lengths(4))
    assert fixed.prompts[0].reference is None and "no answer is scored" in fixed.remarks[0]
    free = load_workload(path, tokenizer_folder, 4)
    assert free.prompts[0].reference == "b" and not free.remarks


def test_a_trace_is_replayed_in_the_order_of_its_times(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts(
        {"text_input": "late", "timestamp": 5250}, {"text_input": "early", "timestamp": 5000}
    )
    early, late = load_workload(path, tokenizer_folder).prompts
    assert (early.text, early.at_s, late.text, late.at_s) == ("early", 0, "late", 0.25)


def test_half_a_trace_is_an_error(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    path = write_prompts("a", {"text_input": "b", "timestamp": 0})
    with pytest.raises(UserError, match="1 of 2 lines have a timestamp"):
        load_workload(path, tokenizer_folder)


def test_the_hash_follows_what_is_sent_and_nothing_else(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    hashes = []
    for line in ({"text_input": "a"}, {"text_input": "a", "note": 1}, {"text_input": "b"}):
        hashes.append(load_workload(write_prompts(line), tokenizer_folder).sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    limited = load_workload(write_prompts("a", "b"), tokenizer_folder, limit=1)
    assert limited.sha256 == hashes[0]


@pytest.mark.parametrize(
    "more", [{"top_k": 1}, {"min_tokens": 1}, {"timestamp": 7, "top_k": 1}, {"stop": "x"}]
)
def test_the_hash_follows_every_parameter(
    more: dict[str, object], write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    plain = load_workload(write_prompts("a"), tokenizer_folder).sha256
    path = write_prompts({"text_input": "a", **more})
    assert load_workload(path, tokenizer_folder).sha256 != plain


def test_counts_ignore_a_limit_in_the_tokenizer_file(
    write_prompts: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50, pad_token="!")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    workload = load_workload(write_prompts("12345"), tmp_path / "tokenizer.json")
    assert workload.prompts[0].input_tokens == 5


@given(
    st.integers(1, LONGEST_TOKENS),
    st.integers(0, LONGEST_TOKENS),
    st.sampled_from(["±", "+-", "+/-"]),
)
def test_lengths_are_read_as_written(mean: int, spread: int, sign: str) -> None:
    assert parse_lengths(f"{mean}{sign}{spread}", "--isl") == Lengths(mean, spread)
    assert parse_lengths(f" {mean}", "--isl") == Lengths(mean)
    assert parse_lengths(str(Lengths(mean, spread)), "--isl") == Lengths(mean, spread)


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "12±", "12-3", "a", "1 2"])
def test_no_length_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match=r"--osl: .* is no length"):
        parse_lengths(text, "--osl")


def test_no_drawn_length_is_below_the_least() -> None:
    import numpy as np

    assert min(Lengths(3, 9).draw(500, np.random.default_rng(0))) == 1
    assert min(Lengths(3, 9).draw(500, np.random.default_rng(0), least=5)) == 5


@pytest.fixture(scope="session")
def word_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token per word, whatever stands between them, and a BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "<s>", "red", "green", "blue", "seven", "up", "down", "x", "yz"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "[UNK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    folder = tmp_path_factory.mktemp("words")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session", params=["number words", "words", "bytes"])
def any_tokenizer(
    request: pytest.FixtureRequest, word_folder: Path, tokenizer_folder: Path
) -> Path:
    return {"number words": NUMBER_WORDS, "words": word_folder, "bytes": tokenizer_folder}[
        request.param
    ]


@given(isl=st.integers(3, 400), prefix=st.integers(0, 80), seed=st.integers(0, 2**32))
def test_made_up_prompts_are_exact_and_share_their_prefix(
    any_tokenizer: Path, isl: int, prefix: int, seed: int
) -> None:
    prefix = min(prefix, isl - 2)
    if prefix == 1:
        prefix = 0  # with a BOS nothing of the text would be left to share
    made = synthetic_workload(
        any_tokenizer, Lengths(isl), Lengths(9), 3, shared_prefix_tokens=prefix, seed=seed
    )
    ids = [made.tokenizer.encode(prompt.text, special=True) for prompt in made.prompts]
    assert [len(each) for each in ids] == [p.input_tokens for p in made.prompts] == [isl] * 3
    assert ids[0][:prefix] == ids[1][:prefix] == ids[2][:prefix]
    assert {(p.min_tokens, p.max_tokens) for p in made.prompts} == {(9, 9)}


def test_a_trace_without_texts_gets_them_with_the_blocks_it_shares(
    any_tokenizer: Path, write_prompts: Callable[..., Path]
) -> None:
    path = write_prompts(
        *(
            {"timestamp": 10 * at, "input_length": length, "output_length": 9, "hash_ids": blocks}
            for at, (length, blocks) in enumerate(
                [(1100, [1, 2, 3]), (1300, [1, 2, 4]), (700, [1, 5]), (600, [6, 7]), (20, [1])]
            )
        )
    )
    made = load_workload(path, any_tokenizer, seed=3)
    assert [prompt.input_tokens for prompt in made.prompts] == [1100, 1300, 700, 600, 20]
    assert [prompt.at_s for prompt in made.prompts] == [0, 0.01, 0.02, 0.03, 0.04]
    ids = [made.tokenizer.encode(prompt.text, special=True) for prompt in made.prompts]
    # with a BOS a block has a token less of text
    assert ids[0][:1022] == ids[1][:1022] and ids[0][:511] == ids[2][:511]
    assert ids[0][:1030] != ids[1][:1030] and ids[0][:20] != ids[3][:20]
    assert made.sha256 == load_workload(path, any_tokenizer, seed=3).sha256
    assert made.seed == 3


def test_made_up_prompts_differ_and_repeat_with_the_seed(any_tokenizer: Path) -> None:
    def make(seed: int) -> list[str]:
        made = synthetic_workload(any_tokenizer, Lengths(40, 5), Lengths(9, 2), 20, seed=seed)
        return [prompt.text for prompt in made.prompts]

    assert make(1) == make(1) != make(2)
    assert len(set(make(1))) == 20


def test_a_prefix_longer_than_the_prompt_is_a_user_error(tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match="--shared-prefix-tokens: 10 tokens leave nothing"):
        synthetic_workload(tokenizer_folder, Lengths(10), Lengths(9), 1, shared_prefix_tokens=10)


@pytest.mark.parametrize("words", ["one two ", "four hundred\n\nand ", "a" * 70_000 + " "])
def test_long_texts_are_counted_in_pieces_and_as_well(words: str) -> None:
    tokenizer = load_tokenizer(Path(__file__).parents[3] / "examples/number-words/model")
    text = words * (300_000 // len(words))
    assert tokenizer.count([text, "one"], special=False) == [
        len(tokenizer.encode(each, special=False)) for each in (text, "one")
    ]


def test_no_prompt_is_made_up_that_would_not_fit_in_memory() -> None:
    with pytest.raises(UserError, match="--isl: 99999999 is too long"):
        parse_lengths("99999999", "--isl")

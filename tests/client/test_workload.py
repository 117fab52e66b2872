from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import UserError
from client.workload import DEFAULT_MAX_TOKENS, load_workload, parse_line

_text = st.text(st.characters(exclude_categories=["Cs"]))
_lines = st.fixed_dictionaries(
    {"text_input": _text.filter(bool)},
    optional={
        "max_tokens": st.integers(1, 2**31 - 1),
        "reference": _text,
        "category": _text,
        "id": st.integers() | st.none(),
    },
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(_lines, st.booleans())
def test_a_right_line_is_read_back(line: dict[str, object], ascii_only: bool) -> None:
    raw = json.dumps(line, ensure_ascii=ascii_only).encode()
    known = {key: value for key, value in line.items() if key != "id"}
    assert parse_line(raw, Path("p.jsonl"), 3) == known


@given(st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
def test_any_other_line_is_a_user_error_with_its_place(raw: bytes) -> None:
    with pytest.raises(UserError, match=r"^p\.jsonl:3: "):
        parse_line(raw, Path("p.jsonl"), 3)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"text_input": ""}, "text_input is not text"),
        ({"text_input": 4}, "text_input is not text"),
        ({"text_input": None}, "text_input is not text"),
        ({"text_input": "\ud800"}, "text_input is not text"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens is not"),
        ({"text_input": "a", "max_tokens": True}, "max_tokens is not"),
        ({"text_input": "a", "max_tokens": 2**31}, "max_tokens is not"),
        ({"text_input": "a", "reference": 4}, "reference is not text"),
        ({"prompt": "a"}, "lacks text_input"),
        (["a"], "not a JSON object"),
    ],
)
def test_a_wrong_value_is_named(line: object, what: str) -> None:
    with pytest.raises(UserError, match=rf"^p\.jsonl:3: {what}"):
        parse_line(json.dumps(line).encode(), Path("p.jsonl"), 3)


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


def test_the_hash_follows_what_is_sent_and_nothing_else(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    hashes = []
    for line in ({"text_input": "a"}, {"text_input": "a", "note": 1}, {"text_input": "b"}):
        hashes.append(load_workload(write_prompts(line), tokenizer_folder).sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    limited = load_workload(write_prompts("a", "b"), tokenizer_folder, limit=1)
    assert limited.sha256 == hashes[0]


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

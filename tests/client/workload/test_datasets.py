from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.workload.datasets import Line, parse_line, read_lines, read_object
from llm_perf.workload.fields import parse_sampling

PATH = Path("p.jsonl")
_text = st.text(st.characters(exclude_categories=["Cs"]))
_lines = st.fixed_dictionaries(
    {"text_input": _text.filter(bool)},
    optional={
        "max_tokens": st.integers(1000, 2**31 - 1),
        "min_tokens": st.integers(0, 1000),
        "reference": _text,
        "category": _text,
        "temperature": st.floats(0, 10),
        "top_k": st.integers(0, 100),
        "end_id": st.integers(-1, 10**6),
        "stop_words": st.lists(_text.filter(bool)),
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
    read = parse_line(json.dumps(line, ensure_ascii=ascii_only).encode(), PATH, 3)
    assert read is not None
    for key, value in line.items():
        if key == "id":
            continue
        here = read.text if key == "text_input" else getattr(read, key, None)
        assert (read.sampling.get(key) if here is None else here) == value


@given(st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
def test_any_other_line_is_a_user_error_with_its_place(raw: bytes) -> None:
    with pytest.raises(UserError, match=r"^p\.jsonl:3: "):
        parse_line(raw, PATH, 3)


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
        ({"prompt": "a", "output_tokens": "9"}, "output_tokens is not"),
        ({"text_input": "a", "reference": 4}, "reference is not text"),
        ({"text_input": "a", "temperature": -1}, "temperature is not"),
        ({"text_input": "a", "top_p": 1.1}, "top_p is not"),
        ({"text_input": "a", "top_k": 1.5}, "top_k is not"),
        ({"text_input": "a", "stop_words": ["", "b"]}, "stop_words is not"),
        ({"text_input": "a", "timestamp": "1"}, "timestamp is not"),
        ({"text_input": "a", "min_tokens": 3, "max_tokens": 2}, "min_tokens is above"),
        ({"messages": []}, "messages is not"),
        ({"messages": [{"role": "user"}]}, "messages is not"),
        ({"conversations": [4]}, "conversations is not"),
        ({"question": "a"}, "lacks text_input"),
        ({"input_length": 0}, "input_length is not"),
        ({"input_length": 9, "hash_ids": [-1]}, "hash_ids is not"),
        (["a"], "not a JSON object"),
    ],
)
def test_a_wrong_value_is_named(line: object, what: str) -> None:
    with pytest.raises(UserError, match=rf"^p\.jsonl:3: {what}"):
        parse_line(json.dumps(line).encode(), PATH, 3)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ({"text": "a"}, Line("a")),
        ({"task_id": 1, "prompt": "a", "output_tokens": 128}, Line("a", max_tokens=128)),
        (
            {"timestamp": 27482, "prompt": "a", "output_length": 52, "hash_ids": [1]},
            Line("a", max_tokens=52, timestamp_ms=27482),
        ),
        (
            {"timestamp": 0, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]},
            Line("", max_tokens=52, timestamp_ms=0, input_tokens=700, blocks=[46, 47]),
        ),
        ({"text": "a", "input_length": "long"}, Line("a")),
        (
            {"id": "x", "conversations": [{"from": "human", "value": "a"}, {"value": "b"}]},
            Line("a"),
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            Line(
                "s\nu",
                ({"role": "system", "content": "s"}, {"role": "user", "content": "u"}),
            ),
        ),
        (
            {"text_input": "a", "min_length": 4, "random_seed": 7, "stop": "x"},
            Line("a", min_tokens=4, sampling={"seed": 7, "stop_words": ["x"]}),
        ),
    ],
)
def test_other_tools_lines_are_understood(line: object, read: Line) -> None:
    assert parse_line(json.dumps(line).encode(), PATH, 1) == read


def test_sharegpt_is_a_list_in_which_somebody_may_not_speak(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    talks = [
        {"id": "1", "conversations": [{"from": "human", "value": "hello"}]},
        {"id": "2", "conversations": [{"from": "gpt", "value": "alone"}]},
        {"id": "3", "conversations": []},
        {
            "id": "4",
            "conversations": [{"from": "gpt", "value": "b"}, {"from": "user", "value": "c"}],
        },
    ]
    path.write_text(json.dumps(talks, indent=1))
    assert [line.text for line in read_lines(path)] == ["hello", "c"]
    path.write_text(json.dumps([*talks, 4]))
    with pytest.raises(UserError, match=r"sharegpt\.json, item 5: not a JSON object"):
        read_lines(path)


@pytest.mark.parametrize("data", ["", "\n\n", "[]"])
def test_a_file_without_prompts_is_a_user_error(tmp_path: Path, data: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(data)
    with pytest.raises(UserError, match="holds no prompts"):
        read_lines(path)


def test_sampling_words_are_read_under_any_of_their_names() -> None:
    words = ("temperature=0.5", "random_seed=3", "stop=END", 'bad_words=["a", "b"]')
    assert parse_sampling(words) == {
        "temperature": 0.5,
        "seed": 3,
        "stop_words": ["END"],
        "bad_words": ["a", "b"],
    }


@pytest.mark.parametrize("word", ["temprature=1", "top_k=x", "top_k", "top_p=2", "stop="])
def test_a_wrong_sampling_word_is_a_user_error(word: str) -> None:
    with pytest.raises(UserError, match="--sampling: "):
        parse_sampling((word,))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text_input": "a" * (2**24 + 1)}, "a prompt of 16,777,217 characters is too long"),
        ({"input_length": 2**31 - 1, "timestamp": 0}, "input_length is not a whole number above 0"),
    ],
)
def test_what_would_not_fit_in_memory_is_refused(line: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=f"prompts:7: {said}"):
        read_object(line, "prompts", 7)

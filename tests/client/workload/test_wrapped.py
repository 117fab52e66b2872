"""Files as people have them: packed, wrapped, with the answer in the chat; or none of these."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.workload.chat import load_chat_template
from llm_perf.workload.datasets import Line, read_lines, unused_remarks

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "data",
                    "payload",
                    "messages",
                    "role",
                    "content",
                    "type",
                    "text",
                    "prompt",
                    "beam_width",
                    "body",
                    "custom_id",
                    "shape",
                    "extra_body",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=80)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.text('prompt,;\t"\r\n 1', max_size=40).map(lambda text: f"prompt,{text}".encode()),
    st.booleans(),
)
def test_any_bytes_are_prompts_or_one_clear_error(
    tmp_path: Path, data: bytes, packed: bool
) -> None:
    file = tmp_path / "any"
    file.write_bytes(gzip.compress(data) if packed else data)
    with contextlib.suppress(UserError):
        assert read_lines(file)


CUT = gzip.compress(b"{}", mtime=0)[:-4]


@pytest.mark.parametrize("head", [CUT[:2], CUT[:4], CUT])
def test_a_broken_gzip_is_one_clear_error(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(head)
    with pytest.raises(UserError, match="can't be read"):
        read_lines(tmp_path / "a.gz")


def _read(tmp_path: Path, value: object) -> list[tuple[str, str | None]]:
    (tmp_path / "a.json").write_text(json.dumps(value))
    return [(line.text, line.reference) for line in read_lines(tmp_path / "a.json")]


def test_perf_analyzers_tensors_and_genai_perfs_payloads_are_prompts(tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}]}
    data = [{"text_input": ["a"], "max_tokens": [3]}, {"payload": [asked]}]
    assert _read(tmp_path, {"data": data}) == [("a", None), ("b", None)]


def test_a_packed_file_with_a_mark_and_crlf_is_read(tmp_path: Path) -> None:
    raw = b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n'
    (tmp_path / "a.gz").write_bytes(gzip.compress(raw))
    assert [line.text for line in read_lines(tmp_path / "a.gz")] == ["a", "b"]


def _lines(tmp_path: Path, data: bytes) -> list[Line]:
    (tmp_path / "a").write_bytes(data)
    return read_lines(tmp_path / "a")


def test_what_stands_beside_a_payload_is_the_requests_and_a_batch_is_its_bodies(
    tmp_path: Path,
) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    delayed = {"data": [{"payload": [asked], "timestamp": [70]}]}
    (line,) = _lines(tmp_path, json.dumps(delayed).encode())
    assert (line.text, line.max_tokens, line.timestamp_ms) == ("a", 3, 70)
    batch = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    (line,) = _lines(tmp_path, json.dumps(batch).encode())
    assert (line.text, line.max_tokens) == ("a", 3)
    tensor = {"data": [{"text_input": {"content": ["a"], "shape": [1]}, "stop": ["x"]}]}
    (line,) = _lines(tmp_path, json.dumps(tensor).encode())
    assert (line.text, line.sampling) == ("a", {"stop_words": ["x"]})


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_with_a_header_is_read(tmp_path: Path, mark: str, end: str) -> None:
    rows = [
        ["id", "prompt", "max_tokens", "reference", "stop"],
        ["1", f'"say ""a{mark}b""{end}twice"', "9", "4", "END"],
        ["2", "c", "", "", '"[""x"", ""y""]"'],
    ]
    text = end.join(mark.join(row) for row in rows) + end
    first, second = _lines(tmp_path, text.encode())
    assert first.text == f'say "a{mark}b"{end}twice' and first.max_tokens == 9
    assert (first.reference, first.sampling) == ("4", {"stop_words": ["END"]})
    assert (second.max_tokens, second.reference) == (None, None)
    assert second.sampling == {"stop_words": ["x", "y"]} and second.unused == ("id",)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
@settings(max_examples=50, deadline=None)
def test_any_prompt_that_python_writes_as_csv_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    with contextlib.suppress(csv.Error):  # a NUL, before Python 3.11
        writer.writerows([["prompt"], *([prompt] for prompt in prompts)])
        path = tmp_path_factory.mktemp("csv")
        assert [line.text for line in _lines(path, text.getvalue().encode())] == prompts


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PAR1\x15", "is a Parquet file, which isn't read; write it as a jsonl"),
        (b"PK\x03\x04", "is a zip archive, or a spreadsheet"),
        (b"\x28\xb5\x2f\xfd", "is packed with zstd"),
        (b"question,id\na,1\n", "is neither JSON nor a CSV whose header names a column of prompts"),
        (b"What is a KV cache?\nAnd a token?\n", "is neither JSON nor a CSV"),
        (b"\xe9t\xe9", "is no text"),
        (b"prompt,id\na,1,2\n", "a:2: has 3 cells, the header 2; quote cells that hold a comma"),
        (b"prompt,prompt\na,b\n", "a:1: has two columns of one name"),
        (b'prompt,id\n"a,1\n', "is no CSV"),
        (b"prompt,max_tokens\na,many\n", "a:2: max_tokens is not a whole number above 0"),
        (
            b'{"prompts":\n[{"text": "a"}]}',
            "is one object that holds prompts, not a list of prompts",
        ),
        (b'{"question": "a"}', r"lacks text_input \(or .*\); it has: question"),
        (b'{"messages": [{"role": "user"}]}', "message 1 has no text as its content"),
    ],
)
def test_another_format_is_named_with_what_it_lacks(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _lines(tmp_path, data)


def test_one_object_over_several_lines_and_utf_16_are_read(tmp_path: Path) -> None:
    text = json.dumps({"prompt": "é"}, indent=1, ensure_ascii=False)
    for data in (text.encode(), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode()):
        assert [line.text for line in _lines(tmp_path, data)] == ["é"]


def test_keys_that_say_nothing_here_are_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a", "name": "x"}]
    told = [
        {"prompt": "a", "text": "b", "id": 1, "answer": "c", "note": None, "input_length": 3},
        {"messages": turns, "model": "m", "answer": "c", "id": 2},
        {"prompt": "a", "target": "c", "reference": "d"},
    ]
    first, second, third = lines = _lines(tmp_path, json.dumps(told).encode())
    assert first.unused == ("text", "id", "answer", "input_length")
    assert second.unused == ("model", "answer", "id", "messages[].name")
    assert third.unused == ("target",)
    unused, hint = unused_remarks(lines)
    assert "id (2 of 3), answer (2 of 3)" in unused and "messages[].name (1 of 3)" in unused
    assert hint == "answer: called reference, the answers would be scored against it"


def test_the_last_turn_of_an_answered_chat_is_its_reference(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert _read(tmp_path, [{"messages": turns}]) == [("2+2?", "4")]
    assert _read(tmp_path, [{"messages": turns, "reference": "four"}]) == [("2+2?", "four")]
    with pytest.raises(UserError, match="nothing that was asked"):
        _read(tmp_path, [{"messages": turns[1:]}])


def test_a_picture_is_refused_not_dropped(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {}}]
    with pytest.raises(UserError, match="message 1 holds a part of type 'image_url'"):
        _read(tmp_path, [{"messages": [{"role": "user", "content": parts}]}])


def test_templates_for_training_and_for_tools_render(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{% if tools is not none %}tools{% endif %}{% for m in messages %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert load_chat_template(tmp_path)([{"role": "user", "content": "hi"}]) == "hi"


@pytest.mark.parametrize("wrong", [{"beam_width": 0}, {"length_penalty": "long"}])
def test_beams_and_their_penalty_are_checked(tmp_path: Path, wrong: dict[str, object]) -> None:
    asked = {"beam_width": 2, "length_penalty": -1.5}
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", **asked}))
    assert [line.sampling for line in read_lines(tmp_path / "a.jsonl")] == [asked]
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is not"):
        _read(tmp_path, [{"prompt": "a", **wrong}])

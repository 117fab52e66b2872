"""Files as people have them: packed, wrapped, with the answer in the chat; or none of these."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.workload.chat import load_chat_template
from llm_perf.workload.datasets import read_lines

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
@given(st.binary(max_size=80) | _JSON.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_any_bytes_are_prompts_or_one_clear_error(
    tmp_path: Path, data: bytes, packed: bool
) -> None:
    file = tmp_path / "any"
    file.write_bytes(gzip.compress(data) if packed else data)
    with contextlib.suppress(UserError):
        assert read_lines(file)


@pytest.mark.parametrize("head", [b"\x1f\x8b", b"\x1f\x8b\x08\x00", gzip.compress(b"{}")[:-4]])
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


def test_the_last_turn_of_an_answered_chat_is_its_reference(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert _read(tmp_path, [{"messages": turns}]) == [("2+2?", "4")]
    assert _read(tmp_path, [{"messages": turns, "reference": "four"}]) == [("2+2?", "four")]
    with pytest.raises(UserError, match="nothing that was asked"):
        _read(tmp_path, [{"messages": turns[1:]}])


def test_a_picture_is_refused_not_dropped(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {}}]
    with pytest.raises(UserError, match="messages is not a list"):
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

"""Each text comes back from the language's own reader: bash, PyYAML, protobuf."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelParameter

from trtllm_deploy.machine.quoting import pbtxt, shell, yaml_text

HOSTILE = "\n\r\t \"'`$(){};|&<>#*?~\\!%:-\x1b[2Ja0\x7f\x85\u2028\ufeff😀"
TEXTS = st.text(
    st.sampled_from(HOSTILE) | st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)


@given(st.lists(TEXTS, max_size=20))
@settings(max_examples=50)
def test_bash_reads_each_word_as_it_was(words: list[str]) -> None:
    script = f"printf '%s\\0' {' '.join(map(shell, words))} end"
    said = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    assert said.decode().split("\0") == [*words, "end", ""]


@given(TEXTS | st.text(st.characters(exclude_categories=["Cs"])))
def test_yaml_reads_a_value_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"a:\n  - b: {yaml_text(text)}\n    c: 1") == {"a": [{"b": text, "c": 1}]}


@given(TEXTS | st.text(st.characters(exclude_categories=["Cs"])))
def test_protobuf_reads_a_value_as_it_was(text: str) -> None:
    assert text_format.Parse(f"string_value: {pbtxt(text)}", ModelParameter()).string_value == text


def test_what_no_word_can_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="NUL"):
        shell("a\0b")

"""What others say reaches the screen spelt out."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.results.table import print_table
from llm_perf.screen import plain

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b1A\r\x08\u202e\ud800"


@given(st.text())
def test_what_is_printed_can_be_seen(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_words_of_any_language_stay_as_they_are() -> None:
    assert plain("four thousand, 四千, émus 🎉") == "four thousand, 四千, émus 🎉"
    assert plain("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_errors_and_tables_show_no_control_character_and_know_no_markup() -> None:
    assert str(UserError(NASTY, where="a[/b]")).isprintable()
    out = io.StringIO()
    print_table(f"model a[/b] {NASTY}", ("[red]x", "n"), [(NASTY, "1")], [f"[/] {NASTY}"], out)
    assert "a[/b]" in out.getvalue()
    assert all(line.isprintable() for line in out.getvalue().splitlines())

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from trtllm_deploy.machine.console import console
from trtllm_deploy.machine.finding import Finding, print_findings

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[1;31mnothing is wrong\x9b0m\x08\x7f\u202e"


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def test_what_others_say_is_spelt_out_wherever_it_is_printed(screen: io.StringIO) -> None:
    out = console()
    out.file = screen
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    with Live(table, console=out, refresh_per_second=1):
        out.print(escape(HOSTILE), soft_wrap=True)
    print_findings([Finding("error", HOSTILE, HOSTILE, HOSTILE, f"{HOSTILE}\nerror x")], out)
    shown = screen.getvalue()
    assert all(each.isprintable() or each == "\n" for each in shown)
    assert "\\x1b[2J" in shown
    assert "\nerror x" not in shown


def test_colours_stay_on_a_terminal(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = console()
    out.file = screen
    out.print("[red]failed[/] \x1b[2J")
    assert screen.getvalue().startswith("\x1b[31mfailed")
    assert "\x1b[2J" not in screen.getvalue()


@given(st.text())
def test_no_text_reaches_the_screen_with_a_control_character(text: str) -> None:
    out, screen = console(), io.StringIO()
    out.file = screen
    out.print(text, markup=False, soft_wrap=True)
    assert all(each.isprintable() or each in "\n\t" for each in screen.getvalue())

"""Tables and the live line on terminals of any width: no row folds."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import string
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llm_perf.load.load import Concurrency, Load, Rate
from llm_perf.load.progress import Progress, show_progress
from llm_perf.results.run import Run
from llm_perf.results.screen_table import print_table
from llm_perf.results.table import print_run, print_summary
from tests.client.runs import asked, make_run
from tests.client.scripted import FINAL, Say, ScriptedTriton

Print = Callable[[io.StringIO], None]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(print_to: Print, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    print_to(terminal)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def long_run(load: Load, **more: object) -> Run:
    records = [asked(i, chunks_ms=(90_150, 91_160, 98_765)) for i in range(3)]
    return make_run(records, load, **more)


def rows(printed: list[str]) -> list[list[str]]:
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in printed
        if line[:1] in "│┃"
    ]


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("load", [Concurrency(4), Rate(2.5)])
def test_no_row_of_a_run_folds(columns: int, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_run(load)
    printed = lines(lambda file: print_run(run, file), columns, monkeypatch)
    assert max(cell_len(line) for line in printed) <= columns
    head, *others = rows(printed)
    assert {len(row) for row in others} == {len(head)}
    if columns >= 80:
        assert {"Statistic", "avg", "p50", "p99", "n / failed"} <= set(head)
        assert all(re.fullmatch(r"-|inf|[\d,.~]+", row[1]) for row in others)
        labels = [row[0] for row in others]
        assert labels[0] in ("TTFT (ms)", "Time to first token (ms)")
        assert len(set(labels)) == len(labels) and not any("…" in label for label in labels)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_sweeps_summary_keeps_its_loads(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        long_run(Concurrency(1)),
        long_run(Concurrency(256), max_in_flight_seen=100),
        long_run(Rate(2.5)),
    ]
    documents = [run.to_json() for run in runs]
    printed = lines(lambda file: print_summary(documents, file), columns, monkeypatch)
    assert max(cell_len(line) for line in printed) <= columns
    loads = [row[0] for row in rows(printed)]
    assert loads == [
        *("load", "concurrency 1", "concurrency 256 (at most 100 in flight)", "rate 2.5/s")
    ]
    assert {"tokens/s", "ok / failed"} <= set(rows(printed)[0])


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_run(Concurrency(4))
    text = " ".join(lines(lambda file: print_run(run, file), 80, monkeypatch))
    assert "Too narrow here for min, max, std" in text
    wide = " ".join(lines(lambda file: print_run(run, file), 200, monkeypatch))
    assert "Too narrow" not in wide


@given(
    st.lists(st.text(max_size=60), min_size=1, max_size=5), st.integers(30, 130), st.integers(1, 6)
)
def test_no_label_folds(labels: list[str], columns: int, figures: int) -> None:
    heads = ["label", *(f"h{i}" for i in range(figures))]
    table = [[label, *["1,234.00"] * figures] for label in labels]
    with pytest.MonkeyPatch.context() as monkeypatch:
        printed = lines(
            lambda file: print_table("t", heads, table, (), file, least=heads[2:]),
            columns,
            monkeypatch,
        )
    assert max(cell_len(line) for line in printed) <= columns
    assert len(rows(printed)) == 1 + len(labels)


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.text(string.printable, max_size=90))
def test_the_live_line_is_one_line(done: int, responses: int, label: str) -> None:
    seen = Progress(done, 10**9, 3, 256, responses, 1.0, tuple(range(10**9, 10**9 + 200)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with show_progress(label) as watch:
            watch(seen)
    (line,) = terminal.getvalue().removesuffix("\n").split("\r\x1b[K")[1:]
    assert len(line) < 80 and line.isprintable()


def test_the_command_on_a_terminal_of_80_columns(
    tmp_path: Path, write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    with ScriptedTriton(lambda prompt: (Say("one", 1), Say(" two", 2), FINAL)) as server:
        flags = {
            **{"url": server.url, "tokenizer-path": tokenizer_folder, "concurrency": "1,2"},
            **{"input-data": write_prompts(*"abc"), "profile-export-file": tmp_path / "x.json"},
        }
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        words = [f"--{name}={value}" for name, value in flags.items()]
        environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "client"), "TERM": "xterm"}
        with subprocess.Popen(
            [sys.executable, "-m", "llm_perf.cli.main", *words],
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": environment},
        ) as running:
            os.close(theirs)
            said = b""
            try:
                while data := os.read(ours, 65536):
                    said += data
            except OSError:  # the other end is closed
                pass
            os.close(ours)
    assert running.returncode == 0
    text = re.sub(r"\x1b\[[0-9;]*[mK]", "", said.decode())
    assert "concurrency 1: 3/3 done" in text
    screen = [part for line in text.split("\n") for part in line.rstrip("\r").split("\r")]
    paths = "Wrote "  # which a terminal may wrap
    assert max(cell_len(line) for line in screen if not line.startswith(paths)) <= 80

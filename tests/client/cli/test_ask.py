"""``llm_perf ask`` as a user runs it, against servers that say when they may go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client.scripted import FINAL, Fail, Say, ScriptedTriton, Step
from tests.client.talking import TalkingServer

CLIENT = str(Path(__file__).parents[3] / "client")


@contextmanager
def asking(*words: object, question: str = "how are you?") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "llm_perf.cli.main", "ask", question, *map(str, words)]
    with subprocess.Popen(
        command,
        env={"PYTHONPATH": CLIENT, "PATH": os.defpath, "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_answer_is_shown_while_it_comes_and_its_figures_after() -> None:
    gate = threading.Event()
    with (
        TalkingServer(("one", " two", "\x1b[2J three"), gate=gate) as server,
        asking("-u", server.url, "-i", "openai", "-m", "m") as process,
    ):
        assert process.stdout and os.read(process.stdout.fileno(), 99) == b"one"
        gate.set()
        rest, figures = process.communicate(timeout=30)
    assert rest.decode() == " two\\x1b[2J three\n"
    assert server.asked[0]["prompt"] == "how are you?"
    assert figures.decode().startswith("TTFT ") and "ITL" in figures.decode()
    assert figures.decode().endswith("tokens: 7 in (server's count), 3 out (server's count)\n")
    assert process.returncode == 0


def test_a_character_in_two_pieces_is_shown_whole(tokenizer_folder: Path) -> None:
    half, other = "é".encode()[:1], "é".encode()[1:]

    def script(prompt: str) -> list[Step]:
        return [Say(half, 1), Say(other, 1), FINAL]

    with (
        ScriptedTriton(script) as server,
        asking("-u", server.url, "--tokenizer-path", tokenizer_folder) as process,
    ):
        answer, figures = process.communicate(timeout=30)
    assert answer.decode() == "é\n"
    assert "tokens: 12 in (tokenizer's count), 2 out (server's count)" in figures.decode()


def test_a_server_that_fails_is_one_line_and_exit_code_1() -> None:
    def script(prompt: str) -> list[Step]:
        return [Say("a", 1), Fail("out of \x1b[31mpages"), FINAL]

    with ScriptedTriton(script) as server, asking("-u", server.url) as process:
        answer, said = process.communicate(timeout=30)
    assert (answer, process.returncode) == (b"a\n", 1)
    assert said.decode() == "llm_perf ask: error: out of \\x1b[31mpages\n"


@pytest.mark.parametrize("question", ["", "\udce9"])
def test_what_is_no_question_is_one_line(question: str) -> None:
    with asking(question=question) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said.decode().startswith("llm_perf: QUESTION: text_input is not text")

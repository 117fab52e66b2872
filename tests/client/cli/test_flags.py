from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from llm_perf.cli import flags
from llm_perf.cli.main import command
from llm_perf.errors import UserError
from llm_perf.figures.accuracy import SCORERS
from llm_perf.results.export import EXTRAS
from llm_perf.workload.workload import Workload

SERVER = ["-u", "localhost:1", "-m", "ensemble"]


@pytest.fixture
def read(tokenizer_folder: Path, tmp_path: Path) -> Any:
    (tmp_path / "p.jsonl").write_text('{"text_input": "a"}\n{"text_input": "b"}\n')

    def read(*words: object) -> Workload:
        told = [*SERVER, "--tokenizer-path", tokenizer_folder, *words]
        context = command.make_context("llm_perf", [str(word) for word in told])
        return flags.read_workload(context.params)

    return read


def test_prompts_come_from_a_file(read: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    assert [each.text for each in read("--input-data", file).prompts] == ["a", "b"]
    first = read("--input-data", file, "--num-prompts", 1, "--output-tokens", "7+-0").prompts
    assert [(each.text, each.min_tokens, each.max_tokens) for each in first] == [("a", 7, 7)]
    (sampled, _) = read("--input-data", file, "--sampling", "top_k=3").prompts
    assert sampled.sampling == {"top_k": 3}


def test_prompts_are_made_up(read: Any) -> None:
    made = read("--isl", "20", "--osl", "5±1", "--shared-prefix-tokens", 8, "--num-prompts", 3)
    assert [each.input_tokens for each in made.prompts] == [20, 20, 20]
    assert len(read("--isl", 9, "--osl", 5).prompts) == 100
    assert read("--isl", 9, "--osl", 5).sha256 == read("--isl", 9, "--osl", 5, "--seed", 0).sha256
    assert read("--isl", 9, "--osl", 5).sha256 != read("--isl", 9, "--osl", 5, "--seed", 1).sha256


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "there are no prompts"),
        (["--isl", "9"], "--isl needs --osl"),
        (["--input-data", "p", "--isl", "9"], "--input-data and --isl exclude each other"),
        (["--input-data", "p", "--osl", "9"], "--input-data and --osl exclude each other"),
        (
            ["--input-data", "p", "--max-tokens", "9", "--output-tokens", "9"],
            "--max-tokens and --output-tokens exclude each other",
        ),
        (["--isl", "9", "--osl", "0"], "--osl: '0' is no length"),
        (["--input-data", "p", "--sampling", "heat=1"], "unknown sampling parameter 'heat'"),
    ],
)
def test_flags_that_make_no_sense_together_are_a_user_error(
    read: Any, words: list[str], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        read(*words)


@pytest.mark.parametrize(
    ("word", "fix"), [("serach", "did you mean 'search'?"), ("go", "there are ask, compare, ")]
)
def test_a_word_that_is_no_command_is_answered_with_those_there_are(word: str, fix: str) -> None:
    with pytest.raises(UserError, match=re.escape(fix)):
        command.main([word, "--limit", "ttft.p95<1s"], standalone_mode=False)


def test_the_choices_are_those_that_there_are() -> None:
    choices = {
        parameter.name: parameter.type.choices
        for parameter in command.params
        if isinstance(parameter.type, click.Choice)
    }
    assert list(choices["score"]) == list(SCORERS)
    assert set(choices["export"]) == {*EXTRAS, "all", "none"}
    assert flags.read_extras({"export": "all"}) == EXTRAS
    assert flags.read_extras({"export": "answers"}) == ("answers",)
    assert flags.read_extras({"export": "none"}) == ()


@pytest.mark.parametrize(
    ("words", "url"),
    [([], "localhost:8001"), (["-i", "http"], "localhost:8000"), (["-u", "h:9"], "h:9")],
)
def test_a_server_that_is_not_named_is_the_ensemble_of_a_local_triton(
    words: list[str], url: str
) -> None:
    context = command.make_context("llm_perf", [*words, "--tokenizer-path", "t"])
    endpoint = flags.read_endpoint(context.params)
    assert (endpoint.url, endpoint.model) == (url, "ensemble")


@pytest.mark.parametrize(
    ("words", "protocol"),
    [
        ((), "grpc"),
        (("-u", "localhost:8001"), "grpc"),
        (("-u", "URL"), "http"),
        (("-u", "URL/v1"), "openai"),
        (("-u", "URL", "-i", "openai"), "openai"),
        (("-u", "URL", "--endpoint-type", "chat"), "openai"),
        (("-u", "http://127.0.0.1:1"), "openai"),
        (("-u", "https://127.0.0.1:1", "--insecure"), "openai"),
    ],
)
def test_a_url_says_what_is_spoken_there(
    words: tuple[str, ...], protocol: str, http_server: Any
) -> None:
    def triton(path: str) -> tuple[int, bytes]:
        return (200, b'{"name": "triton"}') if path == "/v2" else (404, b"")

    with http_server(triton) as place:
        told = [word.replace("URL", f"http://{place}") for word in words]
        endpoint = flags.read_endpoint(command.make_context("llm_perf", told).params)
    assert endpoint.protocol == protocol
    assert (endpoint.tls is not None) == ("--insecure" in words)

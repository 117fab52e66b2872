"""What an OpenAI-style server is asked, as it came to a server that refuses some of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_perf.api import Concurrency, Endpoint, Run, load_workload, measure
from llm_perf.cli.main import command
from llm_perf.errors import UserError
from llm_perf.transports import connect
from llm_perf.workload.fields import parse_extra_body
from llm_perf.workload.synthetic import Lengths
from llm_perf.workload.workload import Prompt
from tests.client.talking import TalkingServer


@pytest.fixture
def asked(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> Callable[..., tuple[Run, list[dict[str, object]]]]:
    def asked(*lines: object, refuses: set[str] | None = None, exactly: int = 0, **shape: object):
        with TalkingServer(refuses=frozenset(refuses or ())) as server:
            names = {"max_tokens_field", "stream_options", "transport"}
            endpoint = {key: shape.pop(key) for key in names & shape.keys()}
            workload = load_workload(
                write_prompts(*lines),
                tokenizer_folder,
                output_tokens=Lengths(exactly) if exactly else None,
                **shape,
            )
            where = Endpoint(server.url, "openai", "m", **endpoint)
            return measure(where, workload, Concurrency(1)), server.asked

    return asked


def test_the_body_has_what_was_asked_for_besides(asked) -> None:
    line = {"text_input": "a", "extra_body": {"echo": True, "guided": {"regex": "x+"}, "n": 2}}
    run, (first, second) = asked(line, "b", extra_body={"n": 1})
    assert (first["echo"], first["guided"], first["n"]) == (True, {"regex": "x+"}, 1)
    assert "echo" not in second and second["n"] == 1
    assert run.requests_ok == 2


def test_the_limit_has_the_name_that_the_server_knows(asked) -> None:
    line = {"text_input": "a", "max_tokens": 9}
    _, (body,) = asked(line, max_tokens_field="max_completion_tokens", stream_options=False)
    assert body["max_completion_tokens"] == 9
    assert not {"max_tokens", "stream_options"} & body.keys()


@pytest.mark.parametrize(
    ("refuses", "sent"),
    [
        (set(), {"min_tokens": 3, "ignore_eos": True}),
        ({"min_tokens"}, {"ignore_eos": True}),
        ({"ignore_eos"}, {"min_tokens": 3}),
        ({"min_tokens", "ignore_eos"}, {}),
        ({"stream_options"}, {"min_tokens": 3, "ignore_eos": True}),
        ({"stream_options", "min_tokens"}, {"ignore_eos": True}),
    ],
)
def test_a_fixed_length_is_asked_for_as_far_as_the_server_takes_it(
    asked, refuses: set[str], sent: dict[str, object]
) -> None:
    run, bodies = asked("a", "b", refuses=refuses, exactly=3)
    assert run.requests_ok == 2
    for body in bodies[-2:]:
        assert {key: body[key] for key in ("min_tokens", "ignore_eos") if key in body} == sent
        assert body["max_tokens"] == 3 and ("stream_options" in body) != (
            "stream_options" in refuses
        )
    said = [note for note in run.notes if "what the server refuses" in note]
    assert len(said) == bool(refuses)
    assert all(key in said[0] for key in refuses)


def test_without_a_fixed_length_nothing_is_tried(asked) -> None:
    _, bodies = asked("a", refuses={"min_tokens"})
    assert len(bodies) == 1


def test_what_is_refused_is_left_out_though_the_trial_fails_of_something_else() -> None:
    async def told(url: str) -> tuple[str, ...]:
        trial = Prompt(0, "a", 1, 3, min_tokens=3)
        transport = await connect(Endpoint(url, "openai", "m"), 1, trial=trial)
        await transport.close()
        return transport.dialect.remarks

    with TalkingServer(refuses=frozenset({"ignore_eos"}), broken=True) as server:
        (note,) = asyncio.run(told(server.url))
    assert note.startswith("left out what the server refuses, ignore_eos (HTTP 400: ")


def test_another_failure_of_the_trial_is_the_runs_to_tell(asked) -> None:
    run, _ = asked("a", refuses={"max_tokens"}, exactly=3)
    assert run.requests_failed == 1 and "max_tokens" in (run.records[0].error or "")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": NaN}', '{"a": 1e999}'])
def test_an_extra_body_is_a_json_object_or_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--extra-body: is not a JSON object"):
        parse_extra_body(text)


@pytest.mark.parametrize("line", [[1], "x", 3])
def test_so_is_that_of_a_line(line: object, write_prompts, tokenizer_folder: Path) -> None:
    prompts = write_prompts({"text_input": "a", "extra_body": line})
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: extra_body is not a JSON object"):
        load_workload(prompts, tokenizer_folder)


def test_two_bodies_are_two_workloads(write_prompts, tokenizer_folder: Path) -> None:
    prompts = write_prompts("a")
    made = [load_workload(prompts, tokenizer_folder, extra_body=body) for body in (None, {"n": 2})]
    assert made[0].sha256 != made[1].sha256


def test_a_whole_run_from_the_command_line(tmp_path: Path, write_prompts) -> None:
    with TalkingServer() as server:
        words = [
            *("-u", server.url, "-i", "openai", "-m", "m", "--input-data", write_prompts("a")),
            *("--extra-body", '{"lora": "x"}', "--max-tokens-field", "max_new"),
            *("--output-tokens", "3", "--profile-export-file", tmp_path / "x.json"),
        ]
        done = CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert server.asked[-1]["lora"] == "x" and server.asked[-1]["max_new"] == 3
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(line)["extra_body"] == {"lora": "x"}


@pytest.mark.parametrize("flag", ["--extra-body={}", "--max-tokens-field=x", "--no-stream-options"])
def test_what_is_for_openai_alone_says_so(flag: str) -> None:
    done = CliRunner().invoke(command, [flag], standalone_mode=False)
    assert isinstance(done.exception, UserError) and "is for -i openai" in str(done.exception)


def test_chats_without_a_template_are_not_glued_in_silence(asked) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    run, (body,) = asked({"messages": turns, "answer": "x"})
    assert body["prompt"] == "s\nu"
    assert any("1 chats were sent as one text" in note for note in run.notes)
    assert any("keys of the data that aren't used: answer (1 of 1)" in note for note in run.notes)
    run, (body,) = asked({"messages": turns}, transport="chat")
    assert body["messages"] == turns and not any("one text" in note for note in run.notes)

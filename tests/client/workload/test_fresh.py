"""No server knows a prompt from before: not from a load, a repetition or a warm-up of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.api import Concurrency, Conditions, Endpoint, Extent, Run, load_workload, measure
from llm_perf.cli.main import command
from llm_perf.workload.fresh import counted, prompt_for
from llm_perf.workload.synthetic import Lengths
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import Prompt, Workload, synthetic_workload
from tests.client.runs import TOKENIZER
from tests.client.scripted import FINAL, Say, ScriptedTriton
from tests.client.talking import TalkingServer

BLOCK = 16  # tokens: what a cache of prefixes knows at least


def made(isl: int, prefix: int = 0, seed: int = 0, turn: str = "", n: int = 3) -> Workload:
    lengths = Lengths(isl), Lengths(4)
    return synthetic_workload(
        TOKENIZER, *lengths, n, shared_prefix_tokens=prefix, seed=seed, turn=turn
    )


def ids(prompt: Prompt) -> list[int]:
    return load_tokenizer(TOKENIZER).encode(prompt.text, special=True)


@settings(max_examples=15)
@given(isl=st.integers(80, 300), prefix=st.sampled_from([0, 2, 32]), seed=st.integers(0, 2**32))
def test_repetitions_of_made_up_prompts_are_new_and_as_long(
    isl: int, prefix: int, seed: int
) -> None:
    prompts = made(isl, prefix, seed).prompts
    asked = [ids(prompt_for(prompts, number)) for number in range(9)]
    assert [len(each) for each in asked] == [isl] * 9
    assert len({tuple(each[:prefix]) for each in asked}) == 1
    assert len({tuple(each[: prefix + BLOCK + 1]) for each in asked}) == 9
    assert [prompt_for(prompts, number) for number in range(3)] == list(prompts)
    assert prompt_for(prompts, 7) == prompt_for(prompts, 7)


def test_each_load_has_made_up_prompts_of_its_own_and_the_same_in_every_sweep() -> None:
    one, other = (made(80, turn=turn) for turn in ("concurrency1", "concurrency2"))
    starts = {tuple(ids(prompt)[:BLOCK]) for prompt in (*one.prompts, *other.prompts)}
    assert len(starts) == 6 and one.sha256 != other.sha256
    assert made(80, turn="concurrency2").sha256 == other.sha256


def test_repetitions_of_the_users_prompts_stay_as_they_are() -> None:
    prompts = (Prompt(0, "one two three", 3, 4), Prompt(1, "four", 1, 4))
    assert prompt_for(prompts, 2) == prompts[0] and prompt_for(prompts, 5) == prompts[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("hi there", "0123abcd hi there"), ("<s>[INST] hi [/INST]", "<s>[INST] 0123abcd hi [/INST]")],
)
def test_a_tag_goes_within_the_chat_that_a_template_renders(text: str, expected: str) -> None:
    chat = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"})
    messages = chat if "INST" in text else None
    tagged = prompt_for([Prompt(0, text, 2, 4, messages=messages)], 3, "0123abcd-77")
    assert tagged.text == expected
    if messages:
        assert tagged.messages == ({"role": "user", "content": "0123abcd hi"}, chat[1])


def test_tags_make_every_prompt_new_and_count(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    workload = load_workload(write_prompts("one two", "three"), tokenizer_folder)
    extent = Extent(requests=6, warmup_requests=2)
    with ScriptedTriton(lambda prompt: (Say("one", 1), FINAL)) as server:
        endpoint = Endpoint(server.url, "grpc", "ensemble")

        def run(unique: bool) -> Run:
            conditions = Conditions(unique_prefix=unique, extent=extent)
            return measure(endpoint, workload, Concurrency(2), conditions)

        tagged, plain = run(True), run(False)
        sent = [str(each.tensors["text_input"]) for each in server.asked]
    assert len({text[:8] for text in sent[:8]}) == 8
    asked = [record.prompt for record in tagged.records]
    assert {prompt.text for prompt in asked} <= set(sent[:8])
    assert [prompt.text[9:] for prompt in asked] == ["one two", "three"] * 3
    assert all(prompt.input_tokens == len(prompt.text) for prompt in asked)  # a token a byte
    more = (run.metrics["input_sequence_length"]["avg"] for run in (tagged, plain))
    assert next(more) - next(more) == pytest.approx(9)
    assert any("--unique-prefix" in note for note in tagged.notes)
    assert counted(asked[0], None) is asked[0]


def test_a_sweep_over_repetitions_begins_no_two_prompts_alike(tmp_path: Path) -> None:
    with TalkingServer() as server:
        flags = {
            **{"url": server.url, "protocol": "openai", "model": "m"},
            **{"tokenizer-path": TOKENIZER, "isl": 60, "osl": 4, "repeat": 3},
            **{"num-prompts": 4, "concurrency": "1,2", "warmup-requests": 2, "workers": 1},
            "profile-export-file": tmp_path / "x.json",
        }
        words = [f"--{name}={value}" for name, value in flags.items()]
        done = CliRunner().invoke(command, words, standalone_mode=False)
        assert done.exception is None, done.output
        sent = [str(each["prompt"]) for each in server.asked]
    sent = [text for text in sent if text != "Hi"]  # the trial before each load
    assert len(sent) == 2 * (3 * 4 + 2)
    assert len({tuple(text.split()[:12]) for text in sent}) == len(sent)

"""trtllm-serve's own request classes take what llm_perf asks an OpenAI-style server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_perf.transports.openai import _NAMES, OpenAI
from llm_perf.workload.fields import SAMPLING
from llm_perf.workload.workload import Prompt

KINDS = {True: "ChatCompletionRequest", False: "CompletionRequest"}
VALUES: dict[str, Any] = {"stop_words": ["x"], "bad_words": ["x"], "top_p": 0.5}


def read(tree: Path, asked: Sequence[tuple[OpenAI, Prompt]]) -> list[Any]:
    """What the release reads of each request: its limits, or in words why it refuses it."""
    if not (tree / "tensorrt_llm/serve/openai_protocol.py").is_file():
        pytest.skip("the release has no trtllm-serve")
    bodies = [[KINDS[way.chat], json.loads(way.request(prompt, ""))] for way, prompt in asked]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("read_requests.py"), tree],
        input=json.dumps(bodies),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    told: list[Any] = json.loads(done.stdout)
    return told


def prompt(**more: Any) -> Prompt:
    return Prompt(0, "a", 1, 9, **more)


@pytest.mark.parametrize("chat", [True, False])
def test_a_fixed_length_is_taken_with_its_limit(tree: Path, chat: bool) -> None:
    ways = [OpenAI("m", chat, usage=usage) for usage in (True, False)]
    told = read(tree, [(way, prompt(min_tokens=9)) for way in ways])
    # completions of early releases refuse stream_options, which the trial finds out
    assert isinstance(told[0], dict) or "stream_options is not supported" in told[0]
    assert 9 in told[1].values()


@pytest.mark.parametrize("chat", [True, False])
def test_every_sampling_parameter_is_taken_but_bad_words(tree: Path, chat: bool) -> None:
    names = [name for name in SAMPLING if name in _NAMES]
    way = OpenAI("m", chat, usage=False)
    told = read(tree, [(way, prompt(sampling={name: VALUES.get(name, 1)})) for name in names])
    refused = [name for name, each in zip(names, told, strict=True) if isinstance(each, str)]
    assert refused == ["bad_words"]


def test_beams_are_asked_for_in_the_servers_own_words(tree: Path) -> None:
    beams = {"use_beam_search": True, "best_of": 2, "n": 2, "length_penalty": 1.0}
    (told,) = read(tree, [(OpenAI("m", False, usage=False), prompt(extra_body=beams))])
    assert isinstance(told, dict)

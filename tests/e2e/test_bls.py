"""The same answers by every way in: ensemble and tensorrt_llm_bls, streamed or not, gRPC or HTTP.

``WAYS_PROMPTS`` says how many prompts are sent each way.
"""

import itertools
import json
import os
import queue
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from test_triton import (
    CHINESE,
    ENGLISH,
    EXAMPLE,
    MAX_TOKENS,
    TOKENIZER,
    Answer,
    Ask,
    decoded,
    post,
    send,
    tensors,
)

from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

ROWS = [
    json.loads(line)["text_input"]
    for line in (EXAMPLE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
]
MANY = int(os.environ.get("WAYS_PROMPTS", "24"))
PROMPTS = (ROWS[:: max(1, len(ROWS) // MANY)] * 2)[:MANY]
AT_ONCE = 12
INSTANCES = 3
BLS = "tensorrt_llm_bls"
ACCUMULATING = "accumulating_bls"
ACCUMULATE = 'parameters { key: "accumulate_tokens" value: { string_value: "true" } }\n'


@pytest.fixture(scope="module", params=("0.11.0", "1.2"))
def server(
    request: pytest.FixtureRequest, repository: Callable[..., Path], triton_cache: Path
) -> Iterator[ModelServer]:
    """A decoupled server of each release, with a second BLS model that accumulates tokens."""
    settings = {"exclude_input_in_output": True, "bls_instance_count": INSTANCES}
    folder = repository(request.param, **settings)
    shutil.copytree(folder / BLS, folder / ACCUMULATING)
    config = folder / ACCUMULATING / "config.pbtxt"
    config.write_text(config.read_text().replace(f'"{BLS}"', f'"{ACCUMULATING}"') + ACCUMULATE)
    log_file = folder.with_name(f"{folder.name}.log")
    with ModelServer(folder, ports=free_ports(), log_file=log_file, cache_dir=triton_cache) as it:
        it.wait_ready(120)
        yield it


def in_turns(url: str, asks: list[Ask]) -> list[Answer]:
    answers = []
    for start in range(0, len(asks), AT_ONCE):
        answers += send(url, asks[start : start + AT_ONCE])
    return answers


def whole_texts(answers: list[Answer]) -> list[str]:
    return [answer.error or answer.text for answer in answers]


def last_texts(answers: list[Answer]) -> list[str]:
    return [answer.error or answer.pieces[-1].decode() for answer in answers]


def over_http(server: ModelServer, path: str, model: str) -> list[str]:
    def ask(prompt: str) -> str:
        stream = path == "generate_stream"
        body = {"text_input": prompt, "max_tokens": MAX_TOKENS, "stream": stream}
        return "".join(event["text_output"] for event in post(server, path, body, model))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(ask, PROMPTS))


def test_every_way_in_gives_the_same_answers(server: ModelServer) -> None:
    def by_grpc(model: str, stream: bool) -> list[Answer]:
        asks = [Ask(prompt, model=model, stream=stream) for prompt in PROMPTS]
        return in_turns(server.grpc_url, asks)

    streamed = by_grpc("ensemble", True)
    texts = whole_texts(streamed)
    assert texts == [decoded(answer.ids) for answer in streamed]
    assert len(set(texts)) > len(set(PROMPTS)) // 2
    assert whole_texts(by_grpc("ensemble", False)) == texts
    by_bls = by_grpc(BLS, True)
    assert whole_texts(by_bls) == texts
    assert whole_texts(by_grpc(BLS, False)) == texts
    accumulated = by_grpc(ACCUMULATING, True)
    assert last_texts(accumulated) == texts
    assert whole_texts(by_grpc(ACCUMULATING, False)) == texts
    for answers in (by_bls, accumulated):
        assert [answer.ids for answer in answers] == [answer.ids for answer in streamed]
        assert [answer.lengths for answer in answers] == [answer.lengths for answer in streamed]
    for model in ("ensemble", BLS):
        assert over_http(server, "generate", model) == texts
        assert over_http(server, "generate_stream", model) == texts


def test_accumulated_text_grows_by_whole_characters(server: ModelServer) -> None:
    asks = [Ask(text, model=ACCUMULATING) for text in (ENGLISH, CHINESE)]
    for answer in send(server.grpc_url, asks):
        texts = [piece.decode() for piece in answer.pieces]
        assert texts[-1] == decoded(answer.ids)
        assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
        assert not any("\ufffd" in text for text in texts)
        assert len(texts) == len(answer.ids) + 1


def test_a_limit_amid_a_character_shows_in_the_last_accumulated_text(server: ModelServer) -> None:
    asks = [Ask(CHINESE, most, model=ACCUMULATING) for most in range(1, 9)]
    answers = send(server.grpc_url, asks)
    assert last_texts(answers) == [decoded(answer.ids) for answer in answers]
    assert any(text.endswith("\ufffd") for text in last_texts(answers))


@pytest.mark.parametrize("model", [BLS, ACCUMULATING])
def test_a_wrong_request_fails_alone_and_says_why(server: ModelServer, model: str) -> None:
    draft = {"num_draft_tokens": (np.int32(4), "INT32")}
    wrong = {
        "max_input_len 256": Ask("7" * 257, model=model),
        "does not support num_draft_tokens": Ask(ENGLISH, inputs=draft, model=model),
    }
    answers = send(server.grpc_url, [*wrong.values(), Ask(CHINESE, model=model)])
    for reason, answer in zip(wrong, answers, strict=False):
        assert reason in str(answer.error)
    assert answers[-1].error is None
    assert answers[-1].pieces[-1].decode() or answers[-1].text


def test_what_is_missing_or_cannot_be_done_is_named_whatever_its_value(
    server: ModelServer,
) -> None:
    said = {"text_input": (b"7", "BYTES"), "stream": (True, "BOOL")}
    black = (np.zeros((1, 3, 2, 2), np.float16), "FP16")
    cases: list[tuple[str, dict[str, Any]]] = [("max_tokens is missing", said)]
    if "1.2" in server.repository.name:
        whole = {**said, "max_tokens": (np.int32(3), "INT32"), "image_input": black}
        cases.append(("does not support image_input", whole))
    for reason, inputs in cases:
        given = []
        for name, (value, kind) in inputs.items():
            array = np.array([value] if np.ndim(value) else [[value]])
            tensor = grpc.InferInput(name, array.shape, kind)
            given.append(tensor.set_data_from_numpy(array))
        seen: queue.Queue[Any] = queue.Queue()
        with grpc.InferenceServerClient(server.grpc_url) as client:
            client.start_stream(callback=lambda result, error, to=seen: to.put(error))
            client.async_stream_infer(BLS, given)
            assert reason in str(seen.get(timeout=30))


@pytest.mark.parametrize("model", [BLS, ACCUMULATING])
def test_a_draft_of_nothing_and_inputs_without_dimensions_are_taken(
    server: ModelServer, model: str
) -> None:
    inputs = {
        "num_draft_tokens": (np.int32(0), "INT32"),
        "return_log_probs": (False, "BOOL"),
        "temperature": (np.float32(1), "FP32"),
    }
    [answer] = send(server.grpc_url, [Ask(ENGLISH, model=model, inputs=inputs)])
    assert answer.error is None
    assert answer.ids


@pytest.mark.parametrize("model", [BLS, ACCUMULATING])
def test_what_is_asked_for_is_passed_back(server: ModelServer, model: str) -> None:
    if "0.11.0" in server.repository.name:
        pytest.skip("this release has no outputs that the reference backend fills on demand")
    asked = {"return_num_input_tokens": (True, "BOOL"), "return_num_output_tokens": (True, "BOOL")}
    [answer] = send(server.grpc_url, [Ask(ENGLISH, model=model, inputs=asked, stream=False)])
    assert answer.last.as_numpy("num_output_tokens").tolist() == [[len(answer.ids)]]
    assert answer.last.as_numpy("num_input_tokens").tolist() == [
        [len(TOKENIZER.encode(ENGLISH).ids)]
    ]


def test_stop_words_are_passed_on(server: ModelServer) -> None:
    stop = {"stop_words": (b" hundred", "BYTES")}
    answers = send(
        server.grpc_url,
        [Ask(ENGLISH, model=model, inputs=stop) for model in ("ensemble", BLS, ACCUMULATING)],
    )
    assert answers[0].text.endswith(" hundred")
    assert answers[1].text == answers[2].pieces[-1].decode() == answers[0].text


def gauge(server: ModelServer, label: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics") as response:
        lines = response.read().decode().splitlines()
    [value] = [line.split()[-1] for line in lines if f'"{label}"' in line and line[0] != "#"]
    return float(value)


def wait_until(server: ModelServer, label: str, is_so: Callable[[float], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so(gauge(server, label)):
        assert time.monotonic() < deadline, label
        time.sleep(0.05)


@pytest.mark.parametrize("model", [BLS, ACCUMULATING])
@pytest.mark.parametrize("stream", [True, False])
def test_requests_that_are_cancelled_end(server: ModelServer, model: str, stream: bool) -> None:
    rounds, most = 6, 256  # all of them would take rounds * most steps
    before = gauge(server, "iteration_counter")
    client = grpc.InferenceServerClient(server.grpc_url)
    client.start_stream(callback=lambda result, error: None)
    endless = {"end_id": (np.int32(-1), "INT32")}
    for number in range(rounds * INSTANCES):
        ask = Ask(ENGLISH, most, stream=stream, inputs=endless)
        client.async_stream_infer(model, tensors(ask), request_id=f"cancelled-{number}")
    wait_until(server, "active", lambda active: active == INSTANCES)
    client.stop_stream(cancel_requests=True)
    client.close()
    wait_until(server, "active", lambda active: active == 0)
    assert gauge(server, "iteration_counter") - before < rounds * most / 2
    [after] = send(server.grpc_url, [Ask(CHINESE, model=model)])
    assert after.pieces[-1].decode() == decoded(after.ids) or after.text == decoded(after.ids)

"""The rendered ensemble on real Triton, seen from outside through the stock client."""

import json
import os
import queue
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import tritonclient.grpc as grpc
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llm_perf import Concurrency, Endpoint, load_workload, measure
from llm_perf.errors import UserError
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

EXAMPLE = Path(__file__).parents[2] / "examples/number-words"
TOKENIZER = Tokenizer.from_file(str(EXAMPLE / "model/tokenizer.json"))
PROMPTS = [
    json.loads(line)["text_input"]
    for line in (EXAMPLE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
][:16]
ENGLISH = next(text for text in PROMPTS if "in words" in text)
CHINESE = next(text for text in PROMPTS if "in words" not in text)
BOTH = (ENGLISH, CHINESE)
MAX_TOKENS = 48


@dataclass
class Answer:
    pieces: list[bytes] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    error: str | None = None
    final: bool = False
    last: Any = None

    @property
    def text(self) -> str:
        return "".join(piece.decode("utf-8") for piece in self.pieces)  # each piece on its own


@dataclass
class Ask:
    text: str
    max_tokens: int = MAX_TOKENS
    request_id: str | None = None
    stream: bool = True
    model: str = "ensemble"
    inputs: dict[str, tuple[Any, str]] = field(default_factory=dict)


def tensors(ask: Ask) -> list[grpc.InferInput]:
    values = {
        "text_input": (np.array([[ask.text.encode()]], object), "BYTES"),
        "max_tokens": (np.array([[ask.max_tokens]], np.int32), "INT32"),
        "stream": (np.array([[ask.stream]]), "BOOL"),
        **{name: (np.array([[value]]), kind) for name, (value, kind) in ask.inputs.items()},
    }
    made = []
    for name, (value, kind) in values.items():
        tensor = grpc.InferInput(name, value.shape, kind)
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


def send(url: str, asks: list[Ask]) -> list[Answer]:
    """All at once, one gRPC stream per request: the same id twice cannot be told apart in one."""
    answers = [Answer() for _ in asks]
    arrived: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    clients = []
    for index, ask in enumerate(asks):
        client = grpc.InferenceServerClient(url)
        clients.append(client)
        client.start_stream(
            callback=lambda result, error, index=index: arrived.put((index, result, error))
        )
        client.async_stream_infer(
            ask.model,
            tensors(ask),
            request_id=f"request-{index}" if ask.request_id is None else ask.request_id,
            enable_empty_final_response=True,
        )
    while not all(answer.final for answer in answers):
        index, result, error = arrived.get(timeout=30)
        answer = answers[index]
        if error is not None:
            answer.error, answer.final = str(error), True
            continue
        answer.final = result.get_response().parameters["triton_final_response"].bool_param
        if result.get_response().outputs:
            answer.last = result
            answer.pieces.append(result.as_numpy("text_output").ravel()[0])
            answer.ids += result.as_numpy("output_ids").ravel().tolist()
            answer.lengths.append(int(result.as_numpy("sequence_length").ravel()[0]))
    for client in clients:
        client.stop_stream()
        client.close()
    return answers


def decoded(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids))


@pytest.fixture(scope="module")
def truth() -> Callable[[str, int], list[int]]:
    """What transformers' plain generate answers, without the end token."""
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE / "model", dtype=torch.float32)

    def answer(text: str, most: int = MAX_TOKENS) -> list[int]:
        ids = torch.tensor([TOKENIZER.encode(text).ids])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )[0, ids.shape[1] :].tolist()
        ids_said: list[int] = said[:-1] if said[-1] == model.config.eos_token_id else said
        return ids_said

    return answer


def test_streams_side_by_side_say_what_the_model_says(
    streaming: ModelServer, truth: Callable[..., list[int]]
) -> None:
    answers = send(streaming.grpc_url, [Ask(text) for text in PROMPTS])
    for text, answer in zip(PROMPTS, answers, strict=True):
        assert answer.error is None
        assert answer.ids == truth(text)
        assert sum(answer.lengths) == len(answer.ids)
        assert answer.text == decoded(answer.ids)
        assert "\ufffd" not in answer.text
        assert answer.lengths == [1] * len(answer.ids) + [0]  # the end token leaves an empty chunk


def test_every_prompt_s_streamed_text_is_the_decoding_of_its_ids(streaming: ModelServer) -> None:
    lines = (EXAMPLE / "prompts.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 200
    right = 0
    for start in range(0, len(rows), 16):
        batch = rows[start : start + 16]
        answers = send(streaming.grpc_url, [Ask(row["text_input"]) for row in batch])
        for row, answer in zip(batch, answers, strict=True):
            assert answer.error is None
            assert answer.text == decoded(answer.ids)
            right += answer.text.strip() == row["reference"]
    assert right >= 0.99 * len(rows)


@pytest.mark.parametrize("request_id", ["", "the same for all"])
def test_requests_without_an_id_of_their_own_keep_their_characters(
    streaming: ModelServer, request_id: str
) -> None:
    [alone] = send(streaming.grpc_url, [Ask(CHINESE, request_id=request_id)])
    assert alone.text == decoded(alone.ids)
    answers = send(streaming.grpc_url, [Ask(text, request_id=request_id) for text in PROMPTS[:8]])
    for answer in answers:
        assert answer.text == decoded(answer.ids)
        assert "\ufffd" not in answer.text


def test_a_limit_amid_a_character_flushes_what_the_tokenizer_would_say(
    streaming: ModelServer, truth: Callable[..., list[int]]
) -> None:
    answers = send(streaming.grpc_url, [Ask(CHINESE, most) for most in range(1, 9)])
    for most, answer in enumerate(answers, start=1):
        assert answer.ids == truth(CHINESE, most)
        assert answer.text == decoded(answer.ids)
    assert any(answer.text.endswith("\ufffd") for answer in answers)


def test_a_request_that_is_wrong_fails_alone_and_says_why(
    streaming: ModelServer, truth: Callable[..., list[int]]
) -> None:
    wrong = {
        "257 tokens, more than max_input_len 256": Ask("7" * 257),
        "num_return_sequences is 1 in a stream": Ask(
            ENGLISH, inputs={"num_return_sequences": (np.int32(2), "INT32")}
        ),
        "does not support beam_width 2": Ask(
            ENGLISH, inputs={"beam_width": (np.int32(2), "INT32")}
        ),
        "does not support return_log_probs": Ask(
            ENGLISH, inputs={"return_log_probs": (True, "BOOL")}
        ),
    }
    asks = [ask for bad in wrong.values() for ask in (Ask(CHINESE), bad)]
    answers = send(streaming.grpc_url, asks)
    for good in answers[::2]:
        assert good.ids == truth(CHINESE)
        assert good.text == decoded(good.ids)
    for reason, bad in zip(wrong, answers[1::2], strict=True):
        assert reason in str(bad.error)
        assert bad.pieces == []


def test_streams_that_are_refused_or_cut_leave_nothing_behind(streaming: ModelServer) -> None:
    """Without an id a stream that postprocessing still waits for would mix with the next one."""
    refused = Ask("7" * 257, request_id="")
    cut = Ask(ENGLISH, 2**31 - 1, request_id="", inputs={"end_id": (np.int32(-1), "INT32")})
    for ask in (refused, cut):
        send(streaming.grpc_url, [ask])
        for most in range(1, 9):
            [answer] = send(streaming.grpc_url, [Ask(CHINESE, most, request_id="")])
            assert answer.text == decoded(answer.ids)


def test_without_streaming_one_response_has_the_whole_answer(
    streaming: ModelServer, truth: Callable[..., list[int]]
) -> None:
    exclude = {"exclude_input_in_output": (True, "BOOL")}
    counts = {
        "return_num_input_tokens": (True, "BOOL"),
        "return_num_output_tokens": (True, "BOOL"),
    }
    whole, bare = send(
        streaming.grpc_url,
        [Ask(CHINESE, stream=False), Ask(CHINESE, stream=False, inputs={**exclude, **counts})],
    )
    answer = truth(CHINESE)
    assert whole.ids == TOKENIZER.encode(CHINESE).ids + answer
    assert whole.pieces == [decoded(whole.ids).encode()]
    assert bare.ids == answer
    assert bare.pieces == [decoded(answer).encode()]
    assert bare.last.as_numpy("num_input_tokens").tolist() == [[len(TOKENIZER.encode(CHINESE).ids)]]
    assert bare.last.as_numpy("num_output_tokens").tolist() == [[len(answer)]]


@pytest.mark.parametrize(("protocol", "port"), [("grpc", "grpc_url"), ("http", "http_url")])
def test_a_prompt_is_counted_by_the_server_where_the_client_has_no_tokenizer(
    streaming: ModelServer, tmp_path: Path, protocol: str, port: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"text_input": ENGLISH}) + "\n")
    endpoint = Endpoint(getattr(streaming, port), protocol, "ensemble")
    known, unknown = (
        measure(endpoint, load_workload(file, tokenizer, MAX_TOKENS), Concurrency(1)).records[0]
        for tokenizer in (EXAMPLE / "model", None)
    )
    assert unknown.ok and unknown.input_tokens == known.input_tokens == len(
        TOKENIZER.encode(ENGLISH)
    )
    assert unknown.output_tokens == known.output_tokens == known.tokenizer_tokens


@pytest.mark.parametrize(("protocol", "port"), [("grpc", "grpc_url"), ("http", "http_url")])
def test_one_question_is_answered_on_the_screen(
    streaming: ModelServer, truth: Callable[[str, int], list[int]], protocol: str, port: str
) -> None:
    command = [sys.executable, "-m", "llm_perf", "ask", CHINESE, "-i", protocol]
    command += ["-u", getattr(streaming, port), "--max-tokens", str(MAX_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ids = truth(CHINESE, MAX_TOKENS)
    assert done.stdout.rstrip("\n") == decoded(ids)
    assert f"{len(TOKENIZER.encode(CHINESE))} in (server's count)" in done.stderr
    assert "TTFT" in done.stderr and "out (server's count)" in done.stderr


def test_a_stop_word_ends_a_stream(streaming: ModelServer) -> None:
    [full, stopped] = send(
        streaming.grpc_url,
        [Ask(ENGLISH), Ask(ENGLISH, inputs={"stop_words": (b" hundred", "BYTES")})],
    )
    assert " hundred" in full.text
    assert stopped.text == full.text[: full.text.index(" hundred") + len(" hundred")]


def test_a_bad_word_does_not_come_up(streaming: ModelServer) -> None:
    bad = {"bad_words": (b" hundred", "BYTES")}
    [full, without] = send(streaming.grpc_url, [Ask(ENGLISH), Ask(ENGLISH, inputs=bad)])
    assert " hundred" in full.text
    assert without.text
    assert " hundred" not in without.text


def test_sampling_is_honoured_and_hangs_on_the_seed(streaming: ModelServer) -> None:
    def sampled(seed: int) -> Ask:
        inputs = {
            "temperature": (np.float32(5.0), "FP32"),
            "top_p": (np.float32(0.9), "FP32"),
            "seed": (np.uint64(seed), "UINT64"),
            "end_id": (np.int32(-1), "INT32"),
        }
        return Ask(ENGLISH, 16, inputs=inputs)

    one, two, again = send(streaming.grpc_url, [sampled(1), sampled(2), sampled(1)])
    assert one.ids == again.ids != two.ids
    assert len(one.ids) == 16


def post(
    server: ModelServer, path: str, body: dict[str, Any], model: str = "ensemble"
) -> Iterator[Any]:
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/{model}/{path}", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        for line in response:
            if line.strip():
                yield json.loads(line.removeprefix(b"data: "))


def test_curl_s_way_streams_too(streaming: ModelServer, truth: Callable[..., list[int]]) -> None:
    body = {"text_input": CHINESE, "max_tokens": MAX_TOKENS, "stream": True}
    events = list(post(streaming, "generate_stream", body))
    assert "".join(event["text_output"] for event in events) == decoded(truth(CHINESE))
    assert len(events) == len(truth(CHINESE)) + 1


def test_one_answer_per_request_over_http_and_grpc(
    unary: ModelServer, truth: Callable[..., list[int]]
) -> None:
    client = grpc.InferenceServerClient(unary.grpc_url)
    for text in BOTH:
        [said] = post(unary, "generate", {"text_input": text, "max_tokens": MAX_TOKENS})
        assert said["text_output"] == decoded(truth(text))
        result = client.infer("ensemble", tensors(Ask(text, stream=False)))
        assert result.as_numpy("output_ids").ravel().tolist() == truth(text)
        assert result.as_numpy("text_output").ravel()[0].decode() == decoded(truth(text))
    client.close()


def test_one_answer_per_request_also_says_what_is_wrong(unary: ModelServer) -> None:
    long = {"text_input": "7" * 257, "max_tokens": 8}
    other = {"text_input": ENGLISH, "max_tokens": 8, "exclude_input_in_output": False}
    for body, reason in ((long, "max_input_len 256"), (other, "exclude_input_in_output: false")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            list(post(unary, "generate", body))
        assert reason in caught.value.read().decode()
        caught.value.close()


def test_a_second_server_on_the_same_port_is_refused(streaming: ModelServer) -> None:
    ports = streaming.ports
    again = ModelServer(streaming.repository, ports=ports, log_file=streaming.log_file)
    with pytest.raises(UserError, match=rf"port {ports.grpc} is already in use.*--grpc-port"):
        again.__enter__()


def test_a_model_that_does_not_load_ends_with_triton_s_own_words(
    tmp_path: Path, triton_cache: Path, repository: Callable[..., Path]
) -> None:
    broken = repository("1.2")
    config = broken / "preprocessing/config.pbtxt"
    config.write_text(config.read_text().replace(str(EXAMPLE / "model"), "/nowhere"))
    server = ModelServer(
        broken, ports=free_ports(), log_file=tmp_path / "log", cache_dir=triton_cache
    )
    with server, pytest.raises(UserError, match=r"exit code \d+ .*no tokenizer_dir /nowhere"):
        server.wait_ready(60)


def test_a_killed_launcher_leaves_no_process_and_no_shared_memory(
    tmp_path: Path, triton_cache: Path, repository: Callable[..., Path]
) -> None:
    folder = repository("1.2")
    launcher = """
import sys, time
from pathlib import Path
from trtllm_deploy.serve.launch import ModelServer
from trtllm_deploy.machine.ports import free_ports
repository, log, cache = map(Path, sys.argv[1:])
with ModelServer(repository, ports=free_ports(), log_file=log, cache_dir=cache) as server:
    server.wait_ready(60)
    print("ready", flush=True)
    time.sleep(600)
"""
    arguments = [str(folder), str(tmp_path / "log"), str(triton_cache)]
    with subprocess.Popen(
        [sys.executable, "-c", launcher, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        family = psutil.Process(process.pid).children(recursive=True)
        regions = list(Path("/dev/shm").glob(f"trtllm-deploy-*-{process.pid}-*"))
        os.kill(process.pid, 9)
        process.wait()
    assert len(family) >= 5  # the supervisor, Triton, three stubs
    assert regions
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    deadline = time.monotonic() + 5
    while any(region.exists() for region in regions) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(region.exists() for region in regions)

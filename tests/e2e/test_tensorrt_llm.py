"""The reference backend's tensorrt_llm, asked directly through the stock client."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
from transformers import AutoModelForCausalLM
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import InferenceServerException

from llm_perf import Concurrency, Conditions, Endpoint, load_workload, measure
from llm_perf.api import Planned, Target
from tests.e2e.conftest import MODEL
from tests.e2e.gauges import series
from trtllm_deploy.reference.iterations import read_iterations
from trtllm_deploy.serve.launch import ModelServer
from trtllm_deploy.study.evidence import EngineLimits, read_evidence

PROMPT = [5, 40, 17, 9, 33, 21]
NEW = 12


@pytest.fixture(scope="module")
def clients() -> Iterator[Callable[[ModelServer], Any]]:
    made: dict[str, Any] = {}

    def client(server: ModelServer) -> Any:
        return made.setdefault(server.grpc_url, grpc.InferenceServerClient(server.grpc_url))

    yield client
    for each in made.values():
        each.close()


@pytest.fixture(scope="module")
def truth() -> Callable[..., list[int]]:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    def answer(ids: list[int], most: int = NEW) -> list[int]:
        prompt = torch.tensor([ids])
        said = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=None,
        )
        return list(said[0, len(ids) :].tolist())

    return answer


def tensors(prompts: list[list[int]], **inputs: Any) -> list[Any]:
    """Prompts padded to the longest, and each other input once for every prompt."""
    rows, longest = len(prompts), max(map(len, prompts))
    padded = [ids + [0] * (longest - len(ids)) for ids in prompts]
    values: dict[str, Any] = {
        "input_ids": np.array(padded, np.int32),
        "input_lengths": np.array([[len(ids)] for ids in prompts], np.int32),
        "request_output_len": np.full((rows, 1), NEW, np.int32),
    }
    for name, value in inputs.items():
        kind = {bool: bool, int: np.int32, float: np.float32}.get(type(value))
        values[name] = value if kind is None else np.full((rows, 1), value, kind)
    values = {name: array for name, array in values.items() if array is not None}
    names = {"bool": "BOOL", "int32": "INT32", "float32": "FP32", "uint64": "UINT64"}
    made = []
    for name, array in values.items():
        tensor = grpc.InferInput(name, array.shape, names[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def outputs(result: Any) -> dict[str, Any]:
    names = [output.name for output in result.get_response().outputs]
    return {name: result.as_numpy(name) for name in names}


def stream(
    client: Any, prompts: list[list[int]], wanted: list[str] | None = None, **inputs: Any
) -> list[Any]:
    """Every response, an error last if there is one."""
    seen: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: seen.put((result, error)))
    asked = None if wanted is None else [grpc.InferRequestedOutput(name) for name in wanted]
    client.async_stream_infer(
        "tensorrt_llm",
        tensors(prompts, **inputs),
        outputs=asked,
        enable_empty_final_response=True,
    )
    responses, open_prompts = [], len(prompts)
    while open_prompts:
        result, error = seen.get(timeout=30)
        responses.append(outputs(result) if error is None else str(error))
        final = error or result.get_response().parameters["triton_final_response"].bool_param
        open_prompts = 0 if final else open_prompts
    client.stop_stream()
    return responses


def test_each_prompt_of_a_batch_is_answered_on_its_own(
    streaming: ModelServer, clients: Callable[..., Any], truth: Callable[..., list[int]]
) -> None:
    prompts = [PROMPT, PROMPT[:2], PROMPT[3:]]
    for streams in (True, False):
        said: dict[int, list[int]] = {row: [] for row in range(3)}
        for response in stream(clients(streaming), prompts, streaming=streams):
            said[int(response["batch_index"])] += response["output_ids"].ravel().tolist()
        for row, ids in enumerate(prompts):
            assert said[row] == ([] if streams else ids) + truth(ids)


def test_a_prompt_of_a_batch_that_is_wrong_fails_alone(
    streaming: ModelServer, clients: Callable[..., Any], truth: Callable[..., list[int]]
) -> None:
    client, seen = clients(streaming), queue.Queue[tuple[Any, Any]]()
    client.start_stream(callback=lambda result, error: seen.put((result, error)))
    client.async_stream_infer("tensorrt_llm", tensors([[3] * 257, PROMPT], streaming=False))
    (refused, good) = sorted((seen.get(timeout=30) for _ in range(2)), key=lambda r: r[1] is None)
    client.stop_stream()
    assert "257 tokens, more than max_input_len 256" in str(refused[1])
    assert outputs(good[0])["output_ids"].ravel().tolist() == PROMPT + truth(PROMPT)


def test_every_output_that_is_asked_for_comes_in_its_declared_type(
    streaming: ModelServer, clients: Callable[..., Any]
) -> None:
    client = clients(streaming)
    config = client.get_model_config("tensorrt_llm").config
    kinds = {output.name: DataType.Name(output.data_type) for output in config.output}
    dims = {output.name: len(output.dims) for output in config.output}
    always = {"output_ids", "sequence_length", "cum_log_probs", "output_log_probs"}
    always |= {"context_logits", "generation_logits", "acceptance_rate"}
    for response in stream(client, [PROMPT], streaming=True):
        assert response.keys() == always
        for name in ("cum_log_probs", "output_log_probs", "context_logits", "generation_logits"):
            assert response[name].dtype == np.float32
            assert response[name].size == 1
            assert response[name].ndim == dims[name] + 1
    counts: dict[str, Any] = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    asked = stream(client, [PROMPT], streaming=True, return_perf_metrics=True, **counts)
    missing = {"batch_index", "sequence_index", "context_phase_params"}
    for response in asked:
        assert response.keys() == kinds.keys() - missing
        for name, array in response.items():
            assert f"TYPE_{array.dtype.name.upper().replace('FLOAT', 'FP')}" == kinds[name]
    assert sum(int(response["num_output_tokens"]) for response in asked) == NEW
    few = stream(client, [PROMPT], ["output_ids", "sequence_length"], streaming=True)
    assert all(response.keys() == {"output_ids", "sequence_length"} for response in few)


def test_token_counts_follow_output_ids(
    streaming: ModelServer, clients: Callable[..., Any]
) -> None:
    counts: dict[str, Any] = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    for excludes, expected in ((True, NEW), (False, NEW + len(PROMPT))):
        [response] = stream(
            clients(streaming), [PROMPT], exclude_input_in_output=excludes, **counts
        )
        assert int(response["num_input_tokens"]) == len(PROMPT)
        assert int(response["num_output_tokens"]) == response["output_ids"].size == expected


def test_a_prompt_that_was_seen_before_reuses_its_pages(
    streaming: ModelServer, clients: Callable[..., Any]
) -> None:
    prompt = [(7 * i) % 200 + 10 for i in range(100)]
    first, again = (
        stream(clients(streaming), [prompt], streaming=True, return_perf_metrics=True)[-1]
        for _ in range(2)
    )
    pages = {"new": "kv_cache_alloc_new_blocks", "reused": "kv_cache_reused_blocks"}
    assert [int(first[name]) for name in pages.values()] == [4, 0]  # pages of 32 tokens
    assert [int(again[name]) for name in pages.values()] == [1, 3]
    order = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [int(again[f"{name}_time_ns"]) for name in order]
    assert times == sorted(times)
    assert times[-1] < time.monotonic_ns()  # the clock of TensorRT-LLM's steady_clock


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"beam_width": 2}, "does not support beam_width 2, only 1"),
        ({"return_context_logits": True}, "does not support return_context_logits True, only 0"),
        ({"return_log_probs": True}, "does not support return_log_probs True, only 0"),
        ({"runtime_top_p_decay": 0.5}, "does not support runtime_top_p_decay"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be more than 0 and finite, not 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, not -1"),
        ({"input_lengths": 7}, "input_lengths is 7, but input_ids has 6 tokens"),
        ({"input_lengths": -2}, "input_lengths is -2, but input_ids has 6 tokens"),
        ({"input_ids": None}, "input_ids is missing"),
        ({"embedding_bias": np.ones((1, 400), np.float32)}, "400 entries, the vocabulary 320"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(
    streaming: ModelServer, clients: Callable[..., Any], inputs: dict[str, Any], reason: str
) -> None:
    [answer] = stream(clients(streaming), [PROMPT], streaming=True, **inputs)
    assert reason in str(answer)


def test_sampling_inputs_reach_the_choice(
    streaming: ModelServer, clients: Callable[..., Any], truth: Callable[..., list[int]]
) -> None:
    plain = truth(PROMPT)
    bias = np.zeros((1, 320), np.float32)
    bias[0, 7] = 1e6
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"embedding_bias": bias}, [7] * NEW),
        ({"embedding_bias": bias * 0}, plain),
        ({"stop_words_list": np.array([[plain[:3], [3, -1, -1]]], np.int32)}, plain[:3]),
    ]
    for inputs, expected in cases:
        responses = stream(clients(streaming), [PROMPT], streaming=True, **inputs)
        assert [i for each in responses for i in each["output_ids"].ravel().tolist()] == expected
    without_first: dict[str, Any] = {"bad_words_list": np.array([[[plain[0]], [1]]], np.int32)}
    penalties = ("frequency_penalty", "presence_penalty", "repetition_penalty")
    for inputs in (without_first, *({name: 1e6} for name in penalties)):
        [response] = stream(clients(streaming), [PROMPT], exclude_input_in_output=True, **inputs)
        said = response["output_ids"].ravel().tolist()
        assert len(said) == NEW
        assert said != plain
        assert plain[0] not in said or inputs is not without_first


def test_without_decoupled_mode_requests_are_in_flight_together(
    unary: ModelServer, clients: Callable[..., Any], truth: Callable[..., list[int]]
) -> None:
    client, ended = clients(unary), []

    def ask(most: int) -> list[int]:
        result = client.infer("tensorrt_llm", tensors([PROMPT], request_output_len=most))
        ended.append(most)
        return list(result.as_numpy("output_ids").ravel().tolist())

    with ThreadPoolExecutor(5) as pool:
        long = pool.submit(ask, 250)
        time.sleep(0.02)
        short = [pool.submit(ask, 4) for _ in range(3)]
        assert [each.result() for each in short] == [truth(PROMPT, 4)] * 3
        assert long.result() == truth(PROMPT, 250)
    assert ended[-1] == 250  # who came later did not wait for it


@pytest.mark.parametrize(
    ("prompts", "inputs"), [([PROMPT], {"streaming": True}), ([PROMPT, PROMPT], {})]
)
def test_without_decoupled_mode_there_are_neither_streams_nor_batches(
    unary: ModelServer, clients: Callable[..., Any], prompts: Any, inputs: Any
) -> None:
    with pytest.raises(InferenceServerException, match="need decoupled_mode"):
        clients(unary).infer("tensorrt_llm", tensors(prompts, **inputs))


@pytest.mark.parametrize("mode", ["streaming", "unary"])
def test_a_call_that_is_cancelled_ends_at_once(mode: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(mode)
    before = series(server)["nv_trt_llm_general_metrics", "iteration_counter"]
    client, gone = grpc.InferenceServerClient(server.grpc_url), threading.Event()
    inputs = tensors([PROMPT], request_output_len=300)

    def receive(result: Any, error: Any) -> None:
        gone.set()

    if mode == "streaming":
        client.start_stream(callback=receive)
        client.async_stream_infer("tensorrt_llm", inputs)
        time.sleep(0.05)
        client.stop_stream(cancel_requests=True)
    else:
        call = client.async_infer("tensorrt_llm", inputs, callback=receive)
        time.sleep(0.05)
        call.cancel()
    assert gone.wait(30)
    client.close()
    deadline = time.monotonic() + 30
    while series(server)["nv_trt_llm_request_metrics", "active"] > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    after = series(server)
    assert after["nv_trt_llm_kv_cache_block_metrics", "used"] == 0
    assert after["nv_trt_llm_general_metrics", "iteration_counter"] - before < 300


def test_the_engine_s_statistics_are_tensorrt_llm_s_series(streaming: ModelServer) -> None:
    families: dict[str, set[str]] = {}
    for family, name in series(streaming):
        families.setdefault(family.removeprefix("nv_trt_llm_"), set()).add(name)
    assert families == {
        "request_metrics": {"active", "max", "scheduled", "context", "waiting"},
        "runtime_memory_metrics": {"cpu", "gpu", "pinned"},
        "kv_cache_block_metrics": {"max", "free", "used", "tokens_per", "reused", "fraction"},
        "inflight_batcher_metrics": {
            *("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests")
        },
        "general_metrics": {"timestamp", "iteration_counter"},
        "iteration_metrics": {  # ours: TensorRT-LLM's backend doesn't count them
            *("total", "waited", "at_max_batch_size", "at_max_num_tokens", "at_kv_cache"),
            "at_static_batch",
        },
    }


def test_the_engine_s_iterations_are_written_for_explain(
    streaming: ModelServer, clients: Callable[..., Any]
) -> None:
    file = streaming.log_file.with_suffix(".iterations")
    before = series(streaming)["nv_trt_llm_iteration_metrics", "total"]
    stream(clients(streaming), [PROMPT], streaming=True)
    deadline = time.monotonic() + 30
    while (now := series(streaming)["nv_trt_llm_iteration_metrics", "total"]) < before + NEW:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while len(steps := read_iterations(file.read_text(), str(file))) < now:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [(step.context_tokens, step.generation) for step in steps[-NEW + 1 :]] == [(0, 1)] * (
        NEW - 1
    )


@pytest.mark.parametrize(("in_flight", "binds"), [(24, "batch"), (2, None)])
def test_what_holds_requests_back_is_seen_in_a_measurement(
    streaming: ModelServer, in_flight: int, binds: str | None
) -> None:
    prompts = load_workload(MODEL.parent / "prompts.jsonl", MODEL, max_tokens=24).part(0, 48)
    load = Concurrency(in_flight)
    target = Target("e2e", streaming.grpc_url, "grpc", "ensemble")
    conditions = Conditions(
        server_metrics_url=streaming.metrics_url, server_metrics_every_s=0.1, workers=1
    )
    run = measure(Endpoint(*streaming.asked), prompts, load, conditions)
    measured = Planned(target, load, prompts).measured(run)
    evidence = read_evidence([measured], EngineLimits(8, 1024), 12, 24)
    assert evidence.binds == binds, evidence
    assert evidence.queue_ms is not None and evidence.looks

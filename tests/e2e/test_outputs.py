"""Whatever outputs a client asks for, it gets those, and the same answer."""

import itertools
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from tests.e2e.test_triton import ENGLISH, Ask, tensors
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

NAMES = ("text_output", "output_ids", "sequence_length", "cum_log_probs", "context_logits")
SUBSETS = [
    names for size in range(1, len(NAMES) + 1) for names in itertools.combinations(NAMES, size)
]


@pytest.fixture(scope="module", params=["0.11.0", "1.2"])
def server(
    request: pytest.FixtureRequest, repository: Callable[..., Path], triton_cache: Path
) -> Iterator[ModelServer]:
    folder = repository(request.param, decoupled_mode=True, exclude_input_in_output=True)
    log = folder.with_name(f"{folder.name}.log")
    with ModelServer(folder, ports=free_ports(), log_file=log, cache_dir=triton_cache) as running:
        running.wait_ready(60)
        yield running


def answers(url: str, asks: list[tuple[str, bool, tuple[str, ...]]]) -> list[dict[str, list[Any]]]:
    """Each (model, streams, outputs) in turn, over one gRPC stream; the parts that came by name."""
    arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = grpc.InferenceServerClient(url)
    client.start_stream(callback=lambda result, error: arrived.put((result, error)))
    found = []
    for number, (model, streams, names) in enumerate(asks):
        client.async_stream_infer(
            model,
            tensors(Ask(ENGLISH, stream=streams)),
            request_id=f"subset-{number}",
            outputs=[grpc.InferRequestedOutput(name) for name in names] or None,
            enable_empty_final_response=True,
        )
        parts: dict[str, list[Any]] = {}
        while True:
            result, error = arrived.get(timeout=30)
            assert error is None, (names, error)
            for output in result.get_response().outputs:
                parts.setdefault(output.name, []).append(result.as_numpy(output.name))
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        found.append(parts)
    client.stop_stream()
    client.close()
    return found


def whole(name: str, parts: list[Any]) -> Any:
    if name == "text_output":
        return b"".join(part.ravel()[0] for part in parts)
    if name == "output_ids":
        return np.concatenate([part.ravel() for part in parts]).tolist()
    return sum(int(part.ravel()[0]) for part in parts) if name == "sequence_length" else None


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_every_subset_of_the_outputs_comes_with_the_same_answer(
    server: ModelServer, model: str, streams: bool
) -> None:
    everything, *subsets = answers(
        server.grpc_url, [(model, streams, ()), *((model, streams, names) for names in SUBSETS)]
    )
    assert whole("text_output", everything["text_output"])
    for names, parts in zip(SUBSETS, subsets, strict=True):
        assert set(parts) == set(names), names
        for name in names:
            assert whole(name, parts[name]) == whole(name, everything[name]), (names, name)


def test_a_client_that_asks_as_nvidia_s_end_to_end_client_does_gets_its_text(
    server: ModelServer,
) -> None:
    """Its ``end_to_end_grpc_client.py`` names ``text_output`` alone, unless log-probs are on."""
    [parts] = answers(server.grpc_url, [("ensemble", True, ("text_output",))])
    assert set(parts) == {"text_output"}
    assert len(parts["text_output"]) > 1

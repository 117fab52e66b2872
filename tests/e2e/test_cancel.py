"""Clients that go away: what they held is free at once, and nobody else notices."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.gauges import series
from tests.processes import command_line
from trtllm_deploy.serve.launch import ModelServer

LEAVING, STAYING = 200, 50
LONG = 240  # tokens; far more than a stream that ends early gets
PROMPTS = [
    line.split('"')[3]
    for line in (Path(__file__).parents[2] / "examples/number-words/prompts.jsonl")
    .read_text("utf-8")
    .splitlines()
]


def _tensors(**values: Any) -> list[Any]:
    kinds = {bool: ("BOOL", bool), int: ("INT32", np.int32), str: ("BYTES", object)}
    made = []
    for name, value in values.items():
        triton_type, numpy_type = kinds[type(value)]
        said = value.encode() if isinstance(value, str) else value
        tensor = grpc.InferInput(name, [1, 1], triton_type)
        tensor.set_data_from_numpy(np.array([[said]], numpy_type))
        made.append(tensor)
    return made


@dataclass
class Seen:
    ids: list[int] = field(default_factory=list)
    error: str | None = None


class Streams:
    """Streams of the ensemble, each by its own request id."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def ask(
        self, request_id: str, text: str, most: int, *, leave_after: int = -1, way: str = ""
    ) -> Seen:
        """Read a stream to its end, or cancel or stop it after so many responses."""
        inputs = _tensors(text_input=text, max_tokens=most, stream=True, end_id=-1)

        async def one() -> AsyncIterator[dict[str, Any]]:
            outputs = [grpc.InferRequestedOutput("text_output")]
            outputs += [grpc.InferRequestedOutput("output_ids")]
            yield {
                "model_name": "ensemble",
                "inputs": inputs,
                "outputs": outputs,
                "request_id": request_id,
                "enable_empty_final_response": True,
            }
            await over.wait()

        over, seen, responses = asyncio.Event(), Seen(), 0
        stream = self.client.stream_infer(one())
        async for result, error in stream:
            if error is not None:
                seen.error = str(error)
                break
            if responses == leave_after and way == "cancel":
                stream.cancel()
                break
            if responses == leave_after:
                await self.stop(request_id)
            responses += 1
            if result.get_response().outputs:
                seen.ids += result.as_numpy("output_ids").ravel().tolist()
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        over.set()
        return seen

    async def stop(self, request_id: str) -> Any:
        """TensorRT-LLM's way to end a request: another with its id that says stop."""
        inputs = _tensors(input_lengths=1, request_output_len=1, stop=True)
        ids = grpc.InferInput("input_ids", [1, 1], "INT32")
        ids.set_data_from_numpy(np.zeros((1, 1), np.int32))

        async def one() -> AsyncIterator[dict[str, Any]]:
            yield {
                "model_name": "tensorrt_llm",
                "inputs": [ids, *inputs],
                "request_id": request_id,
                "enable_empty_final_response": True,
            }

        return await anext(aiter(self.client.stream_infer(one())))


@asynccontextmanager
async def connected(server: ModelServer) -> AsyncIterator[Streams]:
    client = grpc.InferenceServerClient(server.grpc_url)
    try:
        yield Streams(client)
    finally:
        await client.close()


def gauges(server: ModelServer) -> dict[str, float]:
    return {name: value for (_, name), value in series(server).items()}


def wait_until_idle(server: ModelServer) -> None:
    deadline = time.monotonic() + 60
    while True:
        now = gauges(server)
        if now["active"] == now["used"] == 0:
            return
        assert time.monotonic() < deadline, f"still {now}"
        time.sleep(0.1)


def memory(server: ModelServer) -> int:
    """Bytes of Triton's and its stubs' own; files and shared memory apart."""
    processes = psutil.Process().children(recursive=True)
    seen = [
        each.memory_info()
        for each in processes
        if str(server.repository) in str(command_line(each))
    ]
    assert len(seen) > 3
    return sum(each.rss - each.shared for each in seen)


async def leave_and_stay(server: ModelServer, leaving: int, staying: int, seed: int) -> list[Seen]:
    """Some cancel after a random while; what the others saw."""
    chance = random.Random(seed)
    async with connected(server) as streams:

        async def leave(index: int) -> None:
            await asyncio.sleep(chance.random() * leaving / 50)
            way, after = ("stop", "cancel")[index % 4 > 0], chance.randrange(1, 30)
            name, text = f"leaving-{seed}-{index}", chance.choice(PROMPTS)
            seen = await streams.ask(name, text, LONG, leave_after=after, way=way)
            assert seen.error is None

        async def stay(index: int) -> Seen:
            await asyncio.sleep(chance.random() * leaving / 50)
            return await streams.ask(f"staying-{seed}-{index}", PROMPTS[index], 32)

        gone = [leave(index) for index in range(leaving)]
        answers = asyncio.gather(*(stay(index) for index in range(staying)))
        await asyncio.gather(*gone)
        return list(await answers)


def test_who_leaves_frees_what_he_held_and_changes_nobody_s_answer(streaming: ModelServer) -> None:
    alone = asyncio.run(leave_and_stay(streaming, 0, STAYING, seed=0))
    assert [len(answer.ids) for answer in alone] == [32] * STAYING
    sizes = []
    for seed in (1, 2):
        assert asyncio.run(leave_and_stay(streaming, LEAVING, STAYING, seed)) == alone
        wait_until_idle(streaming)
        sizes.append(memory(streaming))
    assert sizes[1] - sizes[0] < 20 * 2**20


@pytest.mark.parametrize("way", ["cancel", "stop"])
def test_a_stream_that_is_ended_stops_generating(streaming: ModelServer, way: str) -> None:
    async def end_one() -> None:
        async with connected(streaming) as streams:
            seen = await streams.ask("ended", PROMPTS[0], LONG, leave_after=2, way=way)
            assert len(seen.ids) < LONG

    wait_until_idle(streaming)
    before = gauges(streaming)["iteration_counter"]
    asyncio.run(end_one())
    wait_until_idle(streaming)
    assert gauges(streaming)["iteration_counter"] - before < LONG


def test_a_stop_without_a_request_id_is_an_error(streaming: ModelServer) -> None:
    async def stop() -> Any:
        async with connected(streaming) as streams:
            return await streams.stop("")

    result, error = asyncio.run(stop())
    assert result is None
    assert isinstance(error, InferenceServerException)
    assert "request id" in str(error)

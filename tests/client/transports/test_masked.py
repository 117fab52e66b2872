"""Keys that servers repeat: in no file, on no screen, over any transport."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint, connect
from llm_perf.transports.masked import Mask
from llm_perf.workload.workload import Prompt
from tests.client.listening import listening
from tests.client.scripted import ScriptedTriton

KEY = 'sk-"s3cret/7f'  # a quote, which JSON escapes, and a slash, which URLs do
HEADERS = (("authorization", f"Bearer {KEY}"), ("x-team", "red"), ("x-api-key", "other-s3cret"))


@given(before=st.text(max_size=20), after=st.text(max_size=20), cut=st.integers(0, 60))
def test_a_secret_is_masked_however_it_is_spelt_and_cut(before: str, after: str, cut: int) -> None:
    mask = Mask(HEADERS)
    said = f"{before} {json.dumps({'key': KEY})} sk-%22s3cret/7f {after}"
    for text in (mask.hide_in(said), mask.hide_in(said[:cut]), mask.hide_in(said[:cut] + "'")):
        assert "s3cret" not in text and "sk-%" not in text
        assert len(mask.hide(said.encode())) == len(said.encode())


def test_what_is_no_secret_stays() -> None:
    said = "the red team is no sk"
    assert Mask(HEADERS).hide_in(said) == said
    assert not Mask((("x-team", "a long enough value"), ("authorization", "x"))).secrets


class Echo(ScriptedTriton):
    def _stream(self, requests, context):  # type: ignore[no-untyped-def]
        said = dict(context.invocation_metadata())["authorization"]
        next(requests)  # gRPC's library calls it an internal error where its own write comes after
        context.abort(grpc.StatusCode.UNAUTHENTICATED, f"bad key: {said}")
        yield


@pytest.mark.parametrize("transport", ["grpc", "grpc.aio", "tritonclient"])
def test_a_key_that_triton_repeats_is_masked(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-s3cret-7f")

    async def run(url: str) -> Exchange:
        to = Endpoint(url, "grpc", "ensemble", transport, api_key_env="SOME_KEY")
        opened = await connect(to, 1)
        seen = Exchange("id")
        await opened.stream(opened.dialect.request(Prompt(0, "p", 1, 9), "id"), seen, 5)
        opened.read(seen)
        await opened.close()
        return seen

    with Echo(lambda prompt: []) as server:
        seen = asyncio.run(run(server.url))
    assert seen.failure == (Status.ERROR, f"UNAUTHENTICATED: bad key: Bearer {'*' * 12}")


ANSWERS = {
    "a refusal": b"HTTP/1.1 401 No\r\ncontent-length: %d\r\n\r\n%b",
    "an event": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"content-length: %d\r\n\r\ndata: %b\n\n",
    "an answer": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b",
}


@pytest.mark.parametrize("how", ANSWERS)
def test_a_key_that_an_openai_style_server_repeats_reaches_no_file_and_no_screen(
    how: str, tmp_path: Path
) -> None:
    text = "x" * 150 + f" incorrect API key provided: {KEY}, Bearer {KEY}"
    body = json.dumps({"error": {"message": text}}).encode()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text_input": "a"}\n' * 3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            told = head.partition(b"content-length: ")[2].split(b"\r\n")[0]
            await reader.readexactly(int(told))
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            else:
                size = len(body) + (8 if how == "an event" else 0)
                writer.write(ANSWERS[how] % (size, body))

    async def run() -> tuple[bytes, bytes]:
        async with listening(serve) as url:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "llm_perf", "-u", f"http://{url}", "-i", "openai"),
                *("-m", "m", "--input-data", str(prompts), "--api-key-env", "SOME_KEY"),
                *("--tokenizer-path", str(Path("examples/number-words/model").resolve())),
                env={**os.environ, "SOME_KEY": KEY},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            return await process.communicate()

    said = b"".join(asyncio.run(run()))
    assert b"****" in said and b"s3cret" not in said, said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"****" in path.read_bytes() for path in written)
    for path in written:
        assert b"s3cret" not in path.read_bytes()


def test_a_redirect_before_the_load_is_told_and_not_followed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        there = b"http://127.0.0.1:1/v2?token=s3cret"
        writer.write(b"HTTP/1.1 301 Gone\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % there)

    async def run() -> None:
        async with listening(serve) as url:
            await connect(Endpoint(url, "openai", "m"), 1)

    with pytest.raises(UserError, match=r"redirects to http://127.0.0.1:1/v2; give that") as caught:
        asyncio.run(run())
    assert "s3cret" not in str(caught.value)

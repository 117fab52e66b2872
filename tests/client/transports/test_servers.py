"""HTTP over real TCP: uvicorn, aiohttp's server, and servers that do one odd thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from aiohttp import web

from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint
from llm_perf.transports.events import cut_events
from llm_perf.transports.http import HttpTransport, Server
from llm_perf.transports.openai import OpenAI
from tests.client.listening import LOOPS, Serve, listening, read_request

EVENTS = [
    b'data: {"choices": [{"text": "one"}]}\n\n',
    b'data: {"choices": [{"text": " two", "finish_reason": "stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answers in the way that the path names."""
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    headers = [(b"content-type", b"text/event-stream")]
    if scope["path"].endswith("/length"):
        headers.append((b"content-length", b"%d" % len(b"".join(EVENTS))))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for event in EVENTS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0.002)
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def by_uvicorn(http: str) -> AsyncIterator[str]:
    config = uvicorn.Config(_asgi, port=0, http=http, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve(None))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def _aiohttp(request: web.Request) -> web.StreamResponse:
    await request.read()
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    if request.path.endswith("/length"):
        answer.content_length = len(b"".join(EVENTS))
    if request.path.endswith("/close"):
        answer.force_close()
    await answer.prepare(request)
    for event in EVENTS:
        await answer.write(event)
        await asyncio.sleep(0.002)
    return answer


@asynccontextmanager
async def by_aiohttp(_: str) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", _aiohttp)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][0] + f":{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


SERVERS: dict[str, Callable[[str], AbstractAsyncContextManager[str]]] = {
    "h11": by_uvicorn,
    "httptools": by_uvicorn,
    "aiohttp": by_aiohttp,
}


async def ask_often(url: str, path: str, body: bytes = b"{}") -> tuple[list[Exchange], int]:
    """Four requests, two at a time; what was seen, and the connections left open."""
    server = Server(Endpoint(url, "openai", "m"))
    transport = HttpTransport(server, path, OpenAI("m", chat=False))
    seen = [Exchange(str(number)) for number in range(4)]
    for pair in (seen[:2], seen[2:]):
        await asyncio.gather(*(transport.stream(body, each, 10.0) for each in pair))
        for each in pair:
            transport.read(each)
    free = sum(each.free for each in server.pool._idle)
    await transport.close()
    return seen, free


@pytest.mark.parametrize("path", ["/chunked", "/length", "/close"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_servers_events_come_one_by_one_over_connections_that_are_kept(
    name: str, path: str
) -> None:
    async def run() -> tuple[list[Exchange], int]:
        async with SERVERS[name](name) as url:
            return await ask_often(url, path)

    seen, free = asyncio.run(run())
    for each in seen:
        assert each.failure is None
        assert [data for _, data in each.messages] == [
            data for _, data in cut_events([(0, b"".join(EVENTS))], whole=True)
        ]
        stamps = [at for at, _ in each.messages]
        assert each.sent_ns < stamps[0] < stamps[1] < stamps[2] <= each.end_ns
    assert free == (0 if path == "/close" and name == "aiohttp" else 2)


@pytest.mark.parametrize("name", SERVERS)
def test_a_body_of_megabytes_arrives(name: str) -> None:
    async def run() -> tuple[list[Exchange], int]:
        async with SERVERS[name](name) as url:
            return await ask_often(url, "/", b'"%b"' % (b"q" * 5_000_000))

    seen, _ = asyncio.run(run())
    assert [each.failure for each in seen] == [None] * 4


def ask_raw(
    serve: Serve, body: bytes = b"{}", times: int = 1, limit_s: float = 10, loop: str = "asyncio"
) -> list[Exchange]:
    """Requests one after the other."""

    async def run() -> list[Exchange]:
        async with listening(serve) as url:
            transport = HttpTransport(
                Server(Endpoint(url, "openai", "m")), "/", OpenAI("m", chat=False)
            )
            seen = [Exchange(str(number)) for number in range(times)]
            for each in seen:
                await transport.stream(body, each, limit_s)
                transport.read(each)
            await transport.close()
        return seen

    answered: list[Exchange] = LOOPS[loop](run())
    return answered


DONE = b'{"choices": [{"text": "a", "finish_reason": "stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(DONE), DONE)


def test_a_word_before_the_answer_is_none() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await read_request(reader)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nx: y\r\n\r\n")
            await asyncio.sleep(0.01)
            writer.write(WHOLE)

    seen = ask_raw(serve, times=2)
    assert [(each.failure, len(each.messages)) for each in seen] == [(None, 1)] * 2


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("linger_s", [0.0, 0.2])
def test_an_answer_before_the_request_is_all_sent_is_taken(linger_s: float, loop: str) -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 9\r\n\r\ntoo large")
        await writer.drain()
        await asyncio.sleep(linger_s)

    seen = ask_raw(serve, body=b"q" * 30_000_000, times=2, loop=loop)
    assert [each.failure for each in seen] == [(Status.ERROR, "HTTP 413: too large")] * 2
    assert opened == 2


@pytest.mark.parametrize("answer", [WHOLE, WHOLE.replace(b"200", b"307")])
def test_an_answer_is_the_asked_servers_own(answer: bytes) -> None:
    """A redirect is not followed: neither the prompt nor the key is another server's."""
    asked: list[bytes] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1000))
        writer.close()

    async def run() -> Exchange:
        async with listening(elsewhere) as other:
            location = b"\r\nlocation: http://%b/\r\n\r\n" % other.encode()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await read_request(reader)
                writer.write(answer.replace(b"\r\n\r\n", location, 1))

            async with listening(serve) as url:
                server = Server(Endpoint(url, "openai", "m"))
                transport = HttpTransport(server, "/", OpenAI("m", chat=False))
                seen = Exchange("id")
                await transport.stream(b"{}", seen, 5)
                transport.read(seen)
                await transport.close()
        return seen

    seen = asyncio.run(run())
    assert asked == []
    assert (seen.failure and seen.failure[1][:8]) == (None if answer == WHOLE else "HTTP 307")


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_never_answered_leaves_no_connection(loop: str) -> None:
    left: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        left.append(await reader.read())  # until the client hangs up

    (seen,) = ask_raw(serve, limit_s=0.2, loop=loop)
    assert seen.failure == (Status.TIMEOUT, "not answered within 0.2 s")
    assert 0.19e9 < seen.end_ns - seen.sent_ns < 5e9
    assert left == [b""]

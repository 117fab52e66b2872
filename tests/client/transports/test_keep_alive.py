"""Connections that the server closes between two requests, and those it closes on a request."""

from __future__ import annotations

import asyncio

import pytest

from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint
from llm_perf.transports.http import HttpTransport, Server
from llm_perf.transports.openai import OpenAI
from tests.client.listening import listening, read_request

BODY = b'{"choices": [{"text": "a", "finish_reason": "stop"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Flighty:
    """Answers ``fresh`` requests of each connection; hangs up when it has read the next one."""

    def __init__(self, fresh: int) -> None:
        self.fresh = fresh
        self.asked = 0
        self.opened = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        for number in range(self.fresh + 1):
            await read_request(reader)
            self.asked += 1
            if number < self.fresh:
                writer.write(ANSWER)


async def ask(flighty: Flighty, requests: int) -> list[Exchange]:
    async with listening(flighty.serve) as url:
        server = Server(Endpoint(url, "openai", "m"))
        transport = HttpTransport(server, "/", OpenAI("m", chat=False))
        seen = [Exchange(str(number)) for number in range(requests)]
        for each in seen:
            await transport.stream(b"{}", each, 5.0)
            transport.read(each)
        await transport.close()
    return seen


@pytest.mark.parametrize("fresh", [1, 2])
def test_a_connection_closed_while_it_idled_is_reopened(fresh: int) -> None:
    server = Flighty(fresh)
    seen = asyncio.run(ask(server, 4))
    assert [each.failure for each in seen] == [None] * 4
    assert server.opened == 4 // fresh


def test_a_server_that_hangs_up_on_a_new_connection_is_asked_once() -> None:
    server = Flighty(0)
    (seen,) = asyncio.run(ask(server, 1))
    assert seen.failure is not None and seen.failure[0] is Status.ERROR
    assert server.asked == 1

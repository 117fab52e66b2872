"""The ways to a server: TLS, and the proxies that the environment names."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint, Tls
from llm_perf.transports.http import HttpTransport, Server
from llm_perf.transports.openai import OpenAI
from tests.client.listening import LOOPS, listening, read_request

DONE = b'{"choices": [{"text": "a", "finish_reason": "stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(DONE), DONE)


class Model:
    """Answers; keeps the heads of what it was asked."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            self.heads.append(head)
            writer.write(WHOLE)


class Proxy:
    """Forwards to ``to``, whatever the name; keeps the heads that it read."""

    def __init__(self, to: str, refuses: bool = False) -> None:
        self.to = to.split(":")
        self.refuses = refuses
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.refuses:
            writer.write(b"HTTP/1.1 407 Who Are You\r\ncontent-length: 0\r\n\r\n")
            return
        theirs, ours = await asyncio.open_connection(*self.to)
        if head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\n")
        else:
            ours.write(head)

        async def pipe(one: asyncio.StreamReader, other: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await one.read(65536):
                    other.write(data)
            other.close()

        await asyncio.gather(pipe(reader, ours), pipe(theirs, writer))


async def ask(endpoint: Endpoint, times: int = 2) -> list[Exchange]:
    server = Server(endpoint)
    transport = HttpTransport(server, endpoint.target("/c"), OpenAI("m", chat=False))
    await server.pool.warm(1)
    seen = [Exchange(str(number)) for number in range(times)]
    for each in seen:
        await transport.stream(b"{}", each, 5.0)
        transport.read(each)
    await transport.close()
    return seen


def serving(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    return tls


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_needs_the_right_authority(certificate: tuple[Path, Path], loop: str) -> None:
    async def run() -> list[list[Exchange]]:
        async with listening(Model().serve, serving(certificate)) as url:
            known = Endpoint(url, "openai", "m", tls=Tls(ca=certificate[0]))
            anybody = Endpoint(f"https://{url}/v1", "openai", "m", tls=Tls(insecure=True))
            unknown = Endpoint(f"https://{url}", "openai", "m")
            return [await ask(known), await ask(anybody), await ask(unknown)]

    right, insecure, wrong = LOOPS[loop](run())
    assert [each.failure for each in right + insecure] == [None] * 4
    for each in wrong:
        assert each.failure is not None and each.failure[0] is Status.REFUSED
        assert "certificate verify failed" in each.failure[1]


def test_a_proxy_that_reads_along_is_asked_for_the_whole_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> tuple[Model, Proxy, list[Exchange]]:
        model = Model()
        async with listening(model.serve) as url:
            proxy = Proxy(url)
            async with listening(proxy.serve) as way:
                monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@{way}")
                seen = await ask(Endpoint("http://model.test:81/v1?a=b", "openai", "m"))
        return model, proxy, seen

    model, proxy, seen = asyncio.run(run())
    assert [each.failure for each in seen] == [None, None]
    first, *lines = proxy.heads[0].decode().splitlines()
    assert first == "POST http://model.test:81/v1/c?a=b HTTP/1.1"
    assert "host: model.test:81" in lines
    assert "proxy-authorization: Basic bWU6cEBzcw==" in lines
    assert len(proxy.heads) == 1 and len(model.heads) == 2  # one connection for both


@pytest.mark.parametrize("loop", LOOPS)
def test_a_proxy_is_asked_to_connect_to_a_tls_server_and_learns_no_more(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret")

    async def run() -> tuple[Model, Proxy, list[Exchange]]:
        model = Model()
        async with listening(model.serve, serving(certificate)) as url:
            proxy = Proxy(url)
            async with listening(proxy.serve) as way:
                monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass@{way}")
                base, tls = "https://model.test/v1", Tls(ca=certificate[0])
                seen = await ask(Endpoint(base, "openai", "m", tls=tls, api_key_env="SOME_KEY"))
        return model, proxy, seen

    model, proxy, seen = LOOPS[loop](run())
    assert [each.failure for each in seen] == [None, None]
    (head,) = proxy.heads
    assert head.startswith(b"CONNECT model.test:443 HTTP/1.1\r\nhost: model.test:443\r\n")
    assert b"Basic bWU6cGFzcw==" in head and b"s3cret" not in head
    assert len(model.heads) == 2
    for each in model.heads:
        assert each.startswith(b"POST /v1/c HTTP/1.1\r\nhost: model.test\r\n")
        assert b"authorization: Bearer s3cret" in each and b"proxy-" not in each


def test_a_proxy_that_refuses_is_named_without_its_password(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[Exchange]:
        proxy = Proxy("127.0.0.1:1", refuses=True)
        async with listening(proxy.serve) as way:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass@{way}")
            return await ask(Endpoint("https://model.test/v1", "openai", "m"), 1)

    (seen,) = asyncio.run(run())
    assert seen.failure is not None and seen.failure[0] is Status.REFUSED
    assert "the proxy at 127.0.0.1:" in seen.failure[1] and "HTTP 407" in seen.failure[1]
    assert "pass" not in seen.failure[1]


@pytest.mark.parametrize(
    ("url", "excepted", "through"),
    [
        ("http://model.test", "", True),
        ("http://model.test", "model.test", False),
        ("http://a.model.test:8000", ".model.test", False),
        ("http://model.test", "*", False),
        ("http://model.test", "other.test", True),
        ("127.0.0.1:8000", "", False),
        ("localhost:8000", "", False),
        ("http://[::1]:8000", "", False),
        ("https://model.test", "", False),
    ],
)
def test_who_is_reached_through_the_proxy(
    url: str, excepted: str, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:3128")
    monkeypatch.setenv("NO_PROXY", excepted)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    pool = Server(Endpoint(url, "openai", "m")).pool
    assert (pool.origin != "") == through
    note = "asked through the proxy at 127.0.0.1:3128: its time is in the figures"
    assert pool.remarks == ((note,) if through else ())


@pytest.mark.parametrize("url", ["socks5://h:1", "https://h:1", "http://h:x", "http://"])
def test_a_proxy_of_another_kind_is_refused_without_saying_its_url(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", url.replace("//", "//me:pass@"))
    with pytest.raises(UserError, match="the proxy that HTTP_PROXY names") as caught:
        Server(Endpoint("http://model.test", "openai", "m"))
    assert "pass" not in str(caught.value)

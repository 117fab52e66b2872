"""Connections to one HTTP server: opened when needed, kept, used again.

Knows the ways there: TLS, and the proxies that the environment names. What is asked and answered
is bytes.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from time import perf_counter_ns
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import (  # type: ignore[attr-defined]
    getproxies_environment,
    proxy_bypass_environment,
)

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint, Tls
from llm_perf.transports.http1 import Answer, Connection

_IDLE_NS = 3 * 10**9  # servers hang up after 5 s or more; a request must not meet that
_PATIENCE_S = 10.0
_PORTS = {"http": 80, "https": 443}


class NoConnectionError(Exception):
    """Nobody was there to be asked."""


class Pool:
    """Connections to the server of ``endpoint``; the last that became free is used first.

    Raises ``UserError`` for TLS files that can't be read and proxies of a kind that isn't spoken.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        base = urlsplit(endpoint.base)
        self.authority = base.netloc
        self._host = base.hostname or ""
        self._port = base.port or _PORTS[base.scheme]
        self._tls = _tls(endpoint.tls) if base.scheme == "https" else None
        self._proxy = _proxy(base)
        self._place = (self._host, self._port)
        if self._proxy is not None:
            self._place = (self._proxy.hostname or "", self._proxy.port or _PORTS["http"])
        self._address: tuple[str, int] | None = None
        self._idle: list[Connection] = []

    @property
    def origin(self) -> str:
        """What stands before a path in a request: a proxy that reads along wants it whole."""
        return f"http://{self.authority}" if self._proxy and self._tls is None else ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the figures should know of the way."""
        if self._proxy is None:
            return ()
        where = f"{self._proxy.hostname}:{self._proxy.port or _PORTS['http']}"
        return (f"asked through the proxy at {where}: its time is in the figures",)

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The header fields that a proxy which reads along is owed."""
        return _credentials(self._proxy) if self._proxy and self._tls is None else ()

    async def exchange(self, request: bytes, answer: Answer, timeout_s: float) -> None:
        """Ask, on a connection that idles or on a new one; how it went is in ``answer``.

        A connection that the server has closed while it idled shows when it is used: then nothing
        has come back, and a fresh one is asked.
        """
        until_ns = perf_counter_ns() + int(timeout_s * 1e9)
        seen = answer.seen
        if (idle := self._take()) is not None:
            await self._ask(idle, request, answer, timeout_s)
            if not answer.unheard:
                return
            answer.begin()
        try:
            fresh = await asyncio.wait_for(self._open(), _left_s(until_ns))
        except asyncio.TimeoutError:
            seen.end_ns = perf_counter_ns()
            seen.failure = Status.TIMEOUT, "not answered in time"
        except NoConnectionError as error:
            seen.end_ns = perf_counter_ns()
            seen.failure = Status.REFUSED, f"no connection: {error}"
        else:
            await self._ask(fresh, request, answer, _left_s(until_ns))

    async def _ask(self, on: Connection, request: bytes, answer: Answer, timeout_s: float) -> None:
        await on.exchange(request, answer, timeout_s)
        if on.free:
            self._idle.append(on)
        else:
            on.hang_up()

    async def warm(self, streams: int) -> None:
        """Open a connection for each of ``streams``, so that no request waits for one."""
        new = [
            asyncio.wait_for(self._open(), _PATIENCE_S) for _ in range(streams - len(self._idle))
        ]
        opened = await asyncio.gather(*new, return_exceptions=True)
        self._idle.extend(each for each in opened if isinstance(each, Connection))

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop().hang_up()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            stale = 0 < connection.used_ns < perf_counter_ns() - _IDLE_NS
            if connection.free and not stale:
                return connection
            connection.hang_up()
        return None

    async def _open(self) -> Connection:
        """Connect; raises ``NoConnectionError``."""
        loop = asyncio.get_running_loop()
        tls = self._tls if self._proxy is None else None
        name = self._host if tls else None
        place, self._address = self._address or self._place, None
        try:
            transport, connection = await loop.create_connection(
                Connection, *place, ssl=tls, server_hostname=name
            )
            peer = transport.get_extra_info("peername")
            if self._proxy is not None and self._tls is not None:
                connection = await self._tunnel(connection, self._proxy, self._tls)
        except (OSError, ValueError) as error:  # ValueError: a name that can't be one
            raise NoConnectionError(str(error) or type(error).__name__) from error
        self._address = peer[:2]  # names are looked up once, and again when nobody is there
        return connection

    async def _tunnel(self, to: Connection, proxy: SplitResult, tls: ssl.SSLContext) -> Connection:
        """Have the proxy connect us (RFC 9110 §9.3.6), and begin TLS; raises ``OSError``."""
        where = f"{self._host}:{self._port}" if ":" not in self._host else self.authority
        fields = (("host", where), *_credentials(proxy))
        answer = Answer(Exchange(""), tunnel=True)
        try:
            await to.exchange(request_head("CONNECT", where, fields) + b"\r\n", answer, _PATIENCE_S)
            failure = answer.seen.failure
            if failure is not None or not 200 <= answer.status < 300:
                why = f"HTTP {answer.status}" if failure is None else failure[1]
                raise ConnectionError(f"the proxy at {proxy.hostname}:{proxy.port} says: {why}")
            inner = Connection()
            loop = asyncio.get_running_loop()
            transport = await loop.start_tls(to.transport, inner, tls, server_hostname=self._host)
        except BaseException:
            to.hang_up()
            raise
        if transport is None:
            raise ConnectionError("connection lost")
        inner.connection_made(transport)
        return inner


def request_head(method: str, target: str, fields: Sequence[tuple[str, str]]) -> bytes:
    """A request's first line and fields, without the empty line that ends them."""
    lines = (f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "")
    return "\r\n".join(lines).encode()


def _left_s(until_ns: int) -> float:
    return max((until_ns - perf_counter_ns()) / 1e9, 1e-3)


def _tls(files: Tls | None) -> ssl.SSLContext:
    files = files or Tls()
    try:
        tls = ssl.create_default_context(cafile=files.ca)
        if files.cert is not None:
            tls.load_cert_chain(files.cert, files.key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"a TLS file can't be read: {error}", fix="give PEM files with --ssl-*"
        ) from error
    if files.insecure:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return tls


def _proxy(base: SplitResult) -> SplitResult | None:
    """The proxy that HTTP_PROXY or HTTPS_PROXY name, if NO_PROXY doesn't except the server.

    This machine is reached without one, as Go's net/http has it.
    """
    url = getproxies_environment().get(base.scheme)
    if not url or _here(base.hostname or "") or proxy_bypass_environment(base.netloc):
        return None
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    try:
        right = proxy.scheme == "http" and bool(proxy.hostname) and proxy.port != 0
    except ValueError:
        right = False
    if not right:
        raise UserError(
            f"the proxy that {base.scheme.upper()}_PROXY names is no http://HOST:PORT",
            fix=f"name another one, or except the server: NO_PROXY={base.hostname}",
        )
    return proxy


def _here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.removesuffix(".").endswith("localhost")


def _credentials(proxy: SplitResult) -> tuple[tuple[str, str], ...]:
    if proxy.username is None:
        return ()
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return (("proxy-authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"),)

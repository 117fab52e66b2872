"""The seam to servers: an endpoint in, a transport out that carries bytes and stamps times.

A transport moves bytes; its dialect, which is pure, writes requests before the clock starts and
reads responses after it has stopped. Nothing outside this package asks which kind it is.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from llm_perf.errors import UserError
from llm_perf.record import Chunk, Exchange
from llm_perf.workload.workload import Prompt

# protocol → transport → module; the first is the default. Imported when asked for: gRPC is slow
# to load.
_MODULES: Final[dict[str, dict[str, str]]] = {
    "grpc": {
        "grpc": "llm_perf.transports.grpc_h2",
        "tritonclient": "llm_perf.transports.libraries",
        "grpc.aio": "llm_perf.transports.libraries",
    },
    "http": {"http": "llm_perf.transports.triton_http"},
    "openai": dict.fromkeys(("completions", "chat"), "llm_perf.transports.openai"),
}
Headers = tuple[tuple[str, str], ...]
_PLACE = re.compile(r"(?P<host>[^\s/:\[\]]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_BASE = re.compile(r"https?://[^\s/?#\\]+(/[^\s?#]*)?(\?[^\s#]*)?")
SECRET: Final = re.compile(
    r"key|token|secret|passw|signature|credential|auth|cookie|^sig$", re.IGNORECASE
)  # in the name of a header or of a URL's parameter
_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: who is trusted (the system's when ``None``), and who we are.

    ``insecure``: anybody is trusted.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, what it speaks there, and which of its models is meant.

    ``url`` is HOST:PORT; over HTTP it may be a base like ``https://host/v1?api-version=2``, under
    whose path is asked and whose query goes along. ``headers`` go with every request (gRPC:
    metadata); ``api_key_env`` names the environment variable of the key. Of OpenAI-style requests
    ``max_tokens_field`` is the limit's name, and ``stream_options`` (which asks for usage) may be
    left out.
    """

    url: str
    protocol: str
    model: str
    transport: str | None = None
    headers: Headers = ()
    tls: Tls | None = None
    api_key_env: str | None = None
    max_tokens_field: str = "max_tokens"
    stream_options: bool = True

    def __post_init__(self) -> None:
        """Check the place, the protocol and the transport; raises ``UserError``."""
        if self.protocol not in _MODULES:
            known = ", ".join(_MODULES)
            raise UserError(f"unknown protocol {self.protocol!r}", fix=f"use one of: {known}")
        if "@" in self.url.partition("?")[0] or any(
            SECRET.search(each.partition("=")[0])
            for each in re.split("[?&;]", self.url.partition("?")[2])
        ):
            raise UserError(
                "the server's URL holds a user name, a password or a key",
                fix="leave it out; give a key with --api-key-env, or a header",
            )
        if not _is_place(self.url) and (self.protocol == "grpc" or not _is_base(self.url)):
            raise UserError(f"{self.url!r} is no HOST:PORT", fix="write it like localhost:8001")
        if self.transport is not None and self.transport not in _MODULES[self.protocol]:
            raise UserError(
                f"unknown transport {self.transport!r} for {self.protocol}",
                fix=f"use one of: {', '.join(_MODULES[self.protocol])}",
            )
        if self.tls is not None and self.transport == "grpc":
            raise UserError("the transport grpc is plaintext", fix="use --transport tritonclient")
        if self.tls is not None and self.url.startswith("http://"):
            raise UserError(f"{self.url} is without TLS", fix="write https://, or drop the flags")
        if self.tls is not None and self.tls.insecure and self.protocol == "grpc":
            raise UserError("gRPC always looks who answers", fix="give --ssl-ca, not --insecure")

    @property
    def chosen(self) -> str:
        """The transport in use: the one asked for, else the protocol's default."""
        if self.transport is None and self.protocol == "grpc" and self.tls is not None:
            return "tritonclient"
        return self.transport or next(iter(_MODULES[self.protocol]))

    @property
    def base(self) -> str:
        """Where HTTP paths begin, without a slash at the end."""
        if _BASE.fullmatch(self.url):
            return self.url.partition("?")[0].rstrip("/")
        return f"{'http' if self.tls is None else 'https'}://{self.url}"

    def target(self, path: str, *, root: bool = False) -> str:
        """What to ask for: a path under the base, with the base's query.

        ``root``: beside an API's ``/v1``, not under it.
        """
        before = urlsplit(self.base).path
        _, mark, query = self.url.partition("?")
        return (before.removesuffix("/v1") if root else before) + path + mark + query


def _is_place(url: str) -> bool:
    place = _PLACE.fullmatch(url)
    return place is not None and 0 < int(place["port"]) < 65536


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(_BASE.fullmatch(url) and parts.hostname) and parts.port != 0
    except ValueError:  # of a port, or brackets
        return False


def extra_headers(endpoint: Endpoint) -> Headers:
    """The user's headers, and the key from the environment as a bearer token; names in lower case.

    Raises ``UserError`` when the variable isn't set, or a header holds what none can.
    """
    headers = tuple((name.lower(), value) for name, value in endpoint.headers)
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise UserError(
                f"{name!r} is no header, or its value holds a line end",
                fix="write it like 'x-team: a'",
            )
    if endpoint.api_key_env is None:
        return headers
    key = os.environ.get(endpoint.api_key_env)
    if not key:
        raise UserError(f"the environment variable {endpoint.api_key_env} is not set")
    if not _VALUE.fullmatch(key):
        raise UserError(f"the key in {endpoint.api_key_env} holds a line end", fix="take it out")
    return (*headers, ("authorization", f"Bearer {key}"))


class Dialect(Protocol):
    """How requests are written and responses read. Pure; no network, no clock."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the figures should know of how it was asked."""
        ...

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Serialize one request; raises ``UserError`` for what this server can't be asked."""
        ...

    def parse(self, message: bytes) -> Chunk:
        """Read one message of a response stream; never raises."""
        ...


class Transport(Protocol):
    """An open, warm connection."""

    @property
    def dialect(self) -> Dialect:
        """What this server understands."""
        ...

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """Send, and note each piece's time and bytes in ``seen`` until the stream ends.

        Fills ``sent_ns``, ``messages``, ``end_ns`` and ``failure``; a failure never raises.
        """
        ...

    def read(self, seen: Exchange) -> None:
        """Make whole messages of the pieces of a stream that has ended; to be called once.

        It may find that what came is no answer, which is a ``failure`` then; what nobody worked
        on is known before.
        """
        ...

    def so_far(self, seen: Exchange) -> Sequence[bytes]:
        """The messages that have come of a stream that has not ended yet."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


def no_model(endpoint: Endpoint, known: Mapping[str, object]) -> UserError:
    """The error for a model that isn't served; ``known`` are names, and why one is not ready."""
    where = endpoint.url if endpoint.protocol == "grpc" else endpoint.base
    if endpoint.model in known:
        return UserError(
            f"model {endpoint.model!r} at {where} is not ready: {known[endpoint.model]}",
            fix="wait until it is loaded, or see the server's log",
        )
    return UserError(
        f"the server at {where} has no model {endpoint.model!r}",
        fix=f"it has: {', '.join(sorted(known))}; choose one with -m"
        if known
        else "choose another with -m; the server doesn't tell which it has",
    )


async def connect(
    endpoint: Endpoint,
    streams: int,
    defaults: Mapping[str, int] | None = None,
    trial: Prompt | None = None,
) -> Transport:
    """Connect and warm up for ``streams`` requests at once.

    ``defaults`` are sampling parameters (``end_id``, ``pad_id``) for prompts that leave them out,
    sent where the server takes them. ``trial`` asks for all that the prompts of a run do: a server
    that may refuse some of it is tried with it, for one token of another text.
    Raises ``UserError`` when nothing answers there, or the model is unknown or unfit.
    """
    from llm_perf.transports.masked import Mask

    module = importlib.import_module(_MODULES[endpoint.protocol][endpoint.chosen])
    mask = Mask(extra_headers(endpoint))
    try:
        transport: Transport = await module.connect(endpoint, streams, defaults or {}, trial)
    except UserError as error:
        raise UserError(mask.hide_in(str(error))) from error
    return transport

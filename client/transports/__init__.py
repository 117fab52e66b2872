"""The seam to servers: an endpoint in, a transport out that carries bytes and stamps times.

A transport moves bytes; its dialect, which is pure, writes requests before the clock starts and
reads responses after it has stopped. Nothing outside this package asks which kind it is.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

from client.errors import UserError
from client.record import Chunk, Exchange
from client.workload import Prompt

_MODULES = {"grpc": "client.transports.grpc_aio"}  # imported when asked for: gRPC loads slowly
PROTOCOLS = tuple(_MODULES)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, what it speaks there, and which of its models is meant."""

    url: str
    protocol: str
    model: str

    def __post_init__(self) -> None:
        """Check ``HOST:PORT`` and the protocol; raises ``UserError``."""
        host, colon, port = self.url.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        right = bool(colon and bare) and not set("/[] ") & set(bare)
        right = right and (":" not in bare or bare is not host)  # IPv6 wants its brackets
        right = right and port.isascii() and port.isdigit() and 0 < int(port) < 65536
        if not right:
            raise UserError(f"{self.url!r} is no HOST:PORT", fix="write it like localhost:8001")
        if self.protocol not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise UserError(f"unknown protocol {self.protocol!r}", fix=f"use one of: {known}")


class Dialect(Protocol):
    """How requests are written and responses read. Pure; no network, no clock."""

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Serialize one request."""
        ...

    def parse(self, message: bytes) -> Chunk:
        """Read one message of a response stream."""
        ...


class Transport(Protocol):
    """An open, warm connection."""

    @property
    def dialect(self) -> Dialect:
        """What this server understands."""
        ...

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """Send, and note each message's time and bytes in ``seen`` until the stream ends.

        Fills ``sent_ns``, ``messages``, ``end_ns`` and ``failure``; a failure never raises.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


async def connect(endpoint: Endpoint, streams: int) -> Transport:
    """Connect and warm up for ``streams`` requests at once.

    Raises ``UserError`` when nothing answers there, or the model is unknown or unfit.
    """
    module = importlib.import_module(_MODULES[endpoint.protocol])
    transport: Transport = await module.connect(endpoint, streams)
    return transport

"""Ports that stay a test's own while nobody listens there."""

from __future__ import annotations

import socket
import weakref


def own_port(owner: object) -> int:
    """A port of 127.0.0.1 that no other server is given for as long as ``owner`` lives.

    Bound and not listening, so connections are refused; who is to listen there sets SO_REUSEPORT,
    as gRPC does by itself. A port that a server freed may be the next server's at any time, and
    what a test expects to be refused would be answered by another test's.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    weakref.finalize(owner, held.close)
    return int(held.getsockname()[1])

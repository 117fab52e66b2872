"""Our secrets in what a server says: masked before anybody keeps or shows it.

Servers and gateways repeat keys in their refusals ("incorrect API key: …"). Stars take the place of
as many bytes, so that what frames them stays right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from llm_perf.transports import SECRET, Headers

_SHORTEST = 6  # characters: what is shorter is a word of any text
_STUMP = 4
_SCHEMES: Final = ("Bearer", "Digest", "ApiKey")  # RFC 9110 §11.1; Basic is too short


class Mask:
    """Hides the values of headers whose names say that they are secret, also as JSON or URL."""

    def __init__(self, headers: Headers) -> None:
        values = [value for name, value in headers if SECRET.search(name)]
        words = {each for value in values for each in value.split()} - {*_SCHEMES}
        spelt: tuple[Callable[[str], str], ...] = (str, lambda text: json.dumps(text)[1:-1], quote)
        known = {spell(word) for word in words for spell in spelt if len(word) >= _SHORTEST}
        self.secrets = [each.encode() for each in sorted(known, key=len, reverse=True)]

    def hide(self, said: bytes) -> bytes:
        """Put stars over each secret."""
        for secret in self.secrets:
            said = said.replace(secret, b"*" * len(secret))
        return said

    def hide_in(self, said: str) -> str:
        """The same in a text that may have been cut, inside a secret too."""
        data = self.hide(said.encode(errors="surrogateescape"))
        body = data.rstrip(b"'\"")
        for secret in self.secrets:
            sizes = range(min(len(secret), len(body)), _STUMP - 1, -1)
            size = next((size for size in sizes if body.endswith(secret[:size])), 0)
            body = body[: len(body) - size] + b"*" * size
        return (body + data[len(body) :]).decode(errors="surrogateescape")

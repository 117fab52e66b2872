"""HTTP/2 as bytes (RFC 9113): frames and header blocks, written and read. Knows no connection."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

DATA, HEADERS, RST_STREAM, SETTINGS = 0x0, 0x1, 0x3, 0x4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x5, 0x6, 0x7, 0x8, 0x9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
REFUSED_STREAM, CANCEL = 0x7, 0x8
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 0x1, 0x2, 0x3, 0x4, 0x5
LARGEST: Final = 2**31 - 1  # window or stream number, §4.1 and §6.9.1
DEFAULT_WINDOW, DEFAULT_FRAME = 65_535, 16_384  # §6.5.2
UNREADABLE: Final = (ValueError, IndexError, struct.error, HPACKError)

_BLOCK_LIMIT = 2**16  # bytes of one header block
_BLOCKS_KEPT = 1000  # header blocks remembered; a trailer with an error text may come only once
_EMPTY_TABLE = b"\x20"  # RFC 7541 §6.3: table size 0, in case the server's is below the default

Fields = dict[str, str]


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """One frame of stream ``number``."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, number) + payload


def numbers(*values: int) -> bytes:
    """A payload of 32-bit numbers."""
    return struct.pack(f">{len(values)}I", *values)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values))


def unpad(payload: bytes) -> bytes:
    """What is inside a padded payload; raises ``ValueError`` when the padding is larger."""
    padding = payload[0]
    if padding >= len(payload):
        raise ValueError("more padding than frame")
    return payload[1 : len(payload) - padding]


def encode_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """A header block that leaves no trace in any table, so that it can be sent again and again."""
    block: bytes = Encoder().encode(
        [NeverIndexedHeaderTuple(name, value) for name, value in fields], huffman=False
    )
    return _EMPTY_TABLE + block


class FieldReader:
    """HEADERS and CONTINUATION payloads in, fields out.

    Our settings forbid the dynamic table; as long as a server keeps to that, equal blocks mean the
    same, and are decoded once.
    """

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=_BLOCK_LIMIT)
        self._known: dict[bytes, Fields] = {}
        self._begun: tuple[int, int, bytes] | None = None  # number, flags, block so far

    @property
    def unfinished(self) -> bool:
        """Whether a CONTINUATION, and nothing else, must follow."""
        return self._begun is not None

    def headers(self, flags: int, number: int, payload: bytes) -> tuple[Fields, int] | None:
        """Read a HEADERS payload: its fields and flags, or ``None`` before its end.

        Raises one of ``UNREADABLE``, as ``continuation`` does.
        """
        payload = unpad(payload) if flags & PADDED else payload
        return self._read(flags, number, payload[5:] if flags & PRIORITY else payload)

    def continuation(self, flags: int, number: int, payload: bytes) -> tuple[Fields, int] | None:
        """Read what continues a block; ``flags`` come out as those of its HEADERS."""
        if self._begun is None or self._begun[0] != number:
            raise ValueError("a CONTINUATION frame that continues nothing")
        _, first, block = self._begun
        return self._read(first | flags & END_HEADERS, number, block + payload)

    def _read(self, flags: int, number: int, block: bytes) -> tuple[Fields, int] | None:
        if not flags & END_HEADERS:
            if len(block) > _BLOCK_LIMIT:
                raise ValueError("a header block without end")
            self._begun = number, flags, block
            return None
        self._begun = None
        fields = self._known.get(block)
        if fields is None:
            fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
            if self._decoder.header_table.dynamic_entries:
                self._known.clear()
            elif len(self._known) < _BLOCKS_KEPT:
                self._known[block] = fields
        return fields, flags

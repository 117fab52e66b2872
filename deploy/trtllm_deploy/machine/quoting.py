"""One text as one value of another language: a shell, YAML, protobuf's text format.

Whatever stands in it, the reader gets it back; a text that the language can't hold is an error.
"""

from __future__ import annotations

import json
import re
import shlex

# What YAML 1.2 doesn't print (5.1), and what ends a line or may be lost (a byte-order mark).
_NOT_IN_YAML = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


def shell(text: str) -> str:
    """One word. Raises ValueError: it has a NUL, which no argument can hold."""
    if "\0" in text:
        raise ValueError("a NUL can't be in a shell's word")
    return shlex.quote(text)


def yaml_text(text: str) -> str:
    """A double-quoted scalar: JSON, but escaped where YAML must and JSON need not."""
    return _NOT_IN_YAML.sub(_escaped, json.dumps(text, ensure_ascii=False))


def pbtxt(text: str) -> str:
    """A string literal, control characters in octal, which every reader of the format knows."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    shown = (
        escapes.get(each) or (each if each >= " " and each != "\x7f" else f"\\{ord(each):03o}")
        for each in text
    )
    return f'"{"".join(shown)}"'


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

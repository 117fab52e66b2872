"""YAML that remembers where each key stands.

In: a file. Out: plain values, and the line of every key, so that a message about a value can
point at it. Knows nothing of what the keys mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from client.errors import UserError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A YAML document: its ``value``, and the line (from 1) of each key path in it."""

    file: Path
    value: Any
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """Line of the key at ``path``, or of the nearest key above it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def load_located(file: Path) -> Located:
    """Read one YAML document.

    Raises:
        UserError: the file can't be read, isn't YAML (with line, column), or has a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=file) from None
    except UnicodeDecodeError as error:
        raise UserError(f"isn't UTF-8 text: {error.reason}", where=file) from None
    lines: dict[KeyPath, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), lines, file)
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        column = mark.column + 1 if mark else 1
        raise UserError(
            f"not valid YAML at column {column}: {error.problem}", where=file, line=line
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=file) from None
    except ValueError as error:  # a number or a date that is none
        raise UserError(f"not valid YAML: {error}", where=file) from None
    except RecursionError:
        raise UserError("an alias refers to itself, or nests too deep", where=file) from None
    return Located(file, value, lines)


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], file: Path) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, file)
    elif isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            below = (*path, str(key.value))
            line = key.start_mark.line + 1
            if below in lines:
                raise UserError(
                    f"key '{key.value}' stands twice (first on line {lines[below]})",
                    where=file,
                    line=line,
                    fix="keep one of them",
                )
            lines[below] = line
            _walk(item, below, lines, file)

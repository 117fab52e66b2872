"""YAML that remembers where each key stands, and what is wrong with its values as one line.

In: a file, pydantic's error about its values. Out: plain values with the line of every key, and
the error with its line and the nearest key. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from llm_perf.errors import UserError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A YAML document: its ``value``, and the line (from 1) of each key path in it."""

    file: Path
    value: Any
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int | None:
        """Line of the key at ``path``, or of the nearest key above it; None without any lines."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


_MOST_BYTES = 4 * 2**20
_MOST_VALUES, _DEEPEST, _MOST_DIGITS = 20_000, 50, 40


class _Loader(yaml.SafeLoader):
    """Stops where a document is larger than any person's; aliases count as what they stand for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node with all below it. Raises MarkedYAMLError where that is too much."""
        before = self._values
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="nests too deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._values += self._sizes.get(id(node), 1)  # an alias, or a node of its own
        if self._values > _MOST_VALUES:
            what = f"it has more than {_MOST_VALUES} values, with what aliases stand for"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=mark)
        self._sizes[id(node)] = self._values - before
        _see_that_it_is_text(node)
        return node


def _see_that_it_is_text(node: yaml.Node | None) -> None:
    """What no file, shell or number can hold is wrong wherever it stands."""
    if not isinstance(node, yaml.ScalarNode):
        return
    wrong = None
    if "\0" in node.value or any("\ud800" <= each <= "\udfff" for each in node.value):
        wrong = "a text with a NUL or half a character in it"
    elif node.tag.endswith(":int") and sum(map(str.isdigit, node.value)) > _MOST_DIGITS:
        wrong = f"a number with more than {_MOST_DIGITS} digits"
    if wrong:
        raise yaml.MarkedYAMLError(problem=wrong, problem_mark=node.start_mark)


def parse_yaml(text: str) -> Any:
    """The value of one YAML document. Raises YAMLError, ValueError, RecursionError."""
    return _Loader(text).get_single_data()


def load_located(file: Path) -> Located:
    """Read one YAML document.

    Raises UserError: the file can't be read, is too large, isn't YAML (with line, column), or has a
    key twice.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(_text(file))
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), lines, file)
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = f"not valid YAML at column {column}: {error.problem}"
        raise UserError(what, where=file, line=line) from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a number or date that is none
        raise UserError(f"not valid YAML: {error}", where=file) from None
    except RecursionError:
        raise UserError("an alias refers to itself, or nests too deep", where=file) from None
    return Located(file, value, lines)


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(f"is larger than {_MOST_BYTES // 2**20} MiB", where=file)
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=file) from None
    except UnicodeDecodeError as error:
        raise UserError(f"isn't UTF-8 text: {error.reason}", where=file) from None


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


_SHOWN = 20  # keys that fit a message
_SCALARS = (str, int, float, bool, type(None))


def first_error(
    located: Located, error: ValidationError, schema: type[BaseModel], where: Path | None
) -> UserError:
    """The earliest error in values of that schema; a misspelt key before the one it then lacks."""
    found = []
    for detail in error.errors(include_url=False):
        key = _key_path(located.value, detail["loc"])
        found.append((located.line(key), key, detail))
    line, key, detail = min(found, key=lambda item: (item[2]["type"] == "missing", item[0] or 0))
    dotted = ".".join(map(str, key))
    what, fix = detail["msg"].removeprefix("Value error, "), None
    if not detail["type"].startswith("value_error"):
        what = f"{what[0].lower()}{what[1:]}, not {_shown(detail['input'])}"
    if detail["type"] in ("model_type", "dict_type"):
        what = f"must be a block of keys, not {_shown(detail['input'])}"
    elif detail["type"] == "extra_forbidden":
        siblings = _fields_at(schema, key[:-1])
        near = difflib.get_close_matches(str(key[-1]), siblings, n=1)
        what = f"unknown key {str(key[-1])!r}"
        few = len(siblings) <= _SHOWN
        known = f"known keys: {', '.join(siblings)}" if few else "docs/reference.md lists the keys"
        fix = f"did you mean {near[0]!r}?" if near else known
    elif detail["type"] == "missing":
        what = f"the key {str(detail['loc'][-1])!r} is missing"
        fix = _near_miss(located.value, key, str(detail["loc"][-1]))
    return UserError(f"{dotted}: {what}" if dotted else what, where=where, line=line, fix=fix)


def _shown(given: Any) -> str:
    if isinstance(given, _SCALARS):
        return repr(given)
    return "a block of keys" if isinstance(given, dict) else "a list"


def _near_miss(value: Any, key: KeyPath, missing: str) -> str | None:
    """A hint, where a block that takes any key has one that looks like the missing one."""
    for step in key:
        value = value[step]
    near = difflib.get_close_matches(missing, [str(each) for each in value], n=1)
    return f"did you write {near[0]!r} for it?" if near else None


def _key_path(value: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """The part of a pydantic location that is a path in the file."""
    path: list[str | int] = []
    for step in loc:
        if not isinstance(value, (dict, list)):
            break
        try:
            value = value[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            continue  # a missing key, or a name that pydantic gives to a check
        path.append(step)
    return tuple(path)


def _fields_at(schema: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that the schema allows at a path."""
    block: Any = schema
    for step in path:
        if get_origin(block) is list and not isinstance(step, int):
            (block,) = get_args(block)
        if _is_block(block):
            field = block.model_fields.get(str(step))
            block = field.annotation if field else None
        else:  # the type of what a dict or a list holds
            block = get_args(block)[-1]
        block = next((kind for kind in _flat(block) if _is_block(kind)), block)
    if get_origin(block) is list:  # one entry may stand for a list of them
        (block,) = get_args(block)
    return list(block.model_fields) if _is_block(block) else []


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _flat(kind: Any) -> Iterator[Any]:
    yield kind
    if not isinstance(kind, type) and not str(kind).startswith(("dict", "list")):
        for part in get_args(kind):
            yield from _flat(part)

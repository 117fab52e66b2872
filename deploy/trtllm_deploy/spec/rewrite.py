"""A deployment file with one value in place of others: as values to plan with, and as its text.

In: settings by name, as ``tune`` has them. Out: the file of the one cell that they make; the file's
text with as little changed as possible, comments and all. Knows nothing of why they were chosen.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from trtllm_deploy.releases.commands import Scalar
from trtllm_deploy.spec.deployment_file import DeploymentFile, checked
from trtllm_deploy.spec.located import KeyPath, Located
from trtllm_deploy.spec.values import as_list

PRECISION = "precision"


def of_values(file: DeploymentFile, values: Mapping[str, Scalar], key: KeyPath) -> DeploymentFile:
    """The file with one backend, model, pair of lengths and precision, and these values: one cell.

    What is varied and isn't among ``values`` keeps its first value. ``key`` is where the values
    stand, for errors. Raises UserError: a value that the file can't have.
    """
    given: dict[str, Any] = dict(file.located.value)
    matrix = {name: as_list(each)[:1] for name, each in given["matrix"].items()}
    lines = dict(file.located.lines)
    blocks = {name: dict(given.get(name) or {}) for name in ("build", "triton")}
    for name, value in values.items():
        line = file.located.line((*key, name))
        place: KeyPath = ("precisions",) if name == PRECISION else ("matrix", name)
        if name == PRECISION:
            given["precisions"] = [value]
        else:
            matrix[name] = [value]
        for block in blocks.values():
            block.pop(name, None)
        lines = {path: at for path, at in lines.items() if path[: len(place)] != place}
        lines[place] = line or 1
    model = next(iter(given["models"]))
    given |= {
        "models": {model: given["models"][model]},
        "precisions": as_list(given["precisions"])[:1],
        "matrix": matrix,
        **blocks,
    }
    if "backend" in given:
        given["backend"] = as_list(given["backend"])[:1]
    given.pop("tune", None)
    made = checked(Located(file.path, given, lines))
    return replace(made, variant=file.variant)


def patch(file: DeploymentFile, values: Mapping[str, Scalar]) -> str:
    """What ``patch`` takes to give the file these values; empty where it has them."""
    before = file.path.read_text(encoding="utf-8")
    after = before
    for name, value in values.items():
        after = _with(after, _places(file, name), value)
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        f"a/{file.path.name}",
        f"b/{file.path.name}",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _places(file: DeploymentFile, name: str) -> list[KeyPath]:
    """Where a value may stand, that which it gets where it doesn't last."""
    if name == PRECISION:
        return [("precisions",)]
    block = "triton" if file.is_serving(name) else "build"
    return [("matrix", name), (block, name)] if name != "max_batch_size" else [("matrix", name)]


def _with(text: str, places: list[KeyPath], value: Scalar) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for path in places:
        if (node := _find(root, path)) is not None:
            listed = path[0] in ("matrix", "precisions")
            new = f"[{_spelt(value)}]" if listed else _spelt(value)
            return text[: node.start_mark.index] + new + text[_end(node) :]
    block, name = places[-1]
    inside = _find(root, (block,))
    if isinstance(inside, yaml.MappingNode) and inside.value:
        at = inside.value[0][0].start_mark
        if inside.flow_style:
            return f"{text[: at.index]}{name}: {_spelt(value)}, {text[at.index :]}"
        return f"{text[: at.index]}{name}: {_spelt(value)}\n{' ' * at.column}{text[at.index :]}"
    if inside is not None:  # 'triton:' with nothing in it, or {}
        return (
            f"{text[: inside.start_mark.index]} {{{name}: {_spelt(value)}}}{text[_end(inside) :]}"
        )
    gap = "" if text.endswith("\n") else "\n"
    return f"{text}{gap}\n{block}:\n  {name}: {_spelt(value)}\n"


def _find(node: yaml.Node | None, path: KeyPath) -> yaml.Node | None:
    for step in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == step), None)
    return node


def _end(node: yaml.Node) -> int:
    """Where a node's own text ends; that of a block begins its next line."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _spelt(value: Scalar) -> str:
    """A value as YAML has it: texts as they are where that reads the same."""
    if isinstance(value, str) and yaml.safe_load(value) == value and value.isidentifier():
        return value
    return json.dumps(value, ensure_ascii=False)

"""Prints what trtllm-bench of a tree makes of command lines, or why it refuses them.

Its arguments: the tree, and a file with command lines, a JSON list each. The options of the tree's
click commands are executed; the commands' bodies, which import all of TensorRT-LLM, aren't.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import click

TREE, LINES = Path(sys.argv[1], "tensorrt_llm"), Path(sys.argv[2])
_HERE = ("__future__", "pathlib", "click", "click_option_group", "typing")


def constant(module: str, name: str) -> Any:
    """A name's value, where the module assigns one that is plain data; else something."""
    file = TREE.parent / f"{module.replace('.', '/')}.py"
    for node in ast.parse(file.read_text()).body if file.exists() else ():
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                keys = getattr(node.value, "keys", ())
                return {ast.literal_eval(key): None for key in keys}
    return type(name, (), {})


def command(file: str, function: str) -> click.Command:
    """The command that a decorated function of a file is."""
    names: dict[str, Any] = {}
    kept: list[ast.stmt] = []
    for node in ast.parse((TREE / file).read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt_llm"):
            names |= {each.name: constant(node.module or "", each.name) for each in node.names}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            first = getattr(node, "module", None) or node.names[0].name
            kept += [node] if first in _HERE else []
        elif isinstance(node, ast.FunctionDef) and node.name == function:
            node.body = [ast.Pass()]
            kept.append(node)
    module = ast.fix_missing_locations(ast.Module(kept, []))
    exec(compile(module, file, "exec"), names)
    found = names[function]
    assert isinstance(found, click.Command)
    return found


main = command("commands/bench.py", "main")
assert isinstance(main, click.Group)
main.add_command(command("bench/benchmark/throughput.py", "throughput_command"))
for line in LINES.read_text().splitlines():
    _, *words = json.loads(line)
    try:
        context = main.make_context("trtllm-bench", words)
        name, chosen, rest = main.resolve_command(
            context, [*getattr(context, "_protected_args", []), *context.args]
        )
        assert chosen is not None
        params = chosen.make_context(name, rest, parent=context).params
    except click.ClickException as error:
        print(json.dumps({"refused": error.format_message()}))
    else:
        print(json.dumps({**context.params, **params}, default=str))

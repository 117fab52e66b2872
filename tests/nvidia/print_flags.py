"""Prints the flags of a command of a tree, as a release file writes them: run by without_tensorrt.

Its arguments: a program, whose own argument parser is built and asked, or a module's dotted name;
and a file with command lines, to print those that the parser refuses instead.
"""

import argparse
import enum
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any


class Built(BaseException):
    """The parser is whole: the command is about to parse."""


def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
    raise Built(parser)


def kind(action: argparse.Action) -> str:
    """int, float, text, switch, or the choices."""
    if action.nargs == 0:
        return "switch"
    if action.choices:
        values = [getattr(each, "value", each) for each in action.choices if each is not None]
        return "|".join(dict.fromkeys(map(str, values)))
    cells = getattr(action.type, "__closure__", None) or ()
    for each in (action.type, *(cell.cell_contents for cell in cells)):
        if isinstance(each, type) and issubclass(each, enum.Enum):
            return "|".join(member.name.lower() for member in each)
    return {int: "int", float: "float"}.get(action.type, "text")  # type: ignore[arg-type]


def told(action: argparse.Action) -> tuple[str, str]:
    name = next(each for each in action.option_strings if each.startswith("--"))
    words = [kind(action), *(f"also {each}" for each in action.option_strings if each != name)]
    words += ["required"] if action.required else []
    words += ["list"] if action.nargs in ("+", "*") else []
    default = action.default.value if isinstance(action.default, enum.Enum) else action.default
    if action.nargs != 0 and isinstance(default, (str, int, float)) and default != "==SUPPRESS==":
        words.append(f"= {'path' if here(default) else default}")
    return name.removeprefix("--"), " ".join(words)


def here(path: Any) -> bool:
    """Whether a default is a place of the tree itself."""
    return str(path).startswith(os.environ["TREES"])


def parser(program: str) -> argparse.ArgumentParser:
    """The parser that a program builds."""
    kept = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign,assignment]
    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[method-assign,assignment]
    try:
        if program.endswith(".py"):
            sys.argv = [program]
            runpy.run_path(program, run_name="__main__")
        else:
            build = importlib.import_module(program)
            built = getattr(build, "parse_arguments", build.main)()
            raise Built(built)  # from 0.13 on it hands out the parser
    except Built as whole:
        return whole.args[0]  # type: ignore[no-any-return]
    finally:
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args = kept  # type: ignore[method-assign]
    raise SystemExit(f"{program} ended without a parser")


def main(program: str, lines: str = "") -> None:
    """Print the flags, or with a file of command lines (JSON) those that are refused."""
    built = parser(program)
    if not lines:
        flags = dict(told(each) for each in built._actions if each.dest != "help")
        print(f"\nflags: {json.dumps(flags)}")
        return
    refused = []
    for line in json.loads(Path(lines).read_text()):
        try:
            built.parse_args(line)
        except SystemExit:  # what is wrong is on stderr
            refused.append(line)
    print(f"\nrefused: {json.dumps(refused)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

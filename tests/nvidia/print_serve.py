"""Prints what trtllm-serve of a tree takes, as a release file writes it: run by without_tensorrt.

With a file of settings (JSON, a list) it prints instead what its own class says to each, null where
it takes them.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema


class _Members(dict[str, Any]):
    """Those of an enumeration that isn't here: none to mirror."""

    def __contains__(self, _: object) -> bool:
        return True


def prepare() -> None:
    """Let what is made up stand in enumerations and as types of fields."""
    made_up: Any = next(
        each for each in gc.get_objects() if isinstance(each, type) and each.__name__ == "_Anything"
    )
    made_up.__members__ = _Members()
    made_up.__get_pydantic_core_schema__ = lambda *_, **__: core_schema.any_schema()


def nested(annotation: Any) -> list[str]:
    """The fields of the one class of settings in a type; none where there are several."""
    found = [each for each in (annotation, *typing.get_args(annotation)) if inspect.isclass(each)]
    found = [each for each in found if issubclass(each, BaseModel)]
    return list(found[0].model_fields) if len(found) == 1 else []


def main(settings: str = "") -> None:
    """Print the options and flags, or what is wrong with each of the settings."""
    prepare()
    sys.argv = sys.argv[:1]
    arguments = importlib.import_module("tensorrt_llm.llmapi.llm_args")
    kind = arguments.TorchLlmArgs
    if settings:
        print(f"\nsaid: {json.dumps([said(kind, each) for each in json.loads(read(settings))])}")
        return
    groups = {name: nested(field.annotation) for name, field in kind.model_fields.items()}
    options = {"": list(groups), **{name: keys for name, keys in groups.items() if keys}}
    command = importlib.import_module("tensorrt_llm.commands.serve").serve
    flags = [word.removeprefix("--") for each in command.params for word in each.opts]
    told = {"flags": " ".join(flags), "options": {k: " ".join(v) for k, v in options.items()}}
    print(f"\nserve: {json.dumps(told)}")


def read(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


def said(kind: Any, values: dict[str, Any]) -> str | None:
    """What the class of a release says to settings; what it asks of a GPU isn't asked."""
    try:
        kind.__pydantic_validator__.validate_python({"model": "model", **values})
    except ValidationError as error:
        wrong = [each for each in error.errors() if each["type"] != "assertion_error"]
        return "; ".join(f"{each['loc']} {each['msg']}" for each in wrong) or None
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Write docs/reference.md from the program itself; with --check, only say whether it is current."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
from pydantic import BaseModel

from client.cli import command as llm_perf
from deploy.cli import command as trtllm_deploy
from deploy.precision import PRECISIONS
from deploy.schema import Deployment

TARGET = Path(__file__).with_name("reference.md")


def blocks(block: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of each key of the deployment file, depth first."""
    for name, field in block.model_fields.items():
        key = f"{path}{name}"
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if inner is not None:
            below = f"{key}.<name>." if str(field.annotation).startswith("dict") else f"{key}."
            yield from blocks(inner, below)
            continue
        kind = str(getattr(field.annotation, "__name__", field.annotation))
        kind = kind if "[" not in str(field.annotation) else str(field.annotation)
        kind = kind.replace("typing.", "").replace("Annotated", "").replace(" | None", "")
        default = "required" if field.is_required() else repr(field.default)
        default = "left out" if default == "None" else default
        yield key, _short(kind), default, field.description or ""


def _short(kind: str) -> str:
    """A type as a person would write it."""
    if kind.startswith("Literal"):
        return " or ".join(part.strip(" '") for part in kind[8:-1].split(","))
    if kind.startswith("dict"):
        return "mapping"
    for long, short in (("Optional[", ""), ("list[", "list of "), ("tuple[", "")):
        if kind.startswith(long):
            return "ISL,OSL" if "tuple" in kind else f"{short}{_short(kind[len(long) : -1])}"
    return kind.split(",")[0].strip("[] ")


def page() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Written by `docs/generate.py` from the program; `make check` sees that it is current.",
        "",
        "## Deployment file",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        *(f"| `{key}` | {' | '.join(rest)} |" for key, *rest in blocks(Deployment)),
        "",
        "## Precisions",
        "",
        "| name | calibrated | `quant_algo` | meaning |",
        "|---|---|---|---|",
        *(
            f"| {each.name} | {'yes' if each.calibrated else 'no'} | {each.quant_algo} "
            f"| {each.meaning} |"
            for each in PRECISIONS.values()
        ),
    ]
    for name, command in (
        ("trtllm-deploy", trtllm_deploy),
        *((f"trtllm-deploy {name}", each) for name, each in trtllm_deploy.commands.items()),
        ("llm_perf", llm_perf),
    ):
        context = click.Context(
            command,
            info_name=name,
            terminal_width=100,
            max_content_width=100,
            help_option_names=["-h", "--help"],
        )
        lines += ["", f"## {name} --help", "", "```", command.get_help(context), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare."""
    text = page()
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET.name} isn't current; run: python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

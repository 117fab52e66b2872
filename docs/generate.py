"""Write from the program itself what docs say of it; with --check, only say what isn't current.

That is all of reference.md, and the two outputs shown in slurm-kubernetes.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
from pydantic import BaseModel

from llm_perf.cli.main import SUBCOMMANDS, subcommand
from llm_perf.cli.main import command as llm_perf
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.cli.main import command as trtllm_deploy
from trtllm_deploy.serve.manifests import ClusterJob, kubernetes, slurm
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.spec.precision import PRECISIONS
from trtllm_deploy.spec.schema import Deployment

DOCS = Path(__file__).parent
EXIT_CODES = {
    "0": "done, or stopped as it was told to",
    "1": "a server didn't come up, ended by itself or was stopped before it was ready; a measure"
    "ment failed; `check` or `doctor` found an error; a search found no load "
    "within the limits",
    "2": "what a person can mend, said in one line; `build` and `run`: some cells aren't built",
    "3": "`--fail-if` or `--strict` says so, or `llm_perf compare` has nothing to compare",
    "130": "interrupted: Ctrl-C, SIGTERM or SIGHUP",
    "128 + N": "`serve`: signal N ended the server",
}


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
        for noise in ("typing.", "Annotated", " | None"):
            kind = kind.replace(noise, "")
        kind = kind.replace("pydantic.types.ByteSize", "size")
        default = "required" if field.is_required() else repr(field.default)
        default = "left out" if default == "None" else default
        yield key, _short(kind), default, field.description or ""
    if block.model_config.get("extra") == "allow":  # what else it takes, its docstring says
        told = " ".join((block.__doc__ or "").split("\n\n", 1)[1].split())
        yield f"{path}<name>", "list", "left out", told.replace("``", "`")


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
        "",
        "## Exit codes",
        "",
        "The same for both commands and all their subcommands.",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
    ]
    for name, command in (
        ("trtllm-deploy", trtllm_deploy),
        *((f"trtllm-deploy {name}", each) for name, each in trtllm_deploy.commands.items()),
        ("llm_perf", llm_perf),
        *((f"llm_perf {name}", subcommand(name)) for name in SUBCOMMANDS),
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


def cluster_page(text: str) -> str:
    """The page with what is rendered for its example in the blocks after the two marks."""
    file = load_deployment(DOCS.parent / "examples/two-nodes.yaml")
    spec, [cell] = file.deployment, file.cells()
    where = Path("/mnt/workspace")
    server = BACKENDS[cell.backend].cluster(spec.release, cell)
    job = ClusterJob(cell, server, where, environment=spec.env)
    outputs = {
        "slurm": slurm(job, partition="gpu", time="1-00:00:00"),
        "kubernetes": kubernetes(job, namespace="llm"),
    }
    for kind, output in outputs.items():
        block = rf"(<!-- {kind}: .*?-->\n```\w+\n).*?(```\n)"
        text = re.sub(block, lambda found, o=output: found[1] + o + found[2], text, flags=re.S)
    return text


def main() -> int:
    """Write the pages, or compare."""
    cluster = DOCS / "slurm-kubernetes.md"
    pages = {
        DOCS / "reference.md": page(),
        cluster: cluster_page(cluster.read_text(encoding="utf-8")),
    }
    stale = [
        path
        for path, text in pages.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.name} isn't current; run: python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

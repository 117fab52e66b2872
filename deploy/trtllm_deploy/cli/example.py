"""The command that gives a user without a checkout the quickstart's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from llm_perf.errors import UserError
from trtllm_deploy.machine.data import packaged

_PARTS = ("quickstart.yaml", "number-words")


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path, file_okay=False))
def example(folder: Path) -> None:
    """Write the quickstart's deployment file, model and prompts to FOLDER (default: here)."""
    for part in _PARTS:
        if (folder / part).exists():
            raise UserError("is there already", where=folder / part, fix="name an empty FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        source = packaged("examples") / part
        if source.is_dir():  # pip compiles what it installs, examples too
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / part)
        click.echo(f"wrote {folder / part}")
    click.echo(f"next: trtllm-deploy run {folder / _PARTS[0]}")


COMMANDS = (example,)

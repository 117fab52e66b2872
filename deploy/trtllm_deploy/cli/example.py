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
    """Write the quickstart's file, model and prompts to FOLDER."""
    for part in _PARTS:
        if (folder / part).exists():
            raise UserError("is there already", where=folder / part, fix="name an empty FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in _PARTS:
            _copy(packaged("examples") / part, folder / part)
    except OSError as error:  # shutil.Error has a list in place of strerror
        for part in _PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
            (folder / part).unlink(missing_ok=True)
        why = error.strerror or error.args[0][0][2]
        raise UserError(f"can't be written: {why}", where=folder, fix="name another") from error
    for part in _PARTS:
        click.echo(f"wrote {folder / part}")
    click.echo(f"next: trtllm-deploy run {folder / _PARTS[0]}")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():  # pip compiles what it installs, examples too
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


COMMANDS = (example,)

"""The command in a process of its own, and a server for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llm_perf.cli.main import command
from tests.client.scripted import FINAL, Abort, Say, ScriptedTriton


@pytest.fixture
def server() -> Iterator[ScriptedTriton]:
    def script(prompt: str) -> list[Say | Abort]:
        return [Abort()] if prompt == "bad" else [Say("one", 1), Say(" two", 2), FINAL]

    with ScriptedTriton(script) as running:
        yield running


@pytest.fixture
def words(
    server: ScriptedTriton, tokenizer_folder: Path, write_prompts: Callable[..., Path]
) -> Callable[..., list[str]]:
    def words(prompts: list[object] | None = None, **flags: object) -> list[str]:
        chosen = {
            "url": server.url,
            "protocol": "grpc",
            "model": "ensemble",
            "tokenizer_path": tokenizer_folder,
            "input_data": write_prompts(*(prompts or ["a", "b", "c"])),
            **flags,
        }
        return [
            f"--{name.replace('_', '-')}{'' if value is None else f'={value}'}"
            for name, value in chosen.items()
        ]

    return words


@pytest.fixture
def llm_perf(
    words: Callable[..., list[str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(prompts: list[object] | None = None, code: str | None = None, **flags: object):
        program = ["-c", code] if code else ["-m", "llm_perf.cli.main"]
        return subprocess.run(
            [sys.executable, *program, *words(prompts, **flags)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[3] / "client"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def sweep(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command in this process, which starts sooner; its exit code is the ``return_value``."""
    monkeypatch.chdir(tmp_path)

    def run(prompts: list[object] | None = None, **flags: object) -> Result:
        asked = words(prompts, **{"workers": 1, "export": "none", **flags})
        return CliRunner().invoke(command, asked, standalone_mode=False)

    return run

"""The command in a process of its own, and a server for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.scripted import FINAL, Abort, Say, ScriptedTriton


@pytest.fixture
def server() -> Iterator[ScriptedTriton]:
    def script(prompt: str) -> list[Say | Abort]:
        return [Abort()] if prompt == "bad" else [Say("one", 1), Say(" two", 2), FINAL]

    with ScriptedTriton(script) as running:
        yield running


@pytest.fixture
def llm_perf(
    server: ScriptedTriton,
    tmp_path: Path,
    tokenizer_folder: Path,
    write_prompts: Callable[..., Path],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(prompts: list[object] | None = None, code: str | None = None, **flags: object):
        chosen = {
            "url": server.url,
            "protocol": "grpc",
            "model": "ensemble",
            "tokenizer_path": tokenizer_folder,
            "input_data": write_prompts(*(prompts or ["a", "b", "c"])),
            **flags,
        }
        words = [
            f"--{name.replace('_', '-')}{'' if value is None else f'={value}'}"
            for name, value in chosen.items()
        ]
        program = ["-c", code] if code else ["-m", "llm_perf.cli.main"]
        return subprocess.run(
            [sys.executable, *program, *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[3] / "client"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run

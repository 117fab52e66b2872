from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from llm_perf.errors import exit_code
from trtllm_deploy.serve.launch import ServerError
from trtllm_deploy.serve.log import ServerLog


def test_the_logs_of_the_last_five_servers_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "serve.log"
    for number in range(8):
        log = ServerLog(file)
        with log.start() as stream:
            stream.write(b"%d" % number)
        rank = log.ranks / "1" / "rank.0"
        rank.mkdir(parents=True)
        (rank / "stdout").write_text(str(number))
    kept = {path.name: path.read_text() for path in tmp_path.glob("serve.log*")}
    assert kept == {"serve.log": "7", **{f"serve.log.{n}": str(7 - n) for n in range(1, 6)}}
    assert (tmp_path / "serve.ranks.5/1/rank.0/stdout").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 12


def test_a_server_that_fails_is_exit_code_1_whichever_command_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def command() -> None:
        raise ServerError("Triton ended", where=tmp_path, code=137)

    monkeypatch.setattr(sys, "argv", ["command"])
    assert exit_code(command, "command") == 1

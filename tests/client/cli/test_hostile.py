"""The command on a terminal against hostile servers: it ends, and tells the truth."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest

from tests.client import hostile_grpc, hostile_http
from tests.client.faulty import FaultyServer, Mode

TIMEOUT_S = 2.0
OURS = re.compile(r"\x1b\[[0-9;]*[mK]")  # colours, and the live line's clearing


def on_a_terminal(words: list[str], limit_s: float) -> tuple[int, str]:
    """Run a command with a terminal for its output; its exit code, and all that it wrote.

    One that hangs is killed.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    timer = Timer(limit_s, process.kill)
    timer.start()
    written = b""
    with suppress(OSError):  # what Linux says at its end
        while data := os.read(ours, 65536):
            written += data
    os.close(ours)
    code = process.wait()
    timer.cancel()
    return code, written.decode(errors="surrogateescape")


def measure(
    folder: Path, protocol: str, names: list[str], modes: Mapping[str, Mode], streams: int
) -> tuple[str, list[dict[str, object]]]:
    """Ask once in each mode; what stood on the terminal, and the requests as they ended."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text_input": name}) + "\n" for name in names))
    with FaultyServer(modes) as server:
        words = ["-u", server.url, "-i", protocol, "--input-data", str(prompts)]
        words += ["--tokenizer-path", str(Path("examples/number-words/model").resolve())]
        words += ["--request-timeout", str(TIMEOUT_S), "--concurrency", str(streams)]
        words += ["--max-tokens", "8", "--profile-export-file", str(folder / "o.json")]
        # each may take its timeout and one more for a pause; the rest is starting and writing
        limit_s = 2 * TIMEOUT_S * len(names) / streams + 60
        code, shown = on_a_terminal([sys.executable, "-m", "llm_perf", *words], limit_s)
    assert code == 1, shown  # too many failed; not killed
    lines = (folder / "o.jsonl").read_text().splitlines()
    return shown, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("protocol", "hostile", "streams"),
    [("openai", hostile_http, 8), ("grpc", hostile_grpc, 1)],
    ids=["http", "grpc"],
)
def test_hostile_servers_end_a_run_with_the_truth_and_nothing_raw(
    tmp_path: Path, protocol: str, hostile: object, streams: int
) -> None:
    table: dict[str, tuple[str, object]] = hostile.MODES  # type: ignore[attr-defined]
    names = [word for name in table for word in (name, "good")]
    modes: dict[str, Mode] = hostile.modes()  # type: ignore[attr-defined]
    shown, records = measure(tmp_path, protocol, names, modes, streams)
    assert len(records) == len(names)
    assert [
        (before, name, record["status"], record["error"])
        for before, name, record in zip(["", *names], names, records, strict=False)
        if record["status"] not in (table[name][0].split() if name in table else ["ok"])
    ] == []
    document = json.loads((tmp_path / "o.json").read_text())
    ok = sum(record["status"] == "ok" for record in records)
    assert (document["requests_ok"], document["requests_failed"]) == (ok, len(names) - ok)
    assert "Traceback" not in shown
    raw = OURS.sub("", shown)
    assert [each for each in raw if not each.isprintable() and each not in "\r\n\t"] == []

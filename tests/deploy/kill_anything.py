"""Kill random processes of builds and of served cells again and again; nothing may stay behind.

    python -m tests.deploy.kill_anything [--kills 50] [--seed 1]

Too long for every test run; ``tests/e2e/test_kill.py`` does the same with five chosen kills. Each
round starts a build of 16 cells with stand-ins, or real Triton on a cell of the reference backend,
and sends kill -9 to a random part of its processes at a random moment. After the next start that
comes up, nothing of earlier rounds may be left: no process, nothing in /dev/shm, nothing in /tmp;
and no artifact may be damaged. Counts whatever appears there, so nothing else may run meanwhile, as
under ``unshare -mpf --mount-proc`` with a tmpfs mounted over /tmp and another over /dev/shm.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import psutil
import yaml

from tests.deploy.matrix import MODEL, Matrix
from tests.processes import marked, tree, until
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.store.store import Store

COMMAND = str(Path(sys.executable).with_name("trtllm-deploy"))
MARK = "TRT_KILL_ROUND"
LONGEST_S = 12.0
CELL = "tiny_fp16_tp1_pp1_isl64_osl64_bs4"


class Served:
    """A built cell of the reference backend, to be served."""

    def __init__(self, root: Path) -> None:
        self.workspace, self._file = root / "workspace", root / "deployment.yaml"
        root.mkdir()
        spec = {
            "models": {"tiny": {"source": str(MODEL)}},
            "precisions": ["fp16"],
            "calibration": {"data": str(MODEL.parent / "calibration.jsonl")},
            "matrix": {"max_batch_size": [4], "isl_osl": ["64,64"]},
        }
        self._file.write_text(yaml.safe_dump(spec), encoding="utf-8")
        subprocess.run([COMMAND, "build", self._file, *self._where], check=True)

    @property
    def _where(self) -> tuple[str, ...]:
        return ("--workspace", str(self.workspace))

    def command(self) -> list[str]:
        flags = ("--grpc-port", "--http-port", "--metrics-port")
        ports = zip(flags, map(str, astuple(free_ports())), strict=True)
        words = [word for pair in ports for word in pair]
        return [COMMAND, "serve", str(self._file), CELL, *self._where, *words]


def start(command: list[str], number: int, log: Path, **environment: str) -> psutil.Popen:
    with log.open("wb") as out:
        return psutil.Popen(
            command,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **environment, MARK: str(number), "PYTHONUNBUFFERED": "1"},
        )


def up(process: psutil.Popen, log: Path, seconds: float) -> bool:
    """Whether it began to start or make something in time; its sweep lies behind it then."""
    until(lambda: b"start" in log.read_bytes() or process.poll() is not None, seconds)
    return b"start" in log.read_bytes()


def kill_some(process: psutil.Popen, draw: random.Random) -> list[str]:
    """kill -9 of a random part of the tree; the names of what was hit."""
    family = tree(process.pid)
    hit = draw.sample(family, draw.randint(1, len(family))) if family else []
    names = []
    for each in hit:
        with suppress(psutil.NoSuchProcess):
            names.append(each.name())
            each.kill()
    return names


def end(process: psutil.Popen, seconds: float) -> None:
    """Let it end by itself, else tell it to."""
    with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.wait(seconds)
        return
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def left_of(rounds: range) -> list[str]:
    return [
        f"round {number}: {each.pid} {each.name()}"
        for number in rounds
        for each in marked(MARK, str(number))
    ]


def entries() -> set[str]:
    """What is there, but for the one folder that torch keeps as its cache from run to run."""
    found = (path for folder in ("/tmp", "/dev/shm") for path in Path(folder).iterdir())
    return {str(path) for path in found if not path.name.startswith("torchinductor_")}


def damaged(workspace: Path) -> list[str]:
    store = Store(workspace / "store")
    return [
        str(path)
        for kind in ("fetch", "checkpoint", "engine", "repository")
        for key, path in store.folders(kind)
        if (path / "manifest.json").exists() and not store.has(kind, key)
    ]


def torment(served: Served, matrix: Matrix, log: Path, kills: int, draw: random.Random) -> None:
    """Start and kill in turn; tells what was hit, and how often it was looked."""
    usual, old = entries(), set[str]()
    hit: Counter[str] = Counter()
    looked = 0
    for number in range(kills):
        serving = bool(number % 2)
        command = served.command() if serving else matrix.command()
        process = start(command, number, log, **({} if serving else matrix.environment))
        began, delay = time.monotonic(), draw.uniform(0, LONGEST_S)
        if up(process, log, delay):
            looked += 1
            left = left_of(range(number))
            assert not left, left
            assert not old & entries(), old & entries()
        time.sleep(max(0.0, began + delay - time.monotonic()))
        old = entries() - usual
        names = kill_some(process, draw)
        hit.update(names)
        end(process, draw.uniform(0, 3))
        bad = [*damaged(served.workspace), *matrix.damaged()]
        assert not bad, bad
        kind = "serve" if serving else "build"
        print(f"{number + 1} {kind} after {delay:.1f} s: {len(names)} hit", flush=True)
    print(f"{kills} kills of {hit.total()} processes: {dict(hit)}")
    print(f"looked {looked} times after the next start: 0 damaged, 0 processes, 0 files left")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = Matrix(root / "whole", models=4)
        assert whole.run().returncode == 0
        served, matrix = Served(root / "served"), Matrix(root / "killed", models=4, seconds=6)
        usual = entries()
        torment(served, matrix, root / "log", options.kills, random.Random(options.seed))
        assert matrix.run().returncode == 0
        rounds = range(options.kills)
        assert until(lambda: not left_of(rounds)), left_of(rounds)
        assert until(lambda: entries() <= usual, 5), entries() - usual
        assert matrix.digests() == whole.digests(), "artifacts differ from those of one build"
        assert not matrix.half_made(), matrix.half_made()


if __name__ == "__main__":
    main()

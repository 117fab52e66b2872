"""A matrix of engines built with stand-ins, and builds of it as processes that can be killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from tests.processes import tree
from tests.standins import install
from trtllm_deploy.store.store import Store

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/number-words/model"
GPUS = 8


@dataclass
class Matrix:
    """A deployment file, its workspace, and the environment that the stand-ins need."""

    root: Path
    models: int = 2
    precisions: tuple[str, ...] = ("fp16", "fp8")
    batches: int = 2
    seconds: float = 0.0
    tp: int = 2
    workspace: Path = field(init=False)
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.workspace = self.root / "workspace"
        self.environment = {**os.environ, **install(self.root / "bin", "1.2", gpus=GPUS)}
        self.environment |= {
            "PATH": f"{self.root / 'bin' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("", "deploy", "client")),
            "TRT_STANDIN_CALLS": str(self.root / "calls"),
            "TRT_STANDIN_SECONDS": str(self.seconds),
        }
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        for number in range(self.models):  # weights differ, so checkpoints do
            model = self.root / f"model{number}"
            shutil.copytree(MODEL, model, dirs_exist_ok=True)
            generation = model / "generation_config.json"
            generation.write_text(json.dumps({"number": number}), encoding="utf-8")
        self.file.write_text(yaml.safe_dump(self._spec()), encoding="utf-8")

    def _spec(self) -> dict[str, Any]:
        models = [f"model{number}" for number in range(self.models)]
        return {
            "backend": "tensorrt",
            "release": "1.2",
            "models": {name: {"source": name, "tp": self.tp} for name in models},
            "precisions": list(self.precisions),
            "calibration": {"data": str(MODEL.parent / "calibration.jsonl")},
            "matrix": {"max_batch_size": [2**n for n in range(self.batches)], "isl_osl": ["64,64"]},
        }

    @property
    def file(self) -> Path:
        return self.root / "deployment.yaml"

    @property
    def cells(self) -> int:
        return self.models * len(self.precisions) * self.batches

    script: ClassVar[Path] = Path(__file__).with_name("light_build.py")
    does: ClassVar[str] = "build"

    def command(self, *more: str) -> list[str]:
        command = [sys.executable, str(self.script), self.does, str(self.file)]
        return [*command, "--workspace", str(self.workspace), *more]

    def run(self, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*more),
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*more),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def calls(self) -> Counter[str]:
        """How often each command was run with each input."""
        file = self.root / "calls"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return Counter(
            "checkpoint " + " ".join(str(line[name]) for name in ("model", "precision", "tp", "pp"))
            if line["command"] == "checkpoint"
            else line["command"]
            for line in lines
        )

    def wait_for_calls(self, count: int) -> None:
        until = time.monotonic() + 60
        while self.calls().total() < count:
            assert time.monotonic() < until, f"{self.calls()}"
            time.sleep(0.02)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file of the checkpoints and engines (the rest has paths in it)."""
        found = {}
        for kind in ("checkpoint", "engine"):
            for path in sorted((self.workspace / "store" / kind).glob("[!.]*/*")):
                if path.name != "manifest.json":
                    name = str(path.relative_to(self.workspace))
                    found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def damaged(self) -> list[str]:
        """Artifacts that have a manifest and are not what it says."""
        store = Store(self.workspace / "store")
        return [
            str(path)
            for kind in ("fetch", "checkpoint", "engine", "repository")
            for key, path in store.folders(kind)
            if (path / "manifest.json").exists() and not store.has(kind, key)
        ]

    def half_made(self) -> list[Path]:
        return list((self.workspace / "store").glob("*/.*.tmp-*"))


def kill_tree(pid: int) -> None:
    """kill -9 of a process and all below it; they are halted first, so that none gets away."""
    halted: set[int] = set()
    while new := [each for each in tree(pid) if each.pid not in halted]:
        for each in new:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGSTOP)
            halted.add(each.pid)
    for number in halted:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)

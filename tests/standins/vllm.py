"""A stand-in for ``vllm serve``: an API server, and a process of its own that is the engine.

It holds its caller to the real contract: only options that vLLM's own parser has, flags without a
value and others with one, after ``--config`` was read as vLLM reads it; a checkpoint that is there.
It is ready once its engine is, ends with 0 when that dies, as vLLM 0.32 does, and by SIGTERM ends
both. It obeys the words in ``$TRT_STANDIN/rank0``: ``deaf`` is never ready, ``fails`` logs an error
as vLLM does, with the reason that follows it, and exits with 1. What it was given is in
``$TRT_STANDIN/started0.json``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NoReturn

import yaml

HERE = Path(os.environ["TRT_STANDIN"])
DATA = Path(__file__).parents[2] / "deploy/trtllm_deploy/backends/vllm/options.yaml"
ENGINE = "import time\nwhile True: time.sleep(60)"


def refuse(what: str) -> NoReturn:
    print(f"usage: vllm serve [model_tag] [options]\nvllm serve: error: {what}", file=sys.stderr)
    sys.exit(2)


def words_of(config: dict[str, Any]) -> list[str]:
    """As FlexibleArgumentParser.load_config_file writes them."""
    words: list[str] = []
    for key, value in config.items():
        if isinstance(value, dict):
            words += [f"--{key}", json.dumps(value)]
        elif isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        elif value is not False:
            words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return words


def parse(words: list[str]) -> dict[str, list[str]]:
    known = yaml.safe_load(DATA.read_text())
    given: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if not word.startswith("--"):
            given[name].append(word)
            continue
        name = word[2:]
        flag = name.removeprefix("no-") in known["flags"]
        if not flag and name not in known["values"]:
            refuse(f"unrecognized arguments: {word}")
        given[name] = []
    for name, values in given.items():
        if (name in known["values"]) != bool(values):
            refuse(f"argument --{name}: expected {'one' if not values else 'no'} argument")
    return given


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/health", "/metrics") else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    command, model, *rest = sys.argv[1:]
    if command != "serve" or not (Path(model) / "config.json").is_file():
        refuse(f"there is no model {model}")
    given = parse(rest)
    config = yaml.safe_load(Path(given.pop("config")[0]).read_text())
    given = {**parse(words_of(config)), **given}
    order = HERE / "rank0"
    word = order.read_text() if order.is_file() else ""
    if word.startswith("fails"):
        why = word.removeprefix("fails").strip() or "RuntimeError: no engine"
        print(f"(EngineCore pid={os.getpid()}) ERROR 11-26 17:00:00 [core.py:1210] {why}")
        sys.exit(1)
    # setproctitle writes over what others could read of its environment, unless told not to
    seen = os.environ if "SPT_NOENV" in os.environ else {}
    engine = subprocess.Popen([sys.executable, "-c", ENGINE], env=seen)
    signal.signal(signal.SIGTERM, lambda *_: (engine.kill(), os._exit(0)))
    threading.Thread(target=lambda: (engine.wait(), os._exit(0)), daemon=True).start()
    if word == "deaf":
        engine.wait()
    started = {"pid": os.getpid(), "engine": engine.pid, "flags": given}
    started["environment"] = dict(os.environ)
    (HERE / "started0.json").write_text(json.dumps(started))
    HTTPServer((given["host"][0], int(given["port"][0])), Health).serve_forever()


if __name__ == "__main__":
    main()

"""The contract of a release's commands as an argument parser, and faults on demand."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_CONTRACTS = Path(__file__).resolve().parent / "contracts"
_TYPES = {"int": int, "float": float}


def parser(command: str, release: str) -> argparse.ArgumentParser:
    """A parser that accepts exactly the flags that the command of the release has."""
    contract = json.loads((_CONTRACTS / f"{command}-{release}.json").read_text(encoding="utf-8"))
    found = argparse.ArgumentParser(prog=command, allow_abbrev=False)
    for flag in contract["flags"]:
        names = flag["flag"] if isinstance(flag["flag"], list) else [flag["flag"]]
        symbolic = flag["default"] == "SUPPRESS" or "Mode." in str(flag["default"])
        default = None if symbolic else flag["default"]
        if flag["action"] == "store_true":
            found.add_argument(*names, action="store_true")
            continue
        options: dict[str, Any] = {
            "default": default,
            "type": _TYPES.get(flag["type"], str),
            "required": bool(flag.get("required")),
        }
        if isinstance(flag["choices"], list):
            options["choices"] = [each for each in flag["choices"] if each is not None]
        elif "(" in (flag["type"] or ""):
            options["choices"] = flag["type"].split("(")[1].rstrip(")").split("|")
        if "nargs" in flag:
            options["nargs"] = flag["nargs"]
            options["const"] = flag.get("const")
            if flag["nargs"] == "+":
                del options["const"]
        found.add_argument(*names, **options)
    return found


def started(command: str) -> argparse.Namespace:
    """Parse the command line, note the call, take the time that was asked for."""
    arguments = parser(command, os.environ["TRT_STANDIN_RELEASE"]).parse_args()
    calls = os.environ.get("TRT_STANDIN_CALLS")
    if calls:
        line = {
            "command": command,
            "argv": sys.argv[1:],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        with Path(calls).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    time.sleep(float(os.environ.get("TRT_STANDIN_SECONDS", "0")))
    return arguments


def fault() -> str | None:
    """The fault that this run should have."""
    wanted = os.environ.get("TRT_STANDIN_FAULT")
    return wanted if os.environ.get("TRT_STANDIN_FAULT_IN", "") in " ".join(sys.argv) else None


def fail_half_way() -> None:
    """Where a run has written half of its output: die if it should, as a real one might."""
    kind = fault()
    if kind == "die":
        print("[TRT-LLM] [E] RuntimeError: something went wrong half-way", flush=True)
        sys.exit(1)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

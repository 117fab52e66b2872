"""What a test needs besides Python: looked at by running it, missing it is a skip that says how."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

# program → how it is installed
_FROM = {
    "chromium": "Debian's chromium",
    "mpirun": "Debian's openmpi-bin",
    "openssl": "Debian's openssl",
    "prometheus": "Debian's prometheus",
    "promtool": "Debian's prometheus",
}


def runs(program: str | Path, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a program starts here: it may be there and lack a library."""
    flag = "version" if program == "openssl" else "--version"
    try:
        done = subprocess.run([program, flag], env=environment, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@cache
def lacking(program: str) -> str | None:
    """Why tests of a program are skipped, and what to install; None where it runs."""
    return None if runs(program) else f"{program} doesn't run here; install {_FROM[program]}"


def needs(program: str) -> pytest.MarkDecorator:
    """Leave out what can't be tried without a program."""
    why = lacking(program)
    return pytest.mark.skipif(why is not None, reason=why or "")


def skip_unless(program: str) -> None:
    """Skip from within a test or a fixture."""
    if (why := lacking(program)) is not None:
        pytest.skip(why)

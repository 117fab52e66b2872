"""Run one server so that it never outlives whoever started it. A script, standard library only.

    python supervise.py LAUNCHER_PID GRACE_SECONDS SHM_PREFIX COMMAND...

It starts the command in a process group of its own and waits for the first of three ends: the
command exits, standard input closes (the launcher asks for a stop), or the launcher dies, also by
``kill -9``. Then the command gets SIGTERM and GRACE_SECONDS, its whole group SIGKILL (Triton's
python stubs are in it), and the shared-memory regions that the group left behind are removed.
Exits with the command's exit code, 128 + N when signal N ended it. It knows nothing of Triton.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(launcher: int, grace: float, shm_prefix: str, command: list[str]) -> int:
    """Run the command to one of its ends; returns the exit code to leave with."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def die_with_supervisor() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_supervisor
    )

    def forward(_signal: int, _frame: FrameType | None) -> None:
        child.terminate()

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    ended = os.pidfd_open(child.pid)
    if _until_told_to_stop(launcher, ended):
        child.terminate()
        _wait_for(ended, timeout=grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    with contextlib.suppress(ChildProcessError):
        while True:  # its children are ours now
            os.waitpid(-1, 0)
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def _until_told_to_stop(launcher: int, ended: int) -> bool:
    """Wait for an end; true when it is the launcher's wish or death, not the command's own."""
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(sys.stdin.fileno(), select.POLLIN)
    try:
        waiting.register(os.pidfd_open(launcher), select.POLLIN)
    except ProcessLookupError:
        return True
    return ended not in {fd for fd, _ in waiting.poll()}


def _wait_for(ended: int, *, timeout: float) -> None:
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.poll(timeout * 1000)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))

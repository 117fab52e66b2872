"""Run one server so that it never outlives whoever started it. A script, standard library only.

    python supervise.py LAUNCHER_PID GRACE_SECONDS NAME VITAL COMMAND...

It starts the command and waits for the first of four ends: the command exits; standard input
closes or SIGTERM comes, a wish to stop; the launcher dies, also by ``kill -9``; a process called
VITAL is killed, which the command need not notice. Then the command gets SIGTERM and time, after a
wish GRACE_SECONDS, else little; what is left of it gets SIGKILL, its shared memory and its scratch
folders go. Its
processes are known by NAME in their environment, wherever they moved: mpirun puts each rank into
a process group of its own. Exits with the command's exit code, 128 + N when signal N ended it,
or so for the vital process. Where it is killed itself, a process that it forked does the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
NAME_VARIABLE = "TRTLLM_DEPLOY_SERVER"
"""In the environment of all that runs in a name."""
_SHORT_GRACE = 5.0  # seconds for a server that nobody owns, or that is broken
_TIDY_SECONDS = 10.0  # for what removes shared memory once those who used it are gone
_LOOK_SECONDS = 1.0  # between looks for a vital process that was killed
_COMM_LENGTH = 15  # of a process's name, TASK_COMM_LEN without its end
_KEPT = {"SPT_NOENV": "1"}  # else setproctitle writes a process's title over its environment
_PYTHON_BACKEND = b"libtriton_python.so"
_STATE, _PARENT, _START, _EXIT_CODE = 0, 1, 19, 49  # of proc(5)'s fields after the name


def main(launcher: int, grace: float, name: str, vital: str, command: list[str]) -> int:
    """Run the command to one of its ends; returns the exit code to leave with."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = _guard(name)
    told, tell = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(tell, b"."))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=ending_with_parent(),
        env={**os.environ, NAME_VARIABLE: name, **_KEPT},
    )
    ended = os.pidfd_open(child.pid)
    lost = _until_an_end((ended, told, sys.stdin.fileno()), launcher, name, vital)
    if child.poll() is None:
        child.terminate()
        hurry = bool(lost) or not _lives(launcher)
        _wait_for(ended, seconds=min(grace, _SHORT_GRACE) if hurry else grace)
    sweep(name, tidy=_TIDY_SECONDS)
    code = lost or child.wait()
    os.kill(guard, signal.SIGKILL)
    _bury()
    return code if code >= 0 else 128 - code


def _guard(name: str) -> int:
    """Fork a process that sweeps when this one is killed; its pid."""
    this = os.pidfd_open(os.getpid())
    guard = os.fork()
    if not guard:
        os.setsid()
        _wait_for(this)
        sweep(name, tidy=_TIDY_SECONDS)
        os._exit(0)
    os.close(this)
    return guard


def ending_with_parent() -> Callable[[], None]:
    """What a new process has to call (``preexec_fn``) to be killed when this one dies."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def call() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died before the call

    return call


def _bury(seconds: float = 2.0) -> None:
    """Take leave of the dead; the orphans of the server are this process's children."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


def sweep(name: str, seconds: float = 5.0, tidy: float = 0.0) -> None:
    """Kill what runs in the name of a server, and remove its shared memory and scratch folder.

    Python's resource trackers, which remove shared memory of names that nobody else knows when
    all who use it are gone, get ``tidy`` seconds to do so.
    """
    _kill(lambda: [each for each in _processes(name) if not (tidy and _tracks(each))], seconds)
    deadline = time.monotonic() + tidy
    while time.monotonic() < deadline and any(_processes(name)):
        time.sleep(0.02)
    _kill(lambda: list(_processes(name)), seconds)
    for region in Path("/dev/shm").glob(f"{name}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(scratch(name), ignore_errors=True)
    _sweep_environments()


def _kill(left: Callable[[], list[int]], seconds: float) -> None:
    deadline = time.monotonic() + seconds  # one that hangs in a driver can't be killed
    while (processes := left()) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _tracks(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def _sweep_environments() -> None:
    """Remove what Triton's python backend leaves in /tmp when it is killed: an empty folder.

    It has that name wherever it was started, so one stays that somebody may use: a process of this
    user that has the backend loaded and was there before it.
    """
    found = {}
    for folder in Path("/tmp").glob("python_env_??????"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.getuid():
                found[folder] = status.st_mtime
    oldest = min((_began(each) for each in _with_backend()), default=time.time()) if found else 0
    for folder, made in found.items():
        if made < oldest:
            with contextlib.suppress(OSError):  # not empty: an environment that a model brought
                folder.rmdir()


def _with_backend() -> Iterator[Path]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if _PYTHON_BACKEND in (folder / "maps").read_bytes():
                yield folder


def _began(folder: Path) -> float:
    """When the process of a folder in /proc started, as time.time() tells it, or a bit before."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    with contextlib.suppress(OSError):
        fields = (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        return booted + int(fields[_START]) / os.sysconf("SC_CLK_TCK") - 1.0
    return time.time()


def scratch(name: str) -> Path:
    """A folder that a server may use while it runs."""
    return Path(tempfile.gettempdir()) / name


def _until_an_end(ends: tuple[int, ...], launcher: int, name: str, vital: str) -> int:
    """Wait for an end; the exit code of the vital process if it was that, else 0."""
    waiting = select.poll()
    for each in ends:
        waiting.register(each, select.POLLIN)
    try:
        waiting.register(os.pidfd_open(launcher), select.POLLIN)
    except ProcessLookupError:
        return 0
    before: dict[int, int] = {}
    while not waiting.poll(_LOOK_SECONDS * 1000):
        killed = _killed(name, vital)
        if lost := before.keys() & killed:  # one that is being replaced is buried by now
            process = min(lost)
            print(
                f"ServerError: {vital}, process {process}, was killed or crashed;"
                " ending the server",
                flush=True,
            )
            return killed[process]
        before = killed
    return 0


def _lives(process: int) -> bool:
    """Whether it does, and isn't just dying: its files are closed a moment before."""
    with contextlib.suppress(ProcessLookupError):
        return not _wait_for(os.pidfd_open(process), seconds=0.2)
    return False


def _wait_for(ended: int, *, seconds: float | None = None) -> bool:
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))


def _processes(name: str) -> Iterator[int]:
    """Those that have the server's name in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        if _has_name(folder, name):
            yield int(folder.name)


def _has_name(folder: Path, name: str) -> bool:
    try:
        environment = (folder / "environ").read_bytes()
    except OSError:  # another user's, or gone
        return False
    return f"{NAME_VARIABLE}={name}".encode() in environment.split(b"\0")


def _killed(name: str, vital: str) -> dict[int, int]:
    """Dead children with the vital name that their parent left unburied; pid → exit code."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            start, _, rest = (folder / "stat").read_text(errors="replace").rpartition(") ")
            fields = rest.split(maxsplit=_EXIT_CODE)
            if fields[_STATE] == "Z" and start.endswith(f"({vital[:_COMM_LENGTH]}"):
                code = os.waitstatus_to_exitcode(int(fields[_EXIT_CODE]))
                if code and _has_name(folder.parent / fields[_PARENT], name):
                    found[int(folder.name)] = code
    return found


if __name__ == "__main__":
    _, pid, seconds, server_name, vital_name, *words = sys.argv
    sys.exit(main(int(pid), float(seconds), server_name, vital_name, words))

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import name, until
from trtllm_deploy.machine import supervise

SUPERVISE = supervise.__file__
NAME = f"test-supervise-{os.getpid()}-"


def supervised(script: str, *, launcher: int, grace: float = 5.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script]
    return subprocess.Popen(
        [sys.executable, str(SUPERVISE), str(launcher), str(grace), NAME, "vital", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# a server with a child of its own, like Triton and its stubs; prints both pids
SERVER = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
{handler}
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_the_exit_code_is_the_server_s(tmp_path: Path) -> None:
    for script, code in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        with supervised(script, launcher=os.getpid()) as process:
            assert process.wait(20) == code


@pytest.mark.parametrize(
    "handler", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["polite", "stubborn"]
)
def test_closing_standard_input_ends_the_server_and_its_children(handler: str) -> None:
    with supervised(SERVER.format(handler=handler), launcher=os.getpid(), grace=0.5) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.stdin.close()
        process.wait(20)
        assert until(lambda: gone(pids))


def test_the_death_of_the_launcher_ends_the_server_and_its_children() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as launcher,
        supervised(SERVER.format(handler=""), launcher=launcher.pid) as process,
    ):
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        launcher.kill()
        launcher.wait()
        process.wait(20)
        assert until(lambda: gone(pids))


def test_a_server_that_nobody_owns_does_not_get_the_time_that_a_wish_to_stop_gives() -> None:
    stubborn = SERVER.format(handler="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as launcher,
        supervised(stubborn, launcher=launcher.pid, grace=600) as process,
    ):
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        launcher.kill()
        launcher.wait()
        assert process.wait(60) == 128 + signal.SIGKILL
        assert until(lambda: gone(pids))


def test_the_death_of_launcher_and_supervisor_ends_the_server_and_its_children() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as launcher,
        supervised(SERVER.format(handler=""), launcher=launcher.pid) as process,
    ):
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        launcher.kill()
        process.kill()
        process.wait()
        assert until(lambda: gone(pids))
        launcher.wait()


def test_what_is_left_when_its_guard_is_killed_too_a_sweep_ends() -> None:
    with supervised(SERVER.format(handler=""), launcher=os.getpid()) as process:
        assert process.stdout is not None
        server, child = (int(pid) for pid in process.stdout.readline().split())
        children = psutil.Process(process.pid).children()
        [guard] = [each.pid for each in children if each.pid != server]
        for pid in (guard, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert until(lambda: gone([server, guard]))
        assert psutil.pid_exists(child)
        supervise.sweep(NAME)
        assert until(lambda: gone([child]))


def test_a_child_in_a_session_of_its_own_ends_too() -> None:
    script = SERVER.replace('time.sleep(600)"]', 'time.sleep(600)"], start_new_session=True')
    with supervised(script.format(handler=""), launcher=os.getpid()) as process:
        assert process.stdout is not None
        server, child = (int(pid) for pid in process.stdout.readline().split())
        assert os.getpgid(child) != os.getpgid(server)
        os.kill(server, signal.SIGKILL)
        assert process.wait(20) == 137
        assert gone([server, child])


def test_what_a_server_leaves_in_shared_memory_and_scratch_goes() -> None:
    region, scratch = Path("/dev/shm") / f"{NAME}0_region", supervise.scratch(NAME)
    script = f"""
from pathlib import Path
Path({str(region)!r}).touch()
Path({str(scratch)!r}).mkdir()
(Path({str(scratch)!r}) / "contact.txt").touch()
"""
    with supervised(script, launcher=os.getpid()) as process:
        assert process.wait(20) == 0
    assert not region.exists()
    assert not scratch.exists()


# a server that, as Triton does, keeps a killed child of the vital name unburied and goes on
CARELESS = """
import ctypes, os, sys, time
child = os.fork()
if not child:
    ctypes.CDLL(None).prctl(15, b"vital")  # PR_SET_NAME
    {end}
print(os.getpid(), child, flush=True)
{then}
time.sleep(600)
"""


def test_a_killed_vital_process_ends_the_server_with_its_code() -> None:
    script = CARELESS.format(end="time.sleep(600)", then="")
    with supervised(script, launcher=os.getpid()) as process:
        assert process.stdout is not None
        server, child = (int(pid) for pid in process.stdout.readline().split())
        assert until(lambda: name(psutil.Process(child)) == "vital")
        os.kill(child, signal.SIGKILL)
        assert process.wait(20) == 137
        assert gone([server])


@pytest.mark.parametrize(
    ("end", "then"),
    [("os._exit(0)", ""), ("os._exit(1)", "os.waitpid(child, 0)")],
    ids=["unburied, but it ended well", "replaced by its parent"],
)
def test_a_vital_process_may_end_as_its_parent_wants(end: str, then: str) -> None:
    with supervised(CARELESS.format(end=end, then=then), launcher=os.getpid()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3.5)  # it looks every second
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM

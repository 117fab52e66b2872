from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import lives, until
from trtllm_deploy.machine import supervise
from trtllm_deploy.machine.remains import new_name, remains, sweep_remains

# takes a name, uses all that goes with one, and waits for its death
_COMMAND = """
import os, subprocess, sys
from pathlib import Path
from trtllm_deploy.machine import supervise
from trtllm_deploy.machine.remains import new_name
name = new_name()
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"],
    env={**os.environ, supervise.NAME_VARIABLE: name},
    start_new_session=True,
)
(Path("/dev/shm") / f"{name}0_region").write_bytes(bytes(2**20))
supervise.scratch(name).mkdir()
print(name, child.pid, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_command_left_is_known_and_swept() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        name, child = command.stdout.readline().split()
        assert name not in {each.name for each in remains()}
        sweep_remains()
        assert lives(int(child))
        command.kill()
        command.wait()
    [left] = [each for each in remains() if each.name == name]
    assert (left.processes, left.memory) == ((int(child),), 2**20)
    sweep_remains()
    assert until(lambda: not lives(int(child)))
    assert not (Path("/dev/shm") / f"{name}0_region").exists()
    assert not supervise.scratch(name).exists()
    assert name not in {each.name for each in remains()}


def test_what_another_container_named_is_left_alone() -> None:
    prefix, namespace, *rest = new_name().rsplit("-", 5)
    region = Path("/dev/shm") / "-".join([prefix, str(int(namespace) + 1), "1", "1", *rest[2:]])
    region.touch()
    try:
        sweep_remains()
        assert region.exists()
    finally:
        region.unlink()


@pytest.fixture
def environment() -> Iterator[Path]:
    """As Triton's python backend makes one in /tmp, its name fixed in its code."""
    folder = Path("/tmp") / f"python_env_{uuid.uuid4().hex[:6]}"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_an_empty_folder_of_a_python_backend_that_died_goes(environment: Path) -> None:
    os.utime(environment, (1, 1))  # before any process that lives
    supervise.sweep("trtllm-deploy-test-")
    assert not environment.exists()


def test_a_folder_with_an_environment_in_it_stays(environment: Path) -> None:
    (environment / "bin").mkdir()
    os.utime(environment, (1, 1))
    supervise.sweep("trtllm-deploy-test-")
    assert environment.exists()


_WITH_BACKEND = """
import mmap, sys
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_a_living_process_may_have_made_stays(tmp_path: Path) -> None:
    library = tmp_path / "libtriton_python.so"
    library.write_bytes(b"backend")
    with subprocess.Popen(
        [sys.executable, "-c", _WITH_BACKEND, str(library)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        folder = Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp"))
        folder = folder.rename(folder.with_name(folder.name[:17]))
        try:
            supervise.sweep("trtllm-deploy-test-")
            assert folder.exists()
        finally:
            folder.rmdir()
            process.kill()

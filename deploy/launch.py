"""Start Triton on a rendered model repository, say when it is ready, and stop it without leftovers.

In: a repository folder, three ports, a log file. Out: a running server, its exit code. The server
is the container's own ``tritonserver``, or the one inside the nvidia-pytriton wheel. It knows
nothing of models, engines or what is sent to the server.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType

from client.errors import UserError

_CONTAINER_TRITON = Path("/opt/tritonserver/bin/tritonserver")
_SUPERVISE = Path(__file__).with_name("supervise.py")
_GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
# Triton's log format; of a python model's error, the traceback is left in the log
_ERROR_LINE = re.compile(r'^E\d{4} [\d:.]+ \d+ \S+\] "(?P<text>.+?)(\\n\\nAt:.*)?"?$')
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+")  # what shlex.quote would leave alone
_WITHOUT_GPU = ("CudaDriverHelper", "unable to create stream")  # errors that mean nothing here
_LINES_SHOWN = 2


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens. The defaults are Triton's."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002


@dataclass(frozen=True, slots=True)
class Triton:
    """A ``tritonserver`` that can run here: its binary, the flags and the environment it needs."""

    binary: Path
    flags: tuple[str, ...]
    environment: Mapping[str, str]


def free_ports(address: str = "127.0.0.1") -> Ports:
    """Three ports that nobody listens on now; for runs that no person talks to."""
    with contextlib.ExitStack() as held:
        numbers = []
        for _ in fields(Ports):
            probe = held.enter_context(socket.socket())
            probe.bind((address, 0))
            numbers.append(int(probe.getsockname()[1]))
    return Ports(*numbers)


def check_ports(ports: Ports, address: str = "127.0.0.1") -> None:
    """See that a server can listen there.

    Raises UserError when two of the ports are the same or somebody listens on one already, with
    the flag to change, or when this machine has no such address.
    """
    flags: dict[int, str] = {}
    for field in fields(ports):
        port, flag = getattr(ports, field.name), f"--{field.name}-port"
        if port in flags:
            raise UserError(f"{flags[port]} and {flag} are both {port}", fix="give three ports")
        flags[port] = flag
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is free
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} is already in use on {address}", fix=f"set another with {flag}"
                ) from None
            raise UserError(
                f"can't listen on {address}:{port}: {error.strerror}",
                fix="check --address and the port",
            ) from None


def find_triton(cache_dir: Path) -> Triton:
    """The container's Triton, else the wheel's with its backend folder assembled in ``cache_dir``.

    Raises UserError when this machine has neither.
    """
    on_path = shutil.which("tritonserver")
    if on_path or _CONTAINER_TRITON.exists():
        return Triton(Path(on_path or _CONTAINER_TRITON), (), _python_environment())
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise UserError(
            "no tritonserver on this machine",
            fix="pip install 'trtllm-deploy[local]', or run inside a Triton container",
        )
    return _triton_from_wheel(Path(spec.origin).parent, cache_dir)


def _triton_from_wheel(package: Path, cache_dir: Path) -> Triton:
    """The wheel keeps backend and stubs apart; Triton wants them in one ``python/`` folder."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise UserError(f"nvidia-pytriton has no Triton python stub for Python {version}")
    python_backend = cache_dir / f"backends-{version}" / "python"
    python_backend.mkdir(parents=True, exist_ok=True)
    backend_files = package / "tritonserver/backends/python"
    for source in (
        backend_files / "libtriton_python.so",
        backend_files / "triton_python_backend_utils.py",
        stub,
    ):
        _link(source, python_backend / source.name)
    # The stub links libpython: any other libpython on the path ends in undefined symbols.
    libraries = [
        sysconfig.get_config_var("LIBDIR"),
        str(package.parent / "nvidia_pytriton.libs"),
        *filter(None, [os.environ.get("LD_LIBRARY_PATH")]),
    ]
    return Triton(
        package / "tritonserver/bin/tritonserver",
        (f"--backend-directory={python_backend.parent}",),
        {"LD_LIBRARY_PATH": os.pathsep.join(libraries), **_python_environment()},
    )


def _link(source: Path, target: Path) -> None:
    """Point ``target`` at ``source``, also when several launches do so at once."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.symlink_to(source)
    temporary.replace(target)


def _python_environment() -> Mapping[str, str]:
    """What makes the stubs find the packages of this interpreter, ``deploy`` among them.

    A stub finds its site-packages from the first ``python3`` on PATH, virtual environment or not.
    The wheel's stubs ignore PYTHONPATH; others do not.
    """
    packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    places = [*packages, str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(place for place in places if place)),
    }


def server_command(
    triton: Triton, repository: Path, ports: Ports, address: str, shm_prefix: str
) -> list[str]:
    """The whole command line. ``shm_prefix`` keeps the servers of one host apart."""
    return [
        str(triton.binary),
        f"--model-repository={repository.absolute()}",
        f"--grpc-port={ports.grpc}",
        f"--http-port={ports.http}",
        f"--metrics-port={ports.metrics}",
        f"--grpc-address={address}",
        f"--http-address={address}",
        f"--metrics-address={address}",
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        "--exit-timeout-secs=5",
        *triton.flags,
    ]


class TritonServer:
    """One Triton on one model repository, as a context manager.

    Entering raises UserError when a port is taken or no Triton is found, and starts the server
    otherwise; leaving stops it and everything it started.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports = Ports(),
        log_file: Path,
        address: str = "127.0.0.1",
        cache_dir: Path | None = None,
    ) -> None:
        self.repository = repository
        self.ports = ports
        self.log_file = log_file
        self.address = address
        self.cache_dir = cache_dir or Path.home() / ".cache" / "trtllm-deploy" / "triton"
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def http_url(self) -> str:
        """``host:port`` of the HTTP endpoint, as a client on this machine reaches it."""
        return f"{self._host}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """``host:port`` of the gRPC endpoint, as a client on this machine reaches it."""
        return f"{self._host}:{self.ports.grpc}"

    @property
    def _host(self) -> str:
        return "127.0.0.1" if self.address == "0.0.0.0" else self.address

    def __enter__(self) -> TritonServer:
        if not self.repository.is_dir():
            raise UserError("there is no such model repository", where=self.repository)
        check_ports(self.ports, self.address)
        for path in (self.repository.absolute(), self.cache_dir.absolute()):
            if not _SHELL_SAFE.fullmatch(str(path)):  # its python backend starts stubs with sh -c
                raise UserError(
                    "Triton can't serve from a path with spaces or quotes in it",
                    where=path,
                    fix="choose another --workspace",
                )
        triton = find_triton(self.cache_dir)
        shm_prefix = f"trtllm-deploy-{os.getpid()}-{self.ports.grpc}-"
        command = server_command(triton, self.repository, self.ports, self.address, shm_prefix)
        supervise = [sys.executable, "-I", str(_SUPERVISE), str(os.getpid()), str(_GRACE_SECONDS)]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [*supervise, shm_prefix, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **triton.environment},
                start_new_session=True,  # Ctrl-C reaches us, and we stop the server in order
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_ready(self, timeout: float = 300.0) -> None:
        """Return once every model is loaded.

        Raises UserError with the log's first error lines when the server ends first or ``timeout``
        (seconds) has passed.
        """
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self._running().poll() is not None:
                raise self._failure(
                    f"Triton ended with exit code {self.wait()} before it was ready"
                )
            if time.monotonic() > deadline:
                raise self._failure(f"Triton was not ready after {timeout:g} s")
            time.sleep(0.1)

    def wait(self) -> int:
        """Block until the server has ended; its exit code, 128 + N when signal N ended it."""
        return self._running().wait()

    def stop(self) -> None:
        """End the server and all its processes, and wait until they are gone. Safe to repeat."""
        if self._supervisor is None:
            return
        if self._supervisor.stdin is not None:
            self._supervisor.stdin.close()
        self._supervisor.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._supervisor is None:
            raise RuntimeError("the server has not been started")
        return self._supervisor

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http_url}/v2/health/ready", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _failure(self, what: str) -> UserError:
        lines = self.log_file.read_text(errors="replace").splitlines()
        matches = (_ERROR_LINE.match(line) for line in lines)
        errors = [match["text"] for match in matches if match]
        causes = [text for text in errors if not text.startswith(_WITHOUT_GPU)]
        said = causes[:_LINES_SHOWN] or lines[-_LINES_SHOWN:]  # later errors follow from the first
        return UserError(f"{what}: {' | '.join(said)}", where=self.log_file)

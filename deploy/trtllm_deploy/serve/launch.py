"""Start Triton on a rendered model repository, say when it is ready, and stop it without leftovers.

In: a repository folder, three ports, a log file, how its processes are started. Out: a running
server, what it says is wrong, its exit code. It knows nothing of what is sent to the server.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.check.failures import first_errors
from trtllm_deploy.machine import supervise
from trtllm_deploy.machine.environment import clean_environment
from trtllm_deploy.machine.remains import new_name
from trtllm_deploy.serve.command import server_command
from trtllm_deploy.serve.find_triton import find_triton
from trtllm_deploy.serve.log import ServerLog
from trtllm_deploy.serve.ports import DEFAULT_PORTS, Ports, check_ports
from trtllm_deploy.serve.processes import Processes

_SUPERVISE = Path(supervise.__file__)
_EXIT_SECONDS = 4
_LOOK_SECONDS = 0.2  # between looks at the server
_STUB = "triton_python_backend_stub"  # Triton says it is ready whether or not it lives
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+")  # what shlex.quote would leave alone
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens a server's URLs, whatever proxy the environment names."""

Say = Callable[[str], None]


class ServerError(UserError):
    """A server ended before it was ready, or wasn't in time.

    ``code`` is its own exit code, None where it wasn't in time.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: Path, code: int | None) -> None:
        super().__init__(what, where=where)
        self.code = code


class TritonServer:
    """One server on one model repository, as a context manager.

    Entering raises UserError when a port is taken or no Triton is found, and starts the server
    otherwise; leaving stops it and everything it started. Requests in flight then get
    ``exit_seconds``. The logs of earlier starts are kept beside the new one, as ``*.1`` and so on.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports = DEFAULT_PORTS,
        log_file: Path,
        address: str = "127.0.0.1",
        cache_dir: Path | None = None,
        processes: Processes | None = None,
        exit_seconds: int = _EXIT_SECONDS,
        tritonserver: Path | None = None,
        log_verbose: int = 0,
    ) -> None:
        self.repository = repository
        self.ports = ports
        self.address = address
        self.processes = processes or Processes()
        self.log_file = log_file
        self.log = ServerLog(log_file)
        self.exit_seconds = exit_seconds
        self._cache_dir = cache_dir or Path.home() / ".cache" / "trtllm-deploy" / "triton"
        self._tritonserver = tritonserver
        self._log_verbose = log_verbose
        self._name = new_name()
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

    def command(self) -> tuple[list[str], dict[str, str]]:
        """The command line, and what is added to this process's environment for it.

        Raises UserError: there is no Triton here.
        """
        triton = find_triton(self._cache_dir, self._tritonserver)
        environment = {**triton.environment, **self.processes.environment}
        if self.processes.mpirun:  # else what it keeps there stays when it is killed
            environment["OMPI_MCA_orte_tmpdir_base"] = str(supervise.scratch(self._name))
        command = server_command(
            triton,
            self.repository,
            self.ports,
            self.address,
            self.processes,
            name=self._name,
            rank_logs=self.log.ranks,
            exit_seconds=self.exit_seconds,
            log_verbose=self._log_verbose,
        )
        return command, environment

    def shell_command(self) -> str:
        """The same as one line for a shell."""
        command, environment = self.command()
        return shlex.join(
            ["env", *(f"{key}={value}" for key, value in environment.items()), *command]
        )

    def __enter__(self) -> TritonServer:
        if not self.repository.is_dir():
            raise UserError("there is no such model repository", where=self.repository)
        check_ports(self.ports, self.address)
        for path in (self.repository.absolute(), self._cache_dir.absolute()):
            if not _SHELL_SAFE.fullmatch(str(path)):  # its python backend starts stubs with sh -c
                raise UserError(
                    "Triton can't serve from a path with spaces or quotes in it",
                    where=path,
                    fix="choose another --workspace",
                )
        command, environment = self.command()
        if shutil.which(command[0]) is None:
            raise UserError(
                f"there is no {command[0]} here",
                fix=f"{self.processes.world_size} ranks need Open MPI: run in the container",
            )
        guard = [sys.executable, "-I", str(_SUPERVISE), str(os.getpid())]
        with self.log.start() as log:
            self._supervisor = subprocess.Popen(
                [*guard, str(self.exit_seconds + 1), self._name, _STUB, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(environment),
                umask=0o077,  # its shared memory holds prompts
                start_new_session=True,  # Ctrl-C reaches us, and we stop the server in order
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, timeout: float = 300.0, say: Say = lambda _: None) -> None:
        """Return once every model is loaded; each error line of the logs goes to ``say``.

        Raises ServerError with the log's first error lines, when the server ends first or
        ``timeout`` (seconds) has passed.
        """
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self._running().poll() is not None:
                code = self.wait(say) or 1
                raise self._failure(f"Triton ended with exit code {code} before it was ready", code)
            if time.monotonic() > deadline:
                raise self._failure(f"Triton was not ready after {timeout:g} s", None)
            self._look(say)
            time.sleep(_LOOK_SECONDS)

    def wait(
        self, say: Say = lambda _: None, enough: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Block until the server has ended; its exit code, 128 + N when signal N ended it.

        None where it still runs and there was ``enough`` of waiting.
        """
        supervisor = self._running()
        while supervisor.poll() is None:
            if enough():
                return None
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(_LOOK_SECONDS)
            self._look(say)
        self._look(say)
        self.stop()
        code = supervisor.returncode
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """End the server and all its processes, and wait until they are gone. Safe to repeat."""
        if self._supervisor is None:
            return
        if self._supervisor.stdin is not None:
            self._supervisor.stdin.close()
        self._supervisor.wait()
        supervise.sweep(self._name)  # there is something left only if the supervisor was killed

    def _running(self) -> subprocess.Popen[bytes]:
        if self._supervisor is None:
            raise RuntimeError("the server has not been started")
        return self._supervisor

    def _is_ready(self) -> bool:
        try:
            with DIRECT.open(f"http://{self.http_url}/v2/health/ready", timeout=2):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _look(self, say: Say) -> None:
        for error in self.log.new_errors():
            say(error)

    def _failure(self, what: str, code: int | None) -> ServerError:
        said = " | ".join(first_errors(list(self.log.lines())))
        return ServerError(f"{what}: {said}", where=self.log_file, code=code)

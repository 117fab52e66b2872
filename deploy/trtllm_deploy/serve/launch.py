"""Start a server on a folder, say when it is ready, and stop it without leftovers.

In: a folder, ports, a log file, what a person chose. Out: a running server, what it says is wrong,
its exit code. It knows nothing of what is sent to the server, or of which kind it is.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from llm_perf.errors import UserError
from trtllm_deploy.backends.server import Chosen, Launch, Port, Server
from trtllm_deploy.backends.servers import kind_of
from trtllm_deploy.check.failures import first_errors
from trtllm_deploy.machine import supervise
from trtllm_deploy.machine.environment import clean_environment
from trtllm_deploy.machine.ports import DEFAULT_PORTS, Ports, check_ports
from trtllm_deploy.machine.remains import new_name
from trtllm_deploy.serve.log import ServerLog

_SUPERVISE = Path(supervise.__file__)
_EXIT_SECONDS = 4
_LOOK_SECONDS = 0.2  # between looks at the server
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


class Asked(NamedTuple):
    """What a client says to reach a server, in llm_perf's words."""

    url: str
    protocol: str
    model: str


class ModelServer:
    """One server on one folder, as a context manager.

    Entering raises UserError when a port is taken or there is no such server here, and starts it
    otherwise; leaving stops it and everything it started, one that drains after ``exit_seconds`` at
    most. The logs of earlier starts are kept beside the new one, as ``*.1`` and so on.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports = DEFAULT_PORTS,
        log_file: Path,
        address: str = "127.0.0.1",
        cache_dir: Path | None = None,
        chosen: Chosen | None = None,
        exit_seconds: int = _EXIT_SECONDS,
    ) -> None:
        self.repository = repository
        self.ports = ports
        self.address = address
        self.log_file = log_file
        self.log = ServerLog(log_file)
        self.exit_seconds = exit_seconds
        self._cache_dir = cache_dir or Path.home() / ".cache" / "trtllm-deploy" / "triton"
        self._chosen = chosen or Chosen()
        self._name = new_name()
        self._supervisor: subprocess.Popen[bytes] | None = None

    @cached_property
    def title(self) -> str:
        """What kind it is, for people."""
        return kind_of(self.repository).title

    @cached_property
    def what(self) -> Server:
        """All that is to know of it. Raises UserError: there is no such server here."""
        return kind_of(self.repository).server(
            Launch(
                folder=self.repository,
                ports=self.ports,
                address=self.address,
                name=self._name,
                rank_logs=self.log.ranks,
                cache=self._cache_dir,
                exit_seconds=self.exit_seconds,
                chosen=self._chosen,
            )
        )

    @property
    def asked(self) -> Asked:
        """How a client on this machine reaches it: ``Endpoint(*server.asked)``."""
        return Asked(self.url(self.what.asked), self.what.protocol, self.what.model)

    @property
    def metrics_url(self) -> str:
        """Where it tells its metrics."""
        return f"http://{self.url(self.what.metrics)}{self.what.metrics_path}"

    def url(self, port: Port) -> str:
        """``host:port``, as a client on this machine reaches it."""
        host = "127.0.0.1" if self.address == "0.0.0.0" else self.address
        return f"{host}:{getattr(self.ports, port)}"

    @property
    def http_url(self) -> str:
        """``host:port`` of the HTTP endpoint, as a client on this machine reaches it."""
        return self.url("http")

    @property
    def grpc_url(self) -> str:
        """``host:port`` of the gRPC endpoint, as a client on this machine reaches it."""
        return self.url("grpc")

    def shell_command(self) -> str:
        """The command with its environment, as one line for a shell."""
        added = (f"{key}={value}" for key, value in self.what.environment.items())
        return shlex.join(["env", *added, *self.what.command])

    def __enter__(self) -> ModelServer:
        if not self.repository.is_dir():
            raise UserError("there is no such model repository", where=self.repository)
        what = self.what
        check_ports(self.ports, self.address, what.listens)
        if shutil.which(what.command[0]) is None:
            raise UserError(f"there is no {what.command[0]} here", fix=what.absent or None)
        guard = [sys.executable, "-I", str(_SUPERVISE), str(os.getpid())]
        with self.log.start() as log:
            self._supervisor = subprocess.Popen(
                [*guard, str(self.exit_seconds + 1), self._name, what.vital, *what.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(what.environment),
                umask=0o077,  # its shared memory holds prompts
                start_new_session=True,  # Ctrl-C reaches us, and we stop the server in order
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, timeout: float = 300.0, say: Say = lambda _: None) -> None:
        """Return once it is ready; each error line of the logs goes to ``say``.

        Raises ServerError with the log's first error lines, when the server ends first or
        ``timeout`` (seconds) has passed.
        """
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self._running().poll() is not None:
                code = self.wait(say) or 1
                raise self._failure(
                    f"{self.title} ended with exit code {code} before it was ready", code
                )
            if time.monotonic() > deadline:
                raise self._failure(f"{self.title} was not ready after {timeout:g} s", None)
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
        code = supervisor.returncode or self.what.zero
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
            with DIRECT.open(f"http://{self.http_url}{self.what.ready}", timeout=2):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _look(self, say: Say) -> None:
        for error in self.log.new_errors():
            say(error)

    def _failure(self, what: str, code: int | None) -> ServerError:
        said = " | ".join(first_errors(list(self.log.lines())))
        return ServerError(f"{what}: {said}", where=self.log_file, code=code)

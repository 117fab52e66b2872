"""What a server is, to those who start it, watch it and ask it: values, and nothing that runs.

A ``Kind`` makes of a folder and of what a person chose a ``Server``: the command with its
environment, where it listens, how it is ready, what a client says to it. ``Cluster`` is the same
for a scheduler. Which kinds there are stands in :mod:`trtllm_deploy.backends.servers`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_perf.errors import UserError
from trtllm_deploy.machine.environment import is_secret
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.ports import Ports

Port = Literal["grpc", "http", "metrics"]
SAID = "server.json"
"""In a folder: the kind of server that serves it, and what that kind wants to know."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a person chose of how a server is started; not all of it means something to each kind.

    ``gpus``: the i-th rank of a node gets the i-th. ``executable`` is the server's program, a path
    or a name on PATH. ``variables`` are for every process.
    """

    executable: str | None = None
    gpus: tuple[str, ...] = ()
    log_verbose: int = 0
    orchestrator: bool = False
    no_mpi: bool = False
    oversubscribe: bool = False
    hostfile: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)

    def program(self, name: str, fix: str) -> str:
        """The absolute path of what was chosen, of ``name`` on PATH, or beside this interpreter.

        Raises UserError with ``fix``: there is none.
        """
        own = self.executable
        beside = Path(sys.executable).with_name(name)  # an environment that no shell activated
        if found := shutil.which(own or name) or (None if own else shutil.which(beside)):
            return str(Path(found).absolute())
        if own:
            raise UserError("is no program that can be started", where=own)
        raise UserError(f"there is no {name} on this machine", fix=fix)

    def environ(self, prefixes: tuple[str, ...], verbose: Mapping[str, str]) -> dict[str, str]:
        """This process's variables that a server of its own reads, no secrets; what was chosen.

        ``verbose`` is what makes it tell more.
        """
        own = (each for each in os.environ if each.startswith(prefixes) and not is_secret(each))
        return {
            **{name: os.environ[name] for name in own},
            **(verbose if self.log_verbose else {}),
            **({"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}),
            **self.variables,
        }

    @property
    def launching(self) -> list[str]:
        """The flags of ``serve`` on how ranks are launched that were given."""
        given = {
            "--mode": self.orchestrator,
            "--no-mpi": self.no_mpi,
            "--oversubscribe": self.oversubscribe,
            "--hostfile": self.hostfile,
        }
        return [flag for flag, was in given.items() if was]


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a server on ``folder``, what the last stage of its cell made.

    ``name`` keeps the servers of one host apart. Ranks may write logs below ``rank_logs``, files
    that all servers share into ``cache``. A server that ``drains`` gives requests in flight
    ``exit_seconds`` at the end.
    """

    folder: Path
    ports: Ports
    address: str
    name: str
    rank_logs: Path
    cache: Path
    exit_seconds: int
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be started: the words, and what is to know from outside.

    The defaults are those of an OpenAI server, all on one port.
    ``environment`` is added to what every child may have. It listens on the ports ``listens``; a
    client asks ``model`` in ``protocol`` (llm_perf's word for it) at ``asked``. ``ready`` is the
    path that answers 200 over HTTP once it is, ``metrics`` the port with the page
    ``metrics_path``. The death of a process called ``vital`` ends it, for itself it wouldn't
    notice.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    world_size: int
    model: str
    protocol: Literal["grpc", "openai"] = "openai"
    listens: tuple[Port, ...] = ("http",)
    asked: Port = "http"
    ready: str = "/health"
    metrics: Port = "http"
    metrics_path: str = "/metrics"
    vital: str = ""
    drains: bool = False
    """told to stop, it gives requests in flight ``exit_seconds``; else it cuts them off"""
    zero: int = 0
    """what an exit code of 0 stands for that nobody asked for: 1 where failures end with it too"""
    idle: tuple[tuple[str, str], ...] = ()
    """flags of ``serve`` that were given and do nothing, each with the reason"""
    absent: str = ""
    """what to do where the command's first word isn't there"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A server as a scheduler starts it: ``script(folder, address, ports)`` in the ``image``.

    The script runs once for each rank (``each_rank``) or once for all of a node. ``app`` and
    ``container`` are names in manifests; ``ready`` and ``live`` paths that HTTP probes ask.
    """

    app: str
    container: str
    image: str
    script: Callable[[str, str, Mapping[str, str]], str]
    listens: tuple[Port, ...] = ("http",)
    metrics: Port = "http"
    ready: str = "/health"
    live: str = "/health"
    each_rank: bool = True
    metrics_path: str = "/metrics"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server. ``name`` is for files and records, ``title`` for people.

    ``failures`` is the data file with the lines of its logs that are known, ``error`` a pattern of
    what it calls an error: one group, a whole line. ``judge`` finds what will go wrong with a
    folder on some GPUs, for the kinds that preflight's own rules aren't for.
    """

    name: str
    title: str
    server: Callable[[Launch], Server]
    """Raises UserError: there is no such program here, or it can't serve so."""
    failures: str | None = None
    error: str | None = None
    judge: Callable[[Path, tuple[Gpu, ...]], Iterable[Finding]] | None = None


def lacking(
    title: str, folder: Path, said: Mapping[str, Any], checkpoint: Path, gpus: tuple[Gpu, ...]
) -> Iterator[Finding]:
    """What a server of a checkpoint lacks: that checkpoint, or GPUs for its ranks."""
    where = str(folder / SAID)
    if not (checkpoint / "config.json").is_file():
        yield Finding(
            "error",
            f"there is no checkpoint {checkpoint}",
            where,
            f"{title} takes what isn't there for the name of a model on the hub",
            "build the cell again; a workspace that was moved has to be",
        )
    if gpus and int(said.get("world_size", 1)) > len(gpus):
        yield Finding(
            "error",
            f"it has {said['world_size']} ranks, and {len(gpus)} GPUs are visible",
            where,
            "each rank takes a GPU",
            "name as many with --gpus, or build it with a smaller tp x pp",
        )

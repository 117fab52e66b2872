"""The executor of this machine: worker processes, each making one stage after another.

A worker is told of its GPUs by CUDA_VISIBLE_DEVICES, which the commands it runs inherit. SIGTERM
makes it clean up and leave; Ctrl-C goes to the build alone, which then stops its workers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import ForkServerProcess
from typing import Any

from llm_perf.ending import unheard_by_children
from llm_perf.errors import UserError
from trtllm_deploy.builds.critical_path import Node
from trtllm_deploy.builds.executor import Ended, Event, Line, Make, OnLine, attempt
from trtllm_deploy.machine.gpu import devices, gpus, pick
from trtllm_deploy.plan.plan import Stage

_THE_BUILDS = (signal.SIGINT, signal.SIGHUP)  # who tells its workers by SIGTERM
_GRACE_S = 10.0  # for a worker to kill its command and remove what is half made


@dataclass(slots=True)
class _Worker:
    process: ForkServerProcess
    pipe: connection.Connection
    busy_with: str | None = None
    gpus: list[str] = field(default_factory=list)


class LocalExecutor:
    """As many stages at once as GPUs, or as ``jobs`` of those that need none."""

    def __init__(self, make: Make, gpus: Sequence[str], jobs: int | None = None) -> None:
        self.nodes = (Node("this machine", len(gpus), jobs or os.cpu_count() or 1),)
        self._make = make
        self._free = list(gpus)
        self._workers: list[_Worker] = []
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(
            ["trtllm_deploy.builds.make"]
        )  # once, not in each worker

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask all workers to leave, wait for them, and kill what doesn't."""
        try:
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.process.join(_GRACE_S)
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()
            self._workers.clear()

    def start(self, stage: Stage, node: Node, gpus: int) -> None:  # noqa: ARG002 (there is one)
        """Hand the stage to an idle worker, or to a new one."""
        idle = (each for each in self._workers if each.busy_with is None)
        worker = next(idle, None) or self._new_worker()
        worker.gpus, self._free = self._free[:gpus], self._free[gpus:]
        worker.busy_with = stage.key
        with suppress(BrokenPipeError):  # it died; wait() tells
            worker.pipe.send((stage, ",".join(worker.gpus)))

    def wait(self, seconds: float) -> list[Event]:
        """What workers report; a worker that died unasked is a stage that failed."""
        pipes: dict[Any, _Worker] = {worker.pipe: worker for worker in self._workers}
        events: list[Event] = []
        for pipe in connection.wait(list(pipes), seconds):
            worker = pipes[pipe]
            try:
                event: Event = worker.pipe.recv()
            except (EOFError, OSError):
                if worker.busy_with is None:
                    self._bury(worker)
                    continue
                event = Ended(worker.busy_with, error=self._bury(worker))
            if isinstance(event, Ended):
                worker.busy_with = None
                self._free += worker.gpus
                worker.gpus = []
            events.append(event)
        return events

    def _new_worker(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self._make, theirs), daemon=False)
        with unheard_by_children(_THE_BUILDS):  # nor by the server that forks them
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _bury(self, worker: _Worker) -> str:
        """Forget a worker that died; returns how it did."""
        self._workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        code = worker.process.exitcode
        if code == -signal.SIGKILL:
            return "its process was killed, perhaps for lack of memory"
        return f"its process ended with exit code {code}"


def visible_gpus(asked: str | None) -> tuple[str, ...]:
    """The GPUs to use: those asked for (``0,1``), else CUDA_VISIBLE_DEVICES, else all there are.

    As that variable names them. Raises UserError: one is listed twice, or isn't there.
    """
    listed = gpus()
    if asked is None:
        inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
        if inherited is None or not listed:
            return devices(listed)
        names = tuple(inherited.split(","))
        return names[: len(pick(listed, names))]
    chosen = tuple(part.strip() for part in asked.split(",") if part.strip())
    for each in chosen:
        if listed and not pick(listed, [each]):
            known = ", ".join(devices(listed))
            raise UserError(f"there is no GPU {each}", fix=f"choose from {known}")
    if len(set(chosen)) != len(chosen) or (listed and len(pick(listed, chosen)) != len(chosen)):
        raise UserError(
            f"--gpus {asked}: one is listed twice, or by number beside a UUID",
            fix="name each once, all by number or all by UUID",
        )
    return chosen


def _work(make: Make, pipe: connection.Connection) -> None:
    """A worker's life: stages in, events out, until the build closes the pipe or says stop."""
    signal.signal(signal.SIGTERM, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _THE_BUILDS)
    threading.Thread(target=_leave_with_the_build, daemon=True).start()
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while True:
            stage, gpus = pipe.recv()
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
            pipe.send(attempt(make, stage, _sender(pipe, stage.key)))


def _sender(pipe: connection.Connection, key: str) -> OnLine:
    return lambda text: pipe.send(Line(key, text))


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # cleaning up is not cut short
    raise KeyboardInterrupt


def _leave_with_the_build() -> None:
    build = parent_process()
    if build is not None:
        build.join()
        os.kill(os.getpid(), signal.SIGTERM)

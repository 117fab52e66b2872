"""The executor of a Ray cluster: the same stages, on the GPUs of many machines.

Each machine has this project installed and sees the workspace under the same path (NFS or the
like). Ray gives a stage its GPUs and sets CUDA_VISIBLE_DEVICES; which node it runs on, and when, is
the schedule's choice.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.builds.critical_path import Node
from trtllm_deploy.builds.executor import Ended, Event, Line, Make, attempt
from trtllm_deploy.machine.gpu import Gpu, gpus
from trtllm_deploy.plan.plan import Stage

_LOOK_EVERY_S = 0.25  # how late a line of output may be shown
_GRACE_S = 10.0  # for stages to kill their command and remove what is half made


class RayExecutor:
    """Stages as Ray tasks; the cluster is there before and stays."""

    def __init__(self, make: Make, workspace: Path, jobs: int | None = None) -> None:
        self._ray = _ray()
        self.nodes: Sequence[Node] = tuple(
            Node(node["NodeID"], int(had.get("GPU", 0)), jobs or int(had.get("CPU", 1)))
            for node in self._ray.nodes()
            if node["Alive"] and (had := node["Resources"])
        )
        self._running: dict[Any, str] = {}
        self._make = self._ray.put(make)
        self._lines = self._ray.remote(_Lines).options(num_cpus=0).remote()
        self._check_shared(workspace)

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        """Interrupt what runs, give it time to clean up, then kill it."""
        for force in (False, True):
            for running in self._running:
                self._ray.cancel(running, force=force)
            self._drain(_GRACE_S)
        self._ray.kill(self._lines)

    def start(self, stage: Stage, node: Node, gpus: int) -> None:
        """Submit the stage as a task of the node."""
        task = self._on(node, _attempt, num_gpus=gpus, num_cpus=0 if gpus else 1)
        with _signals_held():
            self._running[task.remote(self._make, stage, self._lines)] = stage.key

    def wait(self, seconds: float) -> list[Event]:
        """Lines that stages sent, and the ends of those that are done."""
        until = time.monotonic() + seconds
        while True:
            left = max(until - time.monotonic(), 0)
            with _signals_held():
                ended, _ = self._ray.wait(list(self._running), timeout=min(left, _LOOK_EVERY_S))
                events: list[Event] = [*self._said(), *(self._end_of(task) for task in ended)]
            if events or time.monotonic() >= until:
                return events

    def _said(self) -> list[Line]:
        """New lines; what arrives after the end of its stage isn't told any more."""
        lines = self._ray.get(self._lines.take.remote())
        running = set(self._running.values())
        return [Line(key, text) for key, text in lines if key in running]

    def _end_of(self, task: Any) -> Ended:
        key = self._running.pop(task)
        try:
            ended: Ended = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return Ended(key, error=f"Ray: {str(error).strip().splitlines()[0]}")
        return ended

    def _drain(self, seconds: float) -> None:
        if self._running:
            count = len(self._running)
            ended, _ = self._ray.wait(list(self._running), num_returns=count, timeout=seconds)
            for task in ended:
                del self._running[task]

    def _on(self, node: Node, function: Any, **resources: float) -> Any:
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        return self._ray.remote(function).options(
            scheduling_strategy=affinity(node.name, soft=False), max_retries=0, **resources
        )

    def _check_shared(self, workspace: Path) -> None:
        """A file written here must be there on every node."""
        probe = workspace / f".shared-{uuid.uuid4().hex[:8]}"
        workspace.mkdir(parents=True, exist_ok=True)
        probe.touch()
        try:
            looks = [self._on(node, Path.is_file, num_cpus=0).remote(probe) for node in self.nodes]
            for node, seen in zip(self.nodes, self._ray.get(looks), strict=True):
                if not seen:
                    raise UserError(
                        f"the Ray node {node.name[:8]} doesn't see the workspace {workspace}",
                        fix="choose a --workspace on a file system that all nodes share",
                    )
        finally:
            probe.unlink()


def connect(address: str) -> None:
    """Join the cluster at ``address`` (``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``).

    Raises UserError: Ray isn't installed, or doesn't answer there.
    """
    ray, on_sigterm = _ray(), signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {str(error).strip().splitlines()[0]}",
            fix="check 'ray status' there",
        ) from None
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own


def cluster_gpus() -> tuple[Gpu, ...]:
    """What nvidia-smi lists on one of the cluster's machines with GPUs; empty if there is none."""
    ray = _ray()
    if not ray.cluster_resources().get("GPU"):
        return ()
    found: tuple[Gpu, ...] = ray.get(ray.remote(gpus).options(num_gpus=1, num_cpus=0).remote())
    return found


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: an exception amid one of Ray's calls leaves it broken."""
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UserError("Ray isn't installed", fix="pip install 'trtllm-deploy[ray]'") from None
    return ray


class _Lines:
    """Holds what stages say until the build asks; an actor."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def add(self, key: str, text: str) -> None:
        self._lines.append((key, text))

    def take(self) -> list[tuple[str, str]]:
        taken, self._lines = self._lines, []
        return taken


def _attempt(make: Make, stage: Stage, lines: Any) -> Ended:
    """A stage on a node of the cluster, in a process that Ray uses for many."""
    import ray

    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # Ray leaves it alone where there are none
    with suppress(KeyboardInterrupt):  # cancelled; make has cleaned up
        return attempt(make, stage, lambda text: lines.add.remote(stage.key, text))
    return Ended(stage.key, error="interrupted")

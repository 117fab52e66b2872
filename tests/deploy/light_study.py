"""trtllm-deploy with light checkpoints, and with llm_perf's null server in place of Triton.

    python light_study.py run FILE --workspace FOLDER ...

Each server notes its cell, its GPUs and its life in the file that STUDY_SERVERS names. A cell whose
name has STUDY_FAULT in it doesn't come up.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import trtllm_deploy.builds.make
import trtllm_deploy.study.measure
from llm_perf import api
from llm_perf.errors import UserError
from llm_perf.selftest.nullserver import MODEL, serve
from tests.deploy.light_build import LightMaker
from trtllm_deploy.builds.executor import Make, OnLine
from trtllm_deploy.cli.main import main
from trtllm_deploy.cli.options import Planned
from trtllm_deploy.plan.plan import CellPlan, Stage
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.study.measure import Measurer
from trtllm_deploy.study.up import Up
from trtllm_deploy.workspace.folder import Workspace


def _note(**said: object) -> None:
    with Path(os.environ["STUDY_SERVERS"]).open("a") as file:
        file.write(json.dumps({**said, "at": time.monotonic()}) + "\n")


class NullServer:
    """llm_perf's null server in a process of its own, while the context lasts."""

    def __enter__(self) -> NullServer:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.url = f"127.0.0.1:{self._pipe.recv()}"
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._pipe.close()

    def end(self) -> None:
        """End it at once. Safe to repeat."""
        self._process.kill()
        self._process.join()


@contextmanager
def null_server(
    plan: CellPlan, file: DeploymentFile, workspace: Workspace, gpus: Sequence[str] = ()
) -> Iterator[Up]:
    """What :func:`trtllm_deploy.study.up.served` is in these tests."""
    name = plan.cell.name
    if os.environ.get("STUDY_FAULT", "/") in name:
        raise UserError("Triton ended with exit code 1 before it was ready: out of memory")
    with NullServer() as server:
        _note(cell=name, gpus=list(gpus), begins=True)
        try:
            yield Up(api.Endpoint(server.url, "grpc", MODEL))
        finally:
            _note(cell=name, gpus=list(gpus), begins=False)


class LightMeasurer(Measurer):
    """Measures null servers in whatever process it is used."""

    def __call__(self, stage: Stage, on_line: OnLine) -> bool:
        trtllm_deploy.study.measure.served = null_server
        return super().__call__(stage, on_line)


def light(make: Make | None) -> Make | None:
    """The same on null servers, where it measures."""
    if isinstance(make, Measurer):
        return LightMeasurer(make.asked, make.plans, make.again)
    return make


def run() -> None:
    """Run the command; the class is this module's, so that Ray's workers find it too."""
    executor = Planned.executor
    Planned.executor = lambda self, make=None, jobs=None: executor(self, light(make), jobs)  # type: ignore[method-assign]
    trtllm_deploy.builds.make.StageMaker = LightMaker  # type: ignore[misc]
    main()


if __name__ == "__main__":
    from tests.deploy.light_study import run as run_light

    run_light()

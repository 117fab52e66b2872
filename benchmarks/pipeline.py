"""What the pipeline itself costs: planning, building nothing, rendering, and idle GPUs.

    python benchmarks/pipeline.py [--json FILE] [--no-ray]

The makespan is that of 64 engine builds behind 16 checkpoints on 8 GPU slots, with stages that only
sleep, in real worker processes and on a real Ray cluster of two local nodes. Estimates come from
manifests of an earlier build that took up to 15 % more or less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

sys.path[0] = str(Path(__file__).parent.parent)  # benchmarks is imported as a package

from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.builds.build import build
from trtllm_deploy.builds.critical_path import Node, Task, lower_bound
from trtllm_deploy.builds.estimate import about
from trtllm_deploy.builds.executor import Executor, OnLine
from trtllm_deploy.builds.local import LocalExecutor
from trtllm_deploy.builds.progress import BuildProgress
from trtllm_deploy.builds.ray_cluster import RayExecutor, connect
from trtllm_deploy.plan.plan import CellPlan, Stage, distinct, plan
from trtllm_deploy.spec.deployment_file import Cell, load_deployment
from trtllm_deploy.spec.settings import TritonSettings
from trtllm_deploy.store.store import Store, content_key
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.gather import gather

MODEL = Path(__file__).parents[1] / "examples/number-words/model"
SLOTS = 8
SECONDS = 100.0  # lower bound of the simulated build; stands for hours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--no-ray", action="store_true", help="leave out the Ray cluster")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures |= plan_many(root)
        figures |= build_nothing(root)
        figures |= render_many(root)
        bound, sequence = simulated_bounds()
        took = makespan(root / "local", _local)
        figures["makespan_ratio_local"] = took / bound
        if not options.no_ray:
            with ray_cluster():
                figures["makespan_ratio_ray"] = makespan(root / "ray", _ray) / bound
        figures["speedup_over_sequence"] = sequence / took
    for name, value in figures.items():
        print(f"{name:<26} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def deployment(
    root: Path, backend: str, models: int, precisions: Sequence[str], cells: int
) -> Path:
    """A deployment file with as many cells."""
    lengths = ["128,128", "2048,128", "128,2048", "2048,2048", "1024,1024"]
    batches = list(range(1, cells // (models * len(precisions) * len(lengths)) + 1))
    spec = {
        "backend": backend,
        "release": "1.2",
        "models": {f"model{number}": {"source": str(MODEL)} for number in range(models)},
        "precisions": list(precisions),
        "calibration": {"data": str(MODEL.parent / "calibration.jsonl")},
        "matrix": {"max_batch_size": batches, "isl_osl": lengths},
        "triton": {"decoupled_mode": True},
    }
    path = root / f"{backend}-{cells}.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def plan_many(root: Path) -> dict[str, float]:
    """From a file of 10,000 cells to their stages; time and memory in runs of their own."""
    path = deployment(root, "tensorrt", 20, ("fp16", "bf16", "fp8", "int8_wo", "int8_sq"), 10_000)

    def run() -> list[CellPlan]:
        file = load_deployment(path)
        return plan(file, gather(file, Workspace(root / "planned")))

    run()  # imports, digests of the model
    started = time.perf_counter()
    plans = run()
    seconds = time.perf_counter() - started
    assert len(plans) == 10_000
    del plans
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"plan_10000_cells_s": seconds, "plan_peak_mb": peak / 1e6}


def build_nothing(root: Path) -> dict[str, float]:
    """The command on 1,000 built cells, from start to exit."""
    path = deployment(root, "reference", 4, ("fp16", "bf16", "fp8", "int8_wo", "int8_sq"), 1_000)
    space = Workspace(root / "built")
    file = load_deployment(path)
    plans = plan(file, gather(file, space))
    for stage in distinct(plans):
        _fill(space.store, stage)
    command = [sys.executable, "-m", "trtllm_deploy.cli.main", "build", str(path)]
    command += ["--workspace", str(space.root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # gives the cells their names
    started = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - started
    assert f"{len(distinct(plans))} artifacts were there already" in said, said
    return {"noop_build_1000_cells_s": seconds}


_FILES = {"repository": 12, "engine": 2, "checkpoint": 3, "fetch": 5}  # as many as real ones have


def _fill(store: Store, stage: Stage) -> None:
    folder = store.path(stage.kind, stage.key)
    folder.mkdir(parents=True)
    names = [f"file{number}" for number in range(_FILES[stage.kind])]
    for name in names:
        (folder / name).touch()
    manifest = {"stage": stage.kind, "files": dict.fromkeys(names, 0), "made_from": {}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seconds": 1, "about": {}}))


def render_many(root: Path, count: int = 200) -> dict[str, float]:
    """Model repositories of the tensorrt backend, written to disk."""
    jobs = [
        RepositoryJob(root / f"r{n}", "1.2", root / "engine", MODEL, 1 + n, TritonSettings())
        for n in range(count + 1)
    ]
    BACKENDS["tensorrt"].make_repository(jobs.pop())  # compiles the templates
    started = time.perf_counter()
    for job in jobs:
        BACKENDS["tensorrt"].make_repository(job)
    return {"repositories_per_s": count / (time.perf_counter() - started)}


@dataclass(frozen=True)
class Sleep:
    """Makes a stage by sleeping as long as the simulated stage takes."""

    workspace: Workspace

    def __call__(self, stage: Stage, _: OnLine) -> bool:
        def maker(target: Path) -> None:
            time.sleep(stage.made_from["seconds"])
            (target / "engine").touch()

        return self.workspace.store.make(stage.kind, stage.made_from, maker)[1]


def simulated() -> list[CellPlan]:
    """64 cells of 16 checkpoints; durations as spread as those of small and large models."""
    draw = random.Random(2048)
    checkpoints = [draw.uniform(2, 8) for _ in range(16)]
    engines = [draw.lognormvariate(1.5, 0.6) for _ in range(64)]
    scale = SECONDS * SLOTS / (sum(checkpoints) + sum(engines))
    plans = []
    for number, seconds in enumerate(engines):
        which = number % 16
        cell = Cell(f"model{which}", "fp8", 1, 1, 128, 128, number)
        fetched = _stage("fetch", cell, f"fetch {which}", 0.0, ())
        before = checkpoints[which] * scale
        checkpoint = _stage("checkpoint", cell, f"c {which}", before, (fetched.key,), gpus=1)
        engine = _stage("engine", cell, f"e {number}", seconds * scale, (checkpoint.key,), gpus=1)
        repository = _stage("repository", cell, f"r {number}", 0.0, (engine.key,))
        plans.append(CellPlan(cell, fetched, checkpoint, engine, repository))
    return plans


def _stage(
    kind: Any, cell: Cell, title: str, seconds: float, inputs: tuple[str, ...], gpus: int = 0
) -> Stage:
    made_from = {"title": title, "seconds": seconds}
    return Stage(kind, content_key(made_from), made_from, cell, title, inputs, gpus)


def simulated_bounds() -> tuple[float, float]:
    """What no schedule can beat, and what a script takes that does one after the other."""
    stages = distinct(simulated())
    seconds = {stage.key: stage.made_from["seconds"] for stage in stages}
    tasks = [Task(each.key, each.inputs, each.gpus, seconds[each.key]) for each in stages]
    return lower_bound(tasks, [Node("", SLOTS, os.cpu_count() or 1)]), sum(seconds.values())


def makespan(root: Path, executor: Callable[[Workspace], Executor]) -> float:
    """Seconds that the simulated build takes, workers started and all artifacts written."""
    space, plans, draw = Workspace(root), simulated(), random.Random(4)
    for stage in distinct(plans):
        folder = space.store.path(stage.kind, content_key({"earlier": stage.key}))
        folder.mkdir(parents=True)
        seconds = stage.made_from["seconds"] * draw.uniform(0.85, 1.15)
        manifest = {"stage": stage.kind, "about": about(stage), "seconds": seconds, "files": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    started = time.perf_counter()
    outcome = build(plans, space, lambda: executor(space), BuildProgress(Console(quiet=True)))
    assert len(outcome.built) == 64, outcome.failures
    return time.perf_counter() - started


def _local(space: Workspace) -> Executor:
    return LocalExecutor(Sleep(space), [str(number) for number in range(SLOTS)])


def _ray(space: Workspace) -> Executor:
    return RayExecutor(Sleep(space), space.root)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Two nodes of local processes with half of the slots each, GPUs only as numbers."""
    import ray
    from ray.cluster_utils import Cluster

    half = {"num_cpus": SLOTS // 2, "num_gpus": SLOTS // 2}
    cluster: Any = Cluster(initialize_head=True, head_node_args=half)
    cluster.add_node(**half)
    try:
        connect(cluster.address)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()

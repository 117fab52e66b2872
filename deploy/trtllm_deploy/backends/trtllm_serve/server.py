"""trtllm-serve as a server: the command here and on a cluster, readiness, metrics.

In: a folder that the backend filled. Out: values of :mod:`trtllm_deploy.backends.server`. Starts
nothing, and imports nothing of TensorRT-LLM: it may be in an environment of its own.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from trtllm_deploy.backends.server import SAID, Chosen, Cluster, Kind, Launch, Server
from trtllm_deploy.backends.trtllm_serve.options import has, mistakes
from trtllm_deploy.machine import supervise
from trtllm_deploy.machine.environment import is_secret
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import read_json, read_json_object
from trtllm_deploy.releases.release import Release, load_release

CONFIG = "trtllm-serve.yaml"
_SCHEMA = "schemas/trtllm-serve-config.schema.json"
_LAUNCHER = "trtllm-llmapi-launch"  # one task for each rank; the first runs the server
_FIX = (
    "run in the TensorRT-LLM container, or name one: --executable PATH, or 'executable:"
    " {trtllm-serve: PATH}' in the deployment file"
)


def trtllm_serve(launch: Launch) -> Server:
    """One trtllm-serve, or mpirun with one rank of it for each GPU.

    Raises UserError: there is no trtllm-serve here.
    """
    said, chosen = read_json_object(launch.folder / SAID), launch.chosen
    ranks = int(said["world_size"])
    spread = ranks > 1 and not chosen.no_mpi
    environment = {
        **{name: value for name, value in os.environ.items() if _passed_on(name)},
        **({"TLLM_LOG_LEVEL": "DEBUG"} if chosen.log_verbose else {}),
        **({"CUDA_VISIBLE_DEVICES": ",".join(chosen.gpus)} if chosen.gpus else {}),
        **chosen.variables,
    }
    if spread:
        environment["OMPI_MCA_orte_tmpdir_base"] = str(supervise.scratch(launch.name))
    words = _words(launch.folder, str(said["model"]), launch.address, str(launch.ports.http))
    program = [chosen.program("trtllm-serve", _FIX), *words]
    release = load_release(str(said["release"]))
    return Server(
        command=tuple([*_mpirun(chosen, ranks), _LAUNCHER, *program] if spread else program),
        environment=environment,
        world_size=ranks,
        model=str(said["model"]),
        protocol="openai",
        listens=("http",),
        asked="http",
        ready="/health",
        metrics="http",
        metrics_path=_metrics(release),
        idle=tuple(_idle(chosen, spread)),
        absent=f"{ranks} ranks need Open MPI: run in the container, or with --no-mpi",
    )


def _metrics(release: Release) -> str:
    """Prometheus' page came with ``return_perf_metrics``; before there were iterations only."""
    return "/prometheus/metrics" if has(release, "return_perf_metrics") else "/metrics"


def _passed_on(name: str) -> bool:
    return name.startswith(("TLLM_", "TRTLLM_")) and not is_secret(name)


def _words(folder: Path | str, model: str, address: str, port: str) -> list[str]:
    """What trtllm-serve is told beside its file: all releases of one name for that."""
    at = str(folder) if isinstance(folder, str) else str(folder.absolute())
    place = ["--host", address, "--backend", "pytorch", "--extra_llm_api_options", f"{at}/{CONFIG}"]
    return [f"{at}/{model}", *place, "--port", port]


def _mpirun(chosen: Chosen, ranks: int) -> list[str]:
    words = ["mpirun", "--allow-run-as-root", "-n", str(ranks)]
    words += ["--oversubscribe"] if chosen.oversubscribe else []
    return words + (["--hostfile", str(chosen.hostfile.absolute())] if chosen.hostfile else [])


def _idle(chosen: Chosen, spread: bool) -> Iterator[tuple[str, str]]:
    if chosen.orchestrator:
        yield "--mode", "trtllm-serve has none"
    if not spread:
        for flag, given in (
            ("--oversubscribe", chosen.oversubscribe),
            ("--hostfile", chosen.hostfile is not None),
        ):
            if given:
                yield flag, "mpirun doesn't start it"


def serve_cluster(release: str, model: str, ranks: int) -> Cluster:
    """trtllm-serve in NVIDIA's image of a release, a task of the scheduler for each rank."""

    def script(folder: str, address: str, ports: Mapping[str, str]) -> str:
        launcher = f"{_LAUNCHER} " if ranks > 1 else ""
        *words, _ = _words(folder, model, address, "")
        return f"exec {launcher}trtllm-serve {shlex.join(words)} {ports['http']}\n"

    return Cluster(
        app="trtllm-serve",
        container="trtllm",
        image=load_release(release).image,
        listens=("http",),
        metrics="http",
        ready="/health",
        live="/health",
        script=script,
        metrics_path=_metrics(load_release(release)),
    )


def judge(folder: Path, gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """What will go wrong with a folder."""
    said, where = read_json_object(folder / SAID), str(folder / CONFIG)
    if not (folder / str(said["model"]) / "config.json").is_file():
        yield Finding(
            "error",
            f"there is no checkpoint {folder / str(said['model'])}",
            str(folder / SAID),
            "trtllm-serve takes what isn't there for the name of a model on the hub",
            "build the cell again; a workspace that was moved has to be",
        )
    if gpus and int(said["world_size"]) > len(gpus):
        yield Finding(
            "error",
            f"it has {said['world_size']} ranks, and {len(gpus)} GPUs are visible",
            str(folder / SAID),
            "each rank takes a GPU",
            "name as many with --gpus, or build it with a smaller tp x pp",
        )
    try:
        settings: Any = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        unknown = list(mistakes(load_release(str(said["release"])), settings))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        yield Finding("error", "can't be read", where, str(error), "build the cell again")
        return
    for name, instead in unknown:
        what = f"trtllm-serve of TensorRT-LLM {said['release']} has no {name}"
        yield Finding("error", what, where, "it refuses options that it doesn't know", instead)
    for told in _of_schema(settings):
        why = "the installed TensorRT-LLM's own schema says so"
        yield Finding("error", told, where, why, "see 'options:' of the deployment file")


def _of_schema(settings: Any) -> Iterator[str]:
    """What the schema that newer wheels hold says; nothing where it or jsonschema isn't there."""
    found = find_spec("tensorrt_llm")
    file = Path(found.origin).parent / _SCHEMA if found and found.origin else None
    if file is None or not file.is_file() or find_spec("jsonschema") is None:
        return
    import jsonschema

    checker = jsonschema.validators.validator_for(schema := read_json(file))(schema)
    for error in checker.iter_errors(settings):
        yield f"{'.'.join(map(str, error.path)) or 'the file'}: {error.message}"


TRTLLM_SERVE = Kind("trtllm-serve", "trtllm-serve", trtllm_serve, judge=judge)

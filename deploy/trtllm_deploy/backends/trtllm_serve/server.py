"""trtllm-serve as a server: the command here and on a cluster, readiness, metrics.

In: a folder that the backend filled. Out: values of :mod:`trtllm_deploy.backends.server`. Starts
nothing, and imports nothing of TensorRT-LLM: it may be in an environment of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from trtllm_deploy.backends.server import SAID, Chosen, Cluster, Kind, Launch, Server, lacking
from trtllm_deploy.backends.trtllm_serve.options import has, mistakes
from trtllm_deploy.machine import supervise
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
    environment = chosen.environ(("TLLM_", "TRTLLM_"), {"TLLM_LOG_LEVEL": "DEBUG"})
    if spread:
        environment["OMPI_MCA_orte_tmpdir_base"] = str(supervise.scratch(launch.name))
    words = _words(launch.folder, str(said["model"]), launch.address, str(launch.ports.http))
    program = [chosen.program("trtllm-serve", _FIX), *words]
    release = load_release(str(said["release"]))
    idle = {"--mode": "trtllm-serve has none"}
    if not spread:
        idle |= dict.fromkeys(("--oversubscribe", "--hostfile"), "mpirun doesn't start it")
    return Server(
        command=tuple([*_mpirun(chosen, ranks), _LAUNCHER, *program] if spread else program),
        environment=environment,
        world_size=ranks,
        model=str(said["model"]),
        metrics_path=_metrics(release),
        drains=not spread,  # uvicorn waits for answers; mpirun kills ranks a second later
        idle=tuple((flag, idle[flag]) for flag in chosen.launching if flag in idle),
        absent=f"{ranks} ranks need Open MPI: run in the container, or with --no-mpi",
    )


def _metrics(release: Release) -> str:
    """Prometheus' page came with ``return_perf_metrics``; before there were iterations only."""
    return "/prometheus/metrics" if has(release, "return_perf_metrics") else "/metrics"


def _words(folder: Path | str, model: str, address: str, port: str) -> list[str]:
    """What trtllm-serve is told beside its file: all releases of one name for that."""
    at = str(folder) if isinstance(folder, str) else str(folder.absolute())
    place = ["--host", address, "--backend", "pytorch", "--extra_llm_api_options", f"{at}/{CONFIG}"]
    return [f"{at}/{model}", *place, "--port", port]


def _mpirun(chosen: Chosen, ranks: int) -> list[str]:
    words = ["mpirun", "--allow-run-as-root", "-n", str(ranks)]
    words += ["--oversubscribe"] if chosen.oversubscribe else []
    return words + (["--hostfile", str(chosen.hostfile.absolute())] if chosen.hostfile else [])


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
        script=script,
        metrics_path=_metrics(load_release(release)),
    )


def judge(folder: Path, gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """What will go wrong with a folder."""
    said, where = read_json_object(folder / SAID), str(folder / CONFIG)
    yield from lacking("trtllm-serve", folder, said, folder / str(said["model"]), gpus)
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

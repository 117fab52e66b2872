"""vLLM as a server: ``vllm serve`` here and on a cluster, one process that starts its own ranks.

In: a folder that the backend filled. Out: values of :mod:`trtllm_deploy.backends.server`. Starts
nothing, and imports nothing of vLLM: it may be in an environment of its own.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trtllm_deploy.backends.server import SAID, Cluster, Kind, Launch, Server, lacking
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import read_json_object

CONFIG = "vllm.yaml"
_IMAGE = "vllm/vllm-openai:v0.32.0"
_OWN = "vLLM starts its processes itself, on this host"
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # else it reports to its makers
_FIX = (
    "pip install 'trtllm-deploy[vllm]', or name one: --executable PATH, or 'executable:"
    " {vllm: PATH}' in the deployment file"
)


def vllm(launch: Launch) -> Server:
    """One ``vllm serve``. Raises UserError: there is no vLLM here, or the folder isn't whole."""
    said = read_json_object(launch.folder / SAID)
    program = launch.chosen.program("vllm", _FIX)
    port = str(launch.ports.http)
    words = _words(launch.folder, said["checkpoint"], launch.address, port)
    return Server(
        command=(program, *words, "--shutdown-timeout", str(launch.exit_seconds)),
        environment={
            **_QUIET,
            **launch.chosen.environ(("VLLM_",), {"VLLM_LOGGING_LEVEL": "DEBUG"}),
        },
        world_size=int(said["world_size"]),
        model=str(said["model"]),
        drains=True,
        zero=1,  # so it ends when its engine was killed
        idle=tuple((flag, _OWN) for flag in launch.chosen.launching),
    )


def _words(folder: Path | str, checkpoint: str, address: str, port: str) -> list[str]:
    config = f"{Path(folder).absolute()}/{CONFIG}"
    return ["serve", checkpoint, "--config", config, "--host", address, "--port", port]


def vllm_cluster() -> Cluster:
    """vLLM in its own image, one process for all ranks of a node."""

    def script(folder: str, address: str, ports: Mapping[str, str]) -> str:
        engine = folder.replace("/ensemble_models/", "/engines/")
        *words, _ = _words(folder, f"{engine}/checkpoint", address, "")
        quiet = " ".join(f"{name}={value}" for name, value in _QUIET.items())
        return f"exec env {quiet} vllm {shlex.join(words)} {ports['http']}\n"

    return Cluster(
        app="vllm",
        container="vllm",
        image=_IMAGE,
        script=script,
        each_rank=False,
    )


def judge(folder: Path, gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """What will go wrong with a folder, or what it leaves out."""
    said = read_json_object(folder / SAID)
    checkpoint = Path(str(said.get("checkpoint")))
    yield from lacking("vLLM", folder, said, checkpoint, gpus)
    for name in said.get("left_out", ()):
        why = load_data("backends/vllm/settings.yaml")["left_out"].get(name, "")
        yield Finding(
            "warning", f"vLLM has no counterpart of {name}", str(folder / SAID), why, "remove it"
        )
    yield from _unknown(folder / CONFIG)


def _unknown(file: Path) -> Iterator[Finding]:
    """Options that the release whose options are known hasn't; another one may."""
    data = load_data("backends/vllm/options.yaml")
    known = {*data["flags"], *data["values"]}
    try:
        said: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        names = [str(name) for name in said]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        yield Finding("error", "can't be read", str(file), str(error), "build the cell again")
        return
    for name in names:
        if name.removeprefix("no-") not in known:
            near = difflib.get_close_matches(name, known, n=1)
            yield Finding(
                "warning",
                f"vLLM {data['release']} has no option {name}",
                str(file),
                "it ends at once where it doesn't know an option",
                f"did you mean {near[0]}?" if near else "see vllm serve --help=all",
            )


VLLM = Kind(
    "vllm",
    "vLLM",
    vllm,
    failures="backends/vllm/failures.yaml",
    error=(
        r"(?:\(\w+(?: pid=\d+)?\) )*(?:ERROR \d\d-\d\d [\d:]+ (?:\[[^\]]+\] )?(?!.*Traceback)"
        r"(?P<vllm>(?:\S+\.)*\w*(?:Error|Exception): .+|.*(?:died|failed).*))"
    ),
    judge=judge,
)

"""The deployment file: from the user's YAML to checked values and the cells of the matrix.

Nothing behind this module checks values of the file by themselves again. Knows nothing of how
stages run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_perf.errors import UserError
from trtllm_deploy.releases.commands import Scalar
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.flags import check_flags
from trtllm_deploy.spec.located import KeyPath, Located, first_error, load_located
from trtllm_deploy.spec.schema import BACKEND_NAMES, DEFAULT_CALIBRATION, Deployment, ModelSpec
from trtllm_deploy.spec.settings import TritonSettings, lacking
from trtllm_deploy.spec.values import as_list

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.]")
_UNNAMED = {"backend", "release", "checkpoint_with", "kv_cache_dtype", "build", "triton"}
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix. Lengths are in tokens."""

    model: str
    precision: str
    tp: int
    pp: int
    isl: int
    osl: int
    max_batch_size: int
    build: tuple[tuple[str, Scalar], ...] = ()
    """build flags that the matrix varies"""
    triton: tuple[tuple[str, Scalar], ...] = ()
    """serving settings that the matrix varies"""
    variant: str = ""
    """what tells it from one that is named alike otherwise: of another backend, of another file"""
    backend: str = "reference"

    @property
    def world_size(self) -> int:
        """GPUs that serve the cell."""
        return self.tp * self.pp

    @property
    def name(self) -> str:
        """The user's handle, for example ``qwen2_7b_fp8_tp1_pp1_isl2048_osl1024_bs8``."""
        both = (*self.build, *self.triton)
        varied = "".join(f"_{flag}-{_UNNAMEABLE.sub('-', str(x))}" for flag, x in both)
        return (
            f"{self.model}_{self.precision}_tp{self.tp}_pp{self.pp}"
            f"_isl{self.isl}_osl{self.osl}_bs{self.max_batch_size}{varied}"
            f"{'_' if self.variant else ''}{self.variant}"
        )


@dataclass(frozen=True, slots=True)
class DeploymentFile:
    """A deployment file as read: its values, and where they stand."""

    located: Located
    deployment: Deployment
    variant: str = ""
    """of all its cells' names"""

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.located.file

    def resolve(self, path: str) -> Path:
        """A path of the file, made absolute: relative ones start at the file's folder."""
        place = Path(path)
        with suppress(RuntimeError):  # ~name of a user that isn't known here: no such folder then
            place = place.expanduser()
        return (self.path.resolve().parent / place).resolve()

    def error(self, key: KeyPath, what: str, fix: str | None = None) -> UserError:
        """An error about the value at ``key``."""
        dotted = ".".join(map(str, key))
        return UserError(
            f"{dotted}: {what}" if dotted else what,
            where=self.path,
            line=self.located.line(key),
            fix=fix,
        )

    def executable(self, cell: Cell) -> str | None:
        """The program that serves a cell: a path, or a name on PATH; None where it isn't said."""
        said = self.deployment.executable.get(cell.backend)
        return said if said is None or "/" not in said else str(self.resolve(said))

    def calibration_data(self) -> Path | str:
        """A jsonl or a data set's folder; a string is the hub's name of a data set."""
        data = self.deployment.calibration.data
        path = self.resolve(data)
        return path if path.exists() else data

    def cells(self) -> list[Cell]:
        """All cells, in the order of the file."""
        spec = self.deployment
        given = spec.matrix.model_extra or {}
        serving = {key: given[key] for key in given if self.is_serving(key)}
        flags = {key: given[key] for key in given if key not in serving}
        several = len(spec.backend) > 1
        ways = [
            ("_".join(filter(None, (each if several else "", self.variant))), each)
            for each in spec.backend
        ]
        return [
            Cell(
                name, precision, model.tp, model.pp, isl, osl, batch, build, triton, way[0], way[1]
            )
            for (name, model), precision, (isl, osl), batch, build, triton, way in product(
                spec.models.items(),
                spec.precisions,
                spec.matrix.isl_osl,
                spec.matrix.max_batch_size,
                _combined(flags),
                _combined(serving),
                ways,
            )
        ]

    def is_serving(self, key: str) -> bool:
        """Whether a key of the matrix is a setting of ``triton:``; a build flag comes first."""
        flags = load_release(self.deployment.release).commands["trtllm-build"].flags
        return key in TritonSettings.model_fields and key not in flags

    def settings(self) -> Mapping[str, Any]:
        """What makes a cell and isn't in its name."""
        made = self.deployment.model_dump(mode="json", include=_UNNAMED, exclude_none=True)
        first, *others = self.deployment.backend
        made |= {} if others else {"backend": first}
        return {**made, "options": self.deployment.options} if self.deployment.options else made

    def given_flags(self, cell: Cell) -> dict[str, Any]:
        """The flags of trtllm-build that the file decides; lengths in tokens."""
        return {
            "max_batch_size": cell.max_batch_size,
            "max_input_len": cell.isl,
            "max_seq_len": cell.isl + cell.osl,
            **self.deployment.build,
            **dict(cell.build),
        }

    def flag(self, cell: Cell, name: str) -> Any:
        """What a flag of trtllm-build will be: given, else the release's default, None without."""
        given = self.given_flags(cell)
        if name in given:
            return given[name]
        known = load_release(self.deployment.release).commands["trtllm-build"].flags.get(name)
        return known.default if known else None

    def step_tokens(self, cell: Cell) -> int | None:
        """max_num_tokens as trtllm-build clips it; None where neither file nor release says it.

        A step can't have more tokens than max_seq_len x max_batch_size: check_max_num_tokens in
        TensorRT-LLM's _common.py, the same from 0.11.0 to 1.0.0.
        """
        asked = self.flag(cell, "max_num_tokens")
        most = int(self.flag(cell, "max_seq_len")) * int(self.flag(cell, "max_batch_size"))
        return None if asked is None else min(int(asked), most)


def _combined(varied: Mapping[str, Any]) -> list[tuple[tuple[str, Any], ...]]:
    """Every combination of the values; a single one of none where nothing is varied."""
    values = product(*map(as_list, varied.values()))
    return [tuple(zip(varied, each, strict=True)) for each in values]


def load_deployment(path: Path) -> DeploymentFile:
    """Read and check a deployment file.

    Raises UserError with the line and key of the first thing that is wrong, and how to mend it.
    """
    return checked(load_located(path))


def checked(located: Located) -> DeploymentFile:
    """The deployment file of these values; see ``load_deployment``."""
    path = located.file
    if not isinstance(located.value, dict):
        raise UserError(
            "isn't a deployment file",
            where=path,
            line=1,
            fix="start with 'models:', as in examples/quickstart.yaml",
        )
    try:
        file = DeploymentFile(located, Deployment.model_validate(located.value))
    except ValidationError as error:
        raise first_error(located, error, Deployment, path) from None
    _check(file)
    return file


def _check(file: DeploymentFile) -> None:
    """What one field alone can't tell."""
    spec = file.deployment
    for name, model in spec.models.items():
        _check_model(file, name, model)
    _check_backends(file)
    check_flags(file)
    for name, wrong in lacking(spec.triton, spec.release):
        raise file.error(("triton", name), wrong, "remove it")
    data = spec.calibration.data
    is_name = _HUB_ID.fullmatch(data) and not data.endswith((".jsonl", ".json"))
    place = file.calibration_data()
    if isinstance(place, Path) and not (place.is_file() or place.is_dir()):
        raise file.error(("calibration", "data"), f"{place} is no file or folder")
    if not isinstance(place, Path) and not is_name:
        raise file.error(
            ("calibration", "data"),
            f"there is no file {file.resolve(data)}, and {data!r} names no data set",
            f"name a jsonl, a folder, or a data set such as {DEFAULT_CALIBRATION}",
        )
    files: Mapping[KeyPath, str | None] = {
        ("measure", "data"): spec.measure.data if spec.measure else None,
        **{("models", name, "shape"): model.shape for name, model in spec.models.items()},
    }
    for key, path in files.items():
        if path is not None and not file.resolve(path).is_file():
            raise file.error(key, f"there is no file {file.resolve(path)}", "check the path")


def _check_backends(file: DeploymentFile) -> None:
    spec = file.deployment
    having = load_release(spec.release).backends
    for each in spec.backend:
        if each not in having and not BACKEND_NAMES[each].get("any_release"):
            raise file.error(
                ("backend",),
                f"TensorRT-LLM {spec.release} has no {each}",
                f"choose from {', '.join(having)}, or another release",
            )
    for each in spec.options:
        if not BACKEND_NAMES[each].get("options"):
            what = f"{each}'s server takes none; 'triton:' has its settings"
            raise file.error(("options", each), what, "remove it")


def _check_model(file: DeploymentFile, name: str, model: ModelSpec) -> None:
    key = ("models", name)
    if not _MODEL_NAME.fullmatch(name):
        raise file.error(key, "a model's name becomes a folder", "use letters, digits, _ . -")
    folder = file.resolve(model.source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise file.error(
                (*key, "source"),
                f"the folder {folder} has no config.json",
                "name the folder of a Hugging Face checkpoint",
            )
    elif model.source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model.source):
        raise file.error(
            (*key, "source"),
            f"there is no folder {folder}, and {model.source!r} is no Hugging Face id",
            "name a folder, or an id such as Qwen/Qwen2-7B-Instruct",
        )

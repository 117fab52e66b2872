"""The deployment file: from the user's YAML to checked values and the cells of the matrix.

Here text from outside becomes values; nothing behind this module checks types again. Knows
nothing of how stages run.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from client.errors import UserError
from deploy.located import KeyPath, Located, load_located
from deploy.precision import PRECISIONS
from deploy.release import release_names
from deploy.repository import TritonSettings

BackendName = Literal["reference"]
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _unique(values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value!r} is listed twice")
    if not values:
        raise ValueError("the list is empty")
    return values


def _isl_osl(value: Any) -> Any:
    """``2048,1024`` or ``[2048, 1024]``."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        raise ValueError("write input and output length as ISL,OSL, for example 2048,1024")
    return tuple(parts)


def _known(kind: str, names: tuple[str, ...]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in names:
            near = difflib.get_close_matches(str(value), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
            raise ValueError(f"there is no {kind} {value!r}; {hint}")
        return value

    return BeforeValidator(check)


Tokens = Annotated[int, Field(gt=0, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Precision = Annotated[str, _known("precision", tuple(PRECISIONS))]
IslOsl = Annotated[
    tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]], BeforeValidator(_isl_osl)
]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Block):
    """One model of the matrix."""

    source: str = Field(description="local folder (relative to this file) or Hugging Face id")
    revision: str = Field(default="main", description="branch, tag or commit on the hub")
    tp: Count = Field(default=1, description="tensor parallel size")
    pp: Count = Field(default=1, description="pipeline parallel size")
    trust_remote_code: bool = Field(
        default=False, description="run code that the checkpoint brings along"
    )


class CalibrationSpec(_Block):
    """Prompts that quantization looks at."""

    data: str = Field(description="jsonl with text_input (or text), relative to this file")
    samples: Count = Field(default=512, description="prompts to use at most")
    max_length: Tokens = Field(default=512, description="tokens of each prompt to use at most")


class MatrixSpec(_Block):
    """What is varied; each combination is a cell, for each model and precision."""

    max_batch_size: Annotated[list[Count], BeforeValidator(_as_list), AfterValidator(_unique)] = (
        Field(description="requests that one step of the engine may hold")
    )
    isl_osl: Annotated[list[IslOsl], BeforeValidator(_as_list), AfterValidator(_unique)] = Field(
        description="input and output length that an engine is built for, in tokens"
    )


class BuildSpec(_Block):
    """Engine build flags that are the same for all cells."""

    max_num_tokens: Tokens = Field(default=8192, description="tokens of one forward pass at most")
    tokens_per_block: Tokens = Field(default=32, description="tokens of one KV-cache block")


class MeasureSpec(_Block):
    """What ``run`` measures at each cell."""

    data: str = Field(description="jsonl with text_input and, for a score, reference")
    concurrency: Annotated[list[Count], BeforeValidator(_as_list), AfterValidator(_unique)] = Field(
        default=[1], description="requests kept in flight; one load for each number"
    )
    max_tokens: Tokens | None = Field(
        default=None, description="output limit; default: OSL of the cell"
    )
    request_timeout: float = Field(
        default=120, gt=0, description="seconds until a request counts as lost"
    )


class Deployment(_Block):
    """A whole deployment file."""

    backend: Annotated[BackendName, _known("backend", get_args(BackendName))] = Field(
        default="reference", description="how cells are served"
    )
    release: Annotated[str, _known("release", tuple(release_names()))] = Field(
        default="1.2", description="TensorRT-LLM release, in quotes"
    )
    models: Annotated[dict[str, ModelSpec], Field(min_length=1)]
    precisions: Annotated[list[Precision], BeforeValidator(_as_list), AfterValidator(_unique)] = (
        Field(description="see the table of precisions")
    )
    calibration: CalibrationSpec | None = None
    matrix: MatrixSpec
    build: BuildSpec = BuildSpec()
    triton: TritonSettings = TritonSettings()
    measure: MeasureSpec | None = None


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

    @property
    def name(self) -> str:
        """The user's handle, for example ``qwen2_7b_fp8_tp1_pp1_isl2048_osl1024_bs8``."""
        return (
            f"{self.model}_{self.precision}_tp{self.tp}_pp{self.pp}"
            f"_isl{self.isl}_osl{self.osl}_bs{self.max_batch_size}"
        )


@dataclass(frozen=True, slots=True)
class DeploymentFile:
    """A deployment file as read: its values, and where they stand."""

    located: Located
    deployment: Deployment

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.located.file

    def resolve(self, path: str) -> Path:
        """A path of the file, made absolute: relative ones start at the file's folder."""
        return (self.path.resolve().parent / Path(path).expanduser()).resolve()

    def error(self, key: KeyPath, what: str, fix: str | None = None) -> UserError:
        """An error about the value at ``key``."""
        dotted = ".".join(map(str, key))
        return UserError(
            f"{dotted}: {what}" if dotted else what,
            where=self.path,
            line=self.located.line(key),
            fix=fix,
        )

    def cells(self) -> list[Cell]:
        """All cells, in the order of the file."""
        spec = self.deployment
        return [
            Cell(name, precision, model.tp, model.pp, isl, osl, batch)
            for (name, model), precision, (isl, osl), batch in itertools.product(
                spec.models.items(),
                spec.precisions,
                spec.matrix.isl_osl,
                spec.matrix.max_batch_size,
            )
        ]

    def cell(self, name: str) -> Cell:
        """The cell of that name.

        Raises:
            UserError: there is none; the nearest name is given.
        """
        cells = {cell.name: cell for cell in self.cells()}
        if name not in cells:
            near = difflib.get_close_matches(name, cells, n=1, cutoff=0)
            raise UserError(
                f"there is no cell {name!r}", where=self.path, fix=f"did you mean {near[0]!r}?"
            )
        return cells[name]


def load_deployment(path: Path) -> DeploymentFile:
    """Read and check a deployment file.

    Raises:
        UserError: with the line and key of the first thing that is wrong, and how to mend it.
    """
    located = load_located(path)
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
        raise _first_error(located, error) from None
    _check(file)
    return file


def _first_error(located: Located, error: ValidationError) -> UserError:
    """The earliest error in the file as one line; a misspelt key before the one it then lacks."""
    found = []
    for detail in error.errors(include_url=False):
        key = _key_path(located.value, detail["loc"])
        found.append((located.line(key), key, detail))
    line, key, detail = min(found, key=lambda item: (item[2]["type"] == "missing", item[0]))
    dotted = ".".join(map(str, key))
    what, fix = detail["msg"].removeprefix("Value error, "), None
    if detail["type"] == "extra_forbidden":
        siblings = _fields_at(key[:-1])
        near = difflib.get_close_matches(str(key[-1]), siblings, n=1)
        what = f"unknown key {str(key[-1])!r}"
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(siblings)}"
    elif detail["type"] == "missing":
        what = f"the key {str(detail['loc'][-1])!r} is missing"
    return UserError(
        f"{dotted}: {what}" if dotted else what, where=located.file, line=line, fix=fix
    )


def _key_path(value: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """The part of a pydantic location that is a path in the file."""
    path: list[str | int] = []
    for step in loc:
        if not isinstance(value, (dict, list)):
            break
        try:
            value = value[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            continue  # a missing key, or a name that pydantic gives to a check
        path.append(step)
    return tuple(path)


def _fields_at(path: KeyPath) -> list[str]:
    """The keys that the schema allows at a path."""
    block: Any = Deployment
    for step in path:
        if isinstance(block, type) and issubclass(block, BaseModel):
            field = block.model_fields.get(str(step))
            block = field.annotation if field else None
        else:  # the value type of a dict
            block = get_args(block)[-1]
        block = next((kind for kind in _flat(block) if _is_block(kind)), block)
    return list(block.model_fields) if _is_block(block) else []


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _flat(kind: Any) -> Iterator[Any]:
    yield kind
    if not isinstance(kind, type) and not str(kind).startswith(("dict", "list")):
        for part in get_args(kind):
            yield from _flat(part)


def _check(file: DeploymentFile) -> None:
    """What one field alone can't tell."""
    spec = file.deployment
    for name, model in spec.models.items():
        _check_model(file, name, model)
    calibrated = [name for name in spec.precisions if PRECISIONS[name].calibrated]
    if calibrated and spec.calibration is None:
        raise file.error(
            ("precisions",),
            f"{calibrated[0]} needs calibration prompts",
            "add a 'calibration:' block with 'data: FILE.jsonl'",
        )
    data: Mapping[KeyPath, str | None] = {
        ("calibration", "data"): spec.calibration.data if spec.calibration else None,
        ("measure", "data"): spec.measure.data if spec.measure else None,
    }
    for key, path in data.items():
        if path is not None and not file.resolve(path).is_file():
            raise file.error(key, f"there is no file {file.resolve(path)}", "check the path")


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

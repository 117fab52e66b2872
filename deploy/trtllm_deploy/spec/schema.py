"""The schema of a deployment file: its blocks and keys, each with its meaning.

Text from outside becomes values here; what one value alone can't tell is checked in
:mod:`trtllm_deploy.spec.deployment_file`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from llm_perf.duration import parse_duration
from llm_perf.errors import UserError
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.environment import is_secret
from trtllm_deploy.releases.release import release_of
from trtllm_deploy.spec.precision import PRECISIONS
from trtllm_deploy.spec.settings import TritonSettings

BACKEND_NAMES: Mapping[str, Mapping[str, bool]] = load_data("backends/names.yaml")
KvCacheType = Literal["fp8", "int8"]
DEFAULT_CALIBRATION = "cnn_dailymail"


def as_list(value: Any) -> Any:
    """A list as it is; anything else as the only entry of one."""
    return value if isinstance(value, list) else [value]


def unique(values: list[Any]) -> list[Any]:
    """The list itself. Raises ValueError where it is empty or holds a value twice."""
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
            near = difflib.get_close_matches(str(value).lower(), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
            raise ValueError(f"there is no {kind} {value!r}; {hint}")
        return value

    return BeforeValidator(check)


def _release(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is no text; write it in quotes: "{value}"')
    try:
        release_of(value)
    except UserError as error:
        raise ValueError(str(error)) from None
    return value


Tokens = Annotated[int, Field(gt=0, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Annotated[str, _known("precision", tuple(PRECISIONS))]
BackendName = Annotated[str, _known("backend", tuple(BACKEND_NAMES))]
IslOsl = Annotated[
    tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]], BeforeValidator(_isl_osl)
]


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} can't be the name of an environment variable")
    if is_secret(name):
        raise ValueError(f"{name} is a secret; set it in the shell, not in a file")
    return name


Variable = Annotated[str, AfterValidator(_variable)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Block):
    """One model of the matrix."""

    source: str = Field(description="local folder (relative to this file) or Hugging Face id")
    revision: str = Field(default="main", description="branch, tag or commit on the hub")
    tp: Count = Field(default=1, description="tensor parallel size")
    pp: Count = Field(default=1, description="pipeline parallel size")
    shape: str | None = Field(
        default=None,
        description="config.json of the model, relative to this file: a plan needs no hub then",
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that the checkpoint brings along"
    )


class CalibrationSpec(_Block):
    """Prompts that quantization looks at."""

    data: str = Field(
        default=DEFAULT_CALIBRATION,
        description="jsonl with text_input (or text) or folder of a data set, relative to this"
        " file; or the hub's name of a data set",
    )
    samples: Count = Field(default=512, description="prompts to use at most")
    max_length: Tokens = Field(default=512, description="tokens of each prompt to use at most")


class VerifySpec(_Block):
    """How a new checkpoint is compared with the model it was made from."""

    prompts: Count = Field(default=32, description="prompts to compare on")
    min_top1: dict[Precision, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}, description="share of equal next tokens to ask for; by precision"
    )


class MatrixSpec(_Block):
    """What is varied; each combination is a cell, for each model and precision.

    Beside the two lengths and the batch size any flag of trtllm-build may be varied, and any
    setting of ``triton:`` that takes one value: such cells share their engine.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    max_batch_size: Annotated[list[Count], BeforeValidator(as_list), AfterValidator(unique)] = (
        Field(description="requests that one step of the engine may hold")
    )
    isl_osl: Annotated[list[IslOsl], BeforeValidator(as_list), AfterValidator(unique)] = Field(
        description="input and output length that an engine is built for, in tokens"
    )


def _limits(texts: list[str]) -> list[str]:
    """Limits that llm_perf reads."""
    from llm_perf.api import parse_limit

    for text in texts:
        try:
            parse_limit(text, "limits")
        except UserError as error:
            raise ValueError(str(error).removeprefix("limits: ")) from error
    return texts


Limits = Annotated[list[str], BeforeValidator(as_list), AfterValidator(_limits)]


class MeasureSpec(_Block):
    """What ``run`` measures at each cell."""

    data: str = Field(description="jsonl with text_input and, for a score, reference")
    concurrency: Annotated[list[Count], BeforeValidator(as_list), AfterValidator(unique)] | None = (
        Field(
            default=None,
            description="requests kept in flight; one load for each number; default: 1, or no such"
            " load beside request_rate",
        )
    )
    request_rate: Annotated[list[Rate], BeforeValidator(as_list), AfterValidator(unique)] | None = (
        Field(
            default=None,
            description="requests a second, at Poisson times; one load for each number",
        )
    )
    requests: Count | None = Field(
        default=None, description="requests of a load; default: each prompt once"
    )
    warmup_requests: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=0, description="requests before each load that aren't measured"
    )
    repetitions: Count = Field(
        default=1,
        description="how often everything is measured, all loads in turn; with fresh arrivals",
    )
    seed: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=0, description="of the arrivals; the next repetition has the next one"
    )
    fresh: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="ask no prompt in two loads: the data is dealt out among them and their"
        " repetitions, so that a KV cache that is reused knows what prompts share and no more",
    )
    max_tokens: Tokens | None = Field(
        default=None, description="output limit; default: OSL of the cell"
    )
    limits: Limits = Field(
        default=[],
        description="what a cell has to keep to be the one that the report names: ttft.p95<1s,"
        " itl.avg<20ms, score>=0.98",
    )
    request_timeout: float = Field(
        default=120, gt=0, allow_inf_nan=False, description="seconds until a request counts as lost"
    )


_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


def _values(value: Any) -> Any:
    """A list of values, or ``LOW..HIGH``."""
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match and 0 < int(match[1]) < int(match[2]):
        return value
    if match or not isinstance(value, list) or any(isinstance(x, (list, dict)) for x in value):
        raise ValueError("write a list of values, the baseline's first, or LOW..HIGH to double")
    return unique(value)


def _seconds(value: Any) -> Any:
    """``30m`` or ``90`` in seconds."""
    return parse_duration(value) if isinstance(value, str) else value


TunedValues = Annotated[Any, AfterValidator(_values)]


class TuneSpec(_Block):
    """What ``tune`` chooses from, and by what.

    Without a load of its own, cells compete at the baseline's highest rate within ``limits``.
    """

    settings: Annotated[dict[str, TunedValues], Field(min_length=1)] = Field(
        description="values to try of precision, max_batch_size, flags of the build, settings of"
        " triton: a list, the baseline's first, or LOW..HIGH, doubled while its limit binds"
    )
    limits: Limits = Field(
        default=[],
        description="what must hold, as in measure.limits, which hold where these are left out",
    )
    concurrency: Count | None = Field(
        default=None, description="requests in flight to compare at; of two loads give one"
    )
    request_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="requests a second to compare at"
    )
    requests: Count = Field(default=100, description="requests of a block")
    blocks: Count = Field(default=2, description="paired blocks of the first round; doubled then")
    budget: Annotated[float, BeforeValidator(_seconds)] = Field(
        default=600.0, gt=0, description="time under load of one search for a rate, as 30m"
    )
    data: str | None = Field(default=None, description="prompts; default: measure.data")
    max_tokens: Tokens | None = Field(
        default=None, description="output limit; default: that of measure, else OSL of the cell"
    )


class Deployment(_Block):
    """A whole deployment file."""

    backend: Annotated[list[BackendName], BeforeValidator(as_list), AfterValidator(unique)] = Field(
        default=["reference"],
        description=f"how cells are served: {', '.join(BACKEND_NAMES)}; each of a list is a cell of"
        " its own",
    )
    release: Annotated[str, BeforeValidator(_release)] = Field(
        default="1.2", description="TensorRT-LLM release, in quotes"
    )
    models: Annotated[dict[str, ModelSpec], Field(min_length=1)]
    precisions: Annotated[list[Precision], BeforeValidator(as_list), AfterValidator(unique)] = (
        Field(description="see the table of precisions")
    )
    kv_cache_dtype: dict[Precision, KvCacheType] = Field(
        default={}, description="quantization of the KV cache; by precision, none if not named"
    )
    checkpoint_with: Literal["modelopt", "scripts"] = Field(
        default="modelopt",
        description="modelopt's API here, or the container's convert_checkpoint.py and quantize.py",
    )
    fallback: Precision | None = Field(
        default=None, description="precision to use where the GPU can't do fp8"
    )
    calibration: CalibrationSpec = CalibrationSpec()
    verify: VerifySpec = VerifySpec()
    matrix: MatrixSpec
    build: dict[str, Any] = Field(
        default={}, description="flags of trtllm-build that are the same for all cells"
    )
    triton: TritonSettings = TritonSettings()
    env: dict[Variable, Annotated[str, Field(strict=True)]] = Field(
        default={}, description="environment of the server's processes, as NCCL_DEBUG: INFO"
    )
    measure: MeasureSpec | None = None
    tune: TuneSpec | None = None

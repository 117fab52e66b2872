"""The schema of a deployment file: its blocks and keys, each with its meaning.

Text from outside becomes values here; what one value alone can't tell is checked in
:mod:`trtllm_deploy.spec.deployment_file`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from llm_perf.errors import UserError
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.environment import is_secret
from trtllm_deploy.releases.release import release_of
from trtllm_deploy.spec.precision import PRECISIONS
from trtllm_deploy.spec.settings import TritonSettings
from trtllm_deploy.spec.studies import MeasureSpec, StudySpec, TuneSpec
from trtllm_deploy.spec.values import Block, Count, Tokens, as_list, unique

BACKEND_NAMES: Mapping[str, Mapping[str, bool]] = load_data("backends/names.yaml")
KvCacheType = Literal["fp8", "int8"]
DEFAULT_CALIBRATION = "cnn_dailymail"


def _isl_osl(value: Any) -> Any:
    """``2048,1024`` or ``[2048, 1024]``."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        raise ValueError("write input and output length as ISL,OSL, for example 2048,1024")
    return tuple(parts)


def _none_or_more(value: Any) -> Any:
    """Blocks as a list: nothing, one, or a list of them."""
    return [] if value is None else as_list(value)


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


class ModelSpec(Block):
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


class CalibrationSpec(Block):
    """Prompts that quantization looks at."""

    data: str = Field(
        default=DEFAULT_CALIBRATION,
        description="jsonl with text_input (or text) or folder of a data set, relative to this"
        " file; or the hub's name of a data set",
    )
    samples: Count = Field(default=512, description="prompts to use at most")
    max_length: Tokens = Field(default=512, description="tokens of each prompt to use at most")


class VerifySpec(Block):
    """How a new checkpoint is compared with the model it was made from."""

    prompts: Count = Field(default=32, description="prompts to compare on")
    min_top1: dict[Precision, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}, description="share of equal next tokens to ask for; by precision"
    )


class MatrixSpec(Block):
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


class Deployment(Block):
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
    options: dict[BackendName, dict[str, Any]] = Field(
        default={},
        description="by backend: options of its own server, as it spells them; they come after what"
        " the other settings say",
    )
    executable: dict[BackendName, str] = Field(
        default={},
        description="by backend: its server's program, a path (relative to this file) or a name on"
        " PATH",
    )
    env: dict[Variable, Annotated[str, Field(strict=True)]] = Field(
        default={}, description="environment of the server's processes, as NCCL_DEBUG: INFO"
    )
    measure: MeasureSpec | None = None
    study: Annotated[list[StudySpec], BeforeValidator(_none_or_more)] = Field(default=[])
    tune: TuneSpec | None = None

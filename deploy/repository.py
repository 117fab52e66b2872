"""A cell's Triton model repository: release data and settings in, a folder of models out.

Every config.pbtxt is parsed as Triton's own ``ModelConfig`` before anything is written. It knows
nothing of how an engine came to be, of Triton's process, or of what the models compute.

To what a release declares, we add (``with_additions``): the ensemble's outputs ``output_ids``
and ``sequence_length``, so that a client can count tokens; preprocessing's input ``STREAMING``, for
postprocessing's detokenizer has to hear of it; and, where a release's ensemble lacks it, the input
``exclude_input_in_output``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field, model_validator

from client.errors import UserError
from deploy.release import Release, Step, Tensor, TritonModel, tensor

MODELS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing")
_CHECKOUT_TEMPLATES = Path(__file__).parent.parent / "templates"
_INSTALLED_TEMPLATES = Path(__file__).parent / "templates"

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class TritonSettings(BaseModel):
    """The ``triton:`` block of a deployment file. What is not set is left to the backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoupled_mode: bool = Field(
        default=True, description="several responses per request: streaming"
    )
    max_queue_delay_microseconds: Annotated[int, Field(ge=0)] = Field(
        default=0, description="how long Triton may hold a request back to form a batch"
    )
    max_queue_size: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="requests that may wait before new ones are refused; 0 is no limit",
    )
    batching_strategy: Literal["inflight_fused_batching", "inflight_batching", "V1"] = Field(
        default="inflight_fused_batching", description="how TensorRT-LLM batches requests"
    )
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] | None = Field(
        default=None,
        description="whether requests may be paused for others when the KV cache is full",
    )
    enable_kv_cache_reuse: bool | None = Field(
        default=None, description="share KV cache pages between prompts with a common beginning"
    )
    enable_chunked_context: bool | None = Field(
        default=None, description="split a prompt over steps, so that it may exceed max_num_tokens"
    )
    kv_cache_free_gpu_mem_fraction: Fraction | None = Field(
        default=None,
        description="share of the memory free after loading that the KV cache may take",
    )
    max_tokens_in_paged_kv_cache: Count | None = Field(
        default=None, description="upper limit of the KV cache, in tokens"
    )
    max_attention_window_size: Count | None = Field(
        default=None,
        description="tokens that attention looks back on; the whole sequence when not set",
    )
    exclude_input_in_output: bool | None = Field(
        default=None, description="leave the prompt's tokens out of an answer that is not streamed"
    )
    gpu_device_ids: str | None = Field(
        default=None, description="GPUs of the ranks, as 0,1; instances are separated by ;"
    )
    logits_datatype: Literal["TYPE_FP32", "TYPE_FP16", "TYPE_BF16"] = Field(
        default="TYPE_FP32", description="type of the logits outputs, as the engine was built"
    )
    add_special_tokens: bool | None = Field(
        default=None, description="whether the tokenizer adds its special tokens to a prompt"
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="whether special tokens are left out of the answer's text"
    )
    preprocessing_instance_count: Count = Field(default=1, description="processes that tokenize")
    postprocessing_instance_count: Count = Field(
        default=1,
        description="processes that detokenize; more than one only without decoupled_mode",
    )

    @model_validator(mode="after")
    def _keep_streams_in_order(self) -> TritonSettings:
        if self.decoupled_mode and self.postprocessing_instance_count > 1:
            raise ValueError(
                "postprocessing_instance_count must be 1 with decoupled_mode: Triton spreads the"
                " responses of one stream over the instances and they arrive out of order"
            )
        return self


def render_repository(
    target: Path,
    *,
    release: Release,
    backend: Literal["reference", "tensorrt"],
    engine_dir: Path,
    tokenizer_dir: Path,
    max_batch_size: int,
    settings: TritonSettings,
) -> None:
    """Write the model repository of one cell into ``target``.

    ``engine_dir`` and ``tokenizer_dir`` end up in the configs as absolute paths. Raises UserError
    when the release has no such setting, or when a rendered config is not a valid ModelConfig.
    """
    values = setting_values(settings, backend, engine_dir, tokenizer_dir, max_batch_size)
    models = with_additions(release)
    _refuse_unknown(values, settings, models.values(), release.name)
    configs = {name: render_config(models[name], values) for name in MODELS}
    for name, text in configs.items():
        folder = target / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
        if name == "tensorrt_llm" and backend == "tensorrt":
            continue  # its code is the C++ backend
        for code in (templates() / name / "1").glob("*.py"):
            shutil.copyfile(code, folder / "1" / code.name)


def setting_values(
    settings: TritonSettings,
    backend: Literal["reference", "tensorrt"],
    engine_dir: Path,
    tokenizer_dir: Path,
    max_batch_size: int,
) -> Mapping[str, str]:
    """Every setting that is set, as config.pbtxt writes it."""
    chosen: dict[str, object] = {
        **settings.model_dump(exclude_none=True),
        "triton_backend": "python" if backend == "reference" else "tensorrtllm",
        "triton_max_batch_size": max_batch_size,
        "engine_dir": engine_dir.absolute(),
        "tokenizer_dir": tokenizer_dir.absolute(),
        # fields of releases that have no default for them; inputs that the ensemble never sends
        "encoder_input_features_data_type": "TYPE_FP16",
        "prompt_embedding_table_data_type": "TYPE_FP16",
    }
    return {key: _written(value) for key, value in chosen.items()}


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_unknown(
    values: Mapping[str, str], settings: TritonSettings, models: Iterable[TritonModel], release: str
) -> None:
    for name in settings.model_fields_set:
        if name in values and not any(model.takes(name) for model in models):
            raise UserError(
                f"TensorRT-LLM {release} has no such setting",
                where=f"triton.{name}",
                fix="remove it",
            )


def with_additions(release: Release) -> Mapping[str, TritonModel]:
    """The release's models with our additions (see the module's docstring)."""
    models = dict(release.models)
    ensemble, preprocessing = models["ensemble"], models["preprocessing"]
    to_preprocessing = {"STREAMING": "stream"}
    inputs = [tensor("STREAMING", "TYPE_BOOL[1] optional")]
    if not any(each.name == "exclude_input_in_output" for each in ensemble.inputs):
        extra = tensor("exclude_input_in_output", "TYPE_BOOL[1] optional")
        ensemble = replace(ensemble, inputs=(*ensemble.inputs, extra))
        inputs.append(replace(extra, name="EXCLUDE_INPUT_IN_OUTPUT"))
        to_preprocessing["EXCLUDE_INPUT_IN_OUTPUT"] = extra.name
        preprocessing = replace(
            preprocessing,
            parameters={
                **preprocessing.parameters,
                "exclude_input_in_output": "exclude_input_in_output",
            },
        )
    outputs = (
        tensor("output_ids", "TYPE_INT32[-1, -1]"),
        tensor("sequence_length", "TYPE_INT32[-1]"),
    )
    models["preprocessing"] = replace(preprocessing, inputs=(*preprocessing.inputs, *inputs))
    models["ensemble"] = replace(
        ensemble,
        outputs=(*ensemble.outputs, *outputs),
        steps=tuple(_with_additions(step, to_preprocessing) for step in ensemble.steps),
    )
    return models


_SHOWN = {"_TOKENS_BATCH": "output_ids", "_SEQUENCE_LENGTH": "sequence_length"}


def _with_additions(step: Step, to_preprocessing: Mapping[str, str]) -> Step:
    inputs = {key: _SHOWN.get(value, value) for key, value in step.input_map.items()}
    if step.model == "preprocessing":
        inputs |= to_preprocessing
    outputs = {key: _SHOWN.get(value, value) for key, value in step.output_map.items()}
    return Step(step.model, inputs, outputs)


def render_config(model: TritonModel, values: Mapping[str, str]) -> str:
    """The config.pbtxt of one model, checked. Raises UserError naming the model and the line."""
    settled = replace(
        model, inputs=_settled(model.inputs, values), outputs=_settled(model.outputs, values)
    )
    known = {key: value for key, value in values.items() if model.takes(key)}
    where = f"{model.name}/config.pbtxt"
    try:
        text = _environment().get_template(f"{where}.j2").render(model=settled, values=known)
    except jinja2.UndefinedError as error:
        raise UserError(f"a value is missing: {error}", where=where) from error
    check_config(text, where)
    return text


@lru_cache(maxsize=64)  # it takes 20 ms, and cells have most of their configs in common
def check_config(text: str, where: str) -> None:
    """See that a config.pbtxt is a ModelConfig. Raises UserError with ``where`` and the line."""
    from google.protobuf import text_format  # with tritonclient 0.2 s to import
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise UserError(str(error), where=where, line=error.GetLine()) from error


def _settled(tensors: tuple[Tensor, ...], values: Mapping[str, str]) -> tuple[Tensor, ...]:
    """The tensors with the types that a release leaves to a setting."""
    return tuple(
        replace(each, dtype=values[each.dtype[2:-1]]) if each.dtype.startswith("${") else each
        for each in tensors
    )


def templates() -> Path:
    """The templates folder: beside the package in a checkout, inside it when installed."""
    return _INSTALLED_TEMPLATES if _INSTALLED_TEMPLATES.is_dir() else _CHECKOUT_TEMPLATES


def templates_digest(release: Release) -> str:
    """SHA-256 over everything a repository is made from besides its settings."""
    models = {name: asdict(model) for name, model in release.models.items()}
    text = json.dumps(models, default=sorted, sort_keys=True)  # sorted: settings are a set
    digest = hashlib.sha256(text.encode())
    for file in sorted(each for each in templates().rglob("*") if each.suffix in _SOURCES):
        digest.update(f"{file.relative_to(templates())}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


_SOURCES = {".j2", ".py"}


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # protobuf text, not HTML
    )
    filters: dict[str, Any] = environment.filters
    filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment

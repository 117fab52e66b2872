"""A cell's Triton model repository: release data and settings in, a folder of models out.

Every config.pbtxt is parsed as Triton's own ``ModelConfig`` before anything is written. It knows
nothing of how an engine came to be, of Triton's process, or of what the models compute.

To what a release declares, we add (``with_additions``) outputs ``output_ids`` and
``sequence_length`` of the ensemble and of tensorrt_llm_bls, so that a client can count tokens
(postprocessing hands out copies: Triton leaves out an ensemble step whose outputs are all outputs
of the ensemble that a request doesn't ask for, even where a later step needs them);
what preprocessing has to know for postprocessing's detokenizer: whether a request streams, for how
many sequences, and the engine's limits; and, where a release's ensemble lacks it, the input
``exclude_input_in_output``, and ``min_length``, the former name of ``min_tokens`` that genai-perf
sends. And we take away postprocessing's empty ``dynamic_batching``: with it a cancelled ensemble
never ends.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import jinja2

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import read_engine
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.machine import quoting
from trtllm_deploy.machine.data import packaged
from trtllm_deploy.releases.release import Release, Step, Tensor, TritonModel, load_release, tensor
from trtllm_deploy.spec.settings import lacking

MODELS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
Ensemble: TypeAlias = Literal["reference", "tensorrt"]
_SHARED = {
    "preprocessing": ("shared/tokenizer.py", "shared/spellings.py"),
    "postprocessing": ("shared/tokenizer.py", "shared/spellings.py", "shared/spent.py"),
    "tensorrt_llm_bls": ("shared/spent.py",),
}
_BLS_INSTANCES = 5  # what the Triton backend's docs found to work well


def render_repository(job: RepositoryJob, backend: Ensemble) -> None:
    """Write the release's ensemble around that backend's model into ``job.target``.

    The two folders end up in the configs as absolute paths. Raises UserError when the release has
    no such setting, or when a rendered config is not a valid ModelConfig.
    """
    for name, wrong in lacking(job.settings, job.release):
        raise UserError(wrong, where=f"triton.{name}", fix="remove it")
    values = setting_values(job, backend)
    models = with_additions(load_release(job.release), job.settings.extra_tensors)
    configs = {name: render_config(models[name], values) for name in MODELS}
    for name, text in configs.items():
        folder = job.target / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
        if name == "tensorrt_llm" and backend == "tensorrt":
            continue  # its code is the C++ backend
        shared = (templates() / file for file in _SHARED.get(name, ()))
        for code in (*(templates() / name / "1").glob("*.py"), *shared):
            shutil.copyfile(code, folder / "1" / code.name)
    wiring = [asdict(step) for step in models["ensemble"].steps]
    file = job.target / "tensorrt_llm_bls/1/wiring.json"
    file.write_text(json.dumps(wiring, indent=2) + "\n", encoding="utf-8")


def setting_values(job: RepositoryJob, backend: Ensemble) -> Mapping[str, str]:
    """Every setting that is set, as config.pbtxt writes it."""
    chosen: dict[str, object] = {
        "bls_instance_count": min(_BLS_INSTANCES, job.max_batch_size),
        "logits_datatype": "TYPE_FP32" if backend == "reference" else _logits_type(job.engine_dir),
        **(load_release(job.release).defaults if backend == "reference" else {}),
        **job.settings.model_dump(exclude_none=True),
        "triton_backend": "python" if backend == "reference" else "tensorrtllm",
        "triton_max_batch_size": job.max_batch_size,
        "engine_dir": job.engine_dir.absolute(),
        "tokenizer_dir": job.tokenizer_dir.absolute(),
    }
    return {key: _written(value) for key, value in chosen.items()}


def _logits_type(engine_dir: Path) -> str:
    """Triton's name of what the engine gives; its checkpoint's float32 where it doesn't say."""
    with suppress(UserError):
        dtype = str(read_engine(engine_dir).pretrained.get("logits_dtype"))
        return {"float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}.get(dtype, "TYPE_FP32")
    return "TYPE_FP32"


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_additions(release: Release, extra_tensors: bool = True) -> Mapping[str, TritonModel]:
    """The release's models with our additions (see the module's docstring).

    Without ``extra_tensors`` only preprocessing's parameter ``apply_chat_template`` is added.
    """
    models = dict(release.models)

    def extend(name: str, **more: Any) -> None:
        models[name] = _with(models[name], **more)

    extend("preprocessing", parameters={"apply_chat_template": "apply_chat_template"})
    if not extra_tensors:
        return models
    known = {each.name for each in models["ensemble"].inputs}
    gained = [each for each in _GAINED if each.name not in known]
    for name in ("ensemble", "tensorrt_llm_bls"):
        extend(name, inputs=gained, outputs=_ANSWER)
    copies = [replace(each, name=key) for key, each in zip(_COPIES, _ANSWER, strict=True)]
    extend("postprocessing", outputs=copies)
    wires = {"STREAMING": "stream", **{each.name.upper(): each.name for each in gained}}
    parameters = {"gpt_model_path": "engine_dir"}
    if "num_return_sequences" in known:
        wires["NUM_RETURN_SEQUENCES"] = "num_return_sequences"
    if "EXCLUDE_INPUT_IN_OUTPUT" in wires:
        parameters["exclude_input_in_output"] = "exclude_input_in_output"
    if "MIN_LENGTH" in wires:
        wires["MIN_TOKENS"] = "min_tokens"
        extend("preprocessing", outputs=[tensor("OUT_MIN_TOKENS", "TYPE_INT32[1]")])
    tensors = {each.name: each for each in models["ensemble"].inputs}
    inputs = [replace(tensors[name], name=key) for key, name in wires.items()]
    extend("preprocessing", inputs=inputs, parameters=parameters)
    models["postprocessing"] = replace(models["postprocessing"], dynamic_batching=False)
    steps = tuple(_with_additions(step, wires) for step in models["ensemble"].steps)
    models["ensemble"] = replace(models["ensemble"], steps=steps)
    return models


_GAINED = (
    tensor("exclude_input_in_output", "TYPE_BOOL[1] optional"),
    tensor("min_length", "TYPE_INT32[1] optional"),
)
_ANSWER = (
    tensor("output_ids", "TYPE_INT32[-1, -1]"),
    tensor("sequence_length", "TYPE_INT32[-1]"),
)


def _with(
    model: TritonModel,
    inputs: Iterable[Tensor] = (),
    outputs: Iterable[Tensor] = (),
    parameters: Mapping[str, str] = MappingProxyType({}),
) -> TritonModel:
    return replace(
        model,
        inputs=(*model.inputs, *inputs),
        outputs=(*model.outputs, *outputs),
        parameters={**model.parameters, **parameters},
    )


_COPIES = {"OUT_TOKENS_BATCH": "output_ids", "OUT_SEQUENCE_LENGTH": "sequence_length"}


def _with_additions(step: Step, to_preprocessing: Mapping[str, str]) -> Step:
    inputs, outputs = dict(step.input_map), dict(step.output_map)
    if step.model == "preprocessing":
        inputs |= to_preprocessing
    elif step.model == "postprocessing":
        outputs |= _COPIES
    if "MIN_LENGTH" in to_preprocessing and step.model == "preprocessing":
        outputs["OUT_MIN_TOKENS"] = "_MIN_TOKENS"
    elif "MIN_LENGTH" in to_preprocessing and step.model == "tensorrt_llm":
        inputs["min_tokens"] = "_MIN_TOKENS"
    return Step(step.model, inputs, outputs)


def render_config(model: TritonModel, values: Mapping[str, str]) -> str:
    """The config.pbtxt of one model, checked. Raises UserError naming the model and the line."""
    settled = replace(
        model, inputs=_settled(model.inputs, values), outputs=_settled(model.outputs, values)
    )
    known = {key: value for key, value in values.items() if model.takes(key)}
    where = f"{model.name}/config.pbtxt"
    try:
        text = template(f"{where}.j2").render(model=settled, values=known)
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
    return packaged("templates")


def templates_digest(release: Release) -> str:
    """SHA-256 over everything a repository is made from besides its settings."""
    models = {name: asdict(model) for name, model in release.models.items()}
    text = json.dumps(models, default=sorted, sort_keys=True)  # sorted: settings are a set
    digest = hashlib.sha256(text.encode())
    sources = (each for each in templates().rglob("*") if each.suffix in _SOURCES)
    for file in sorted(each for each in sources if each.parent.name != "deployment"):
        digest.update(f"{file.relative_to(templates())}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


_SOURCES = {".j2", ".py"}


def template(name: str) -> jinja2.Template:
    """A template of the folder, for text as it is: nothing is escaped, what is unset an error."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # protobuf text, YAML and shell, not HTML
    )
    filters: dict[str, Any] = environment.filters
    filters |= {"pbtxt": quoting.pbtxt, "yaml": quoting.yaml_text, "shell": quoting.shell}
    return environment

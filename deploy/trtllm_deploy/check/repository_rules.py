"""Preflight's rules about a model repository by itself: parameters, batches, tokenizers.

Each is a function from facts to findings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ByteSize

from llm_perf.errors import UserError
from trtllm_deploy.backends.repository import with_additions
from trtllm_deploy.check.facts import Facts, found
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.json_files import read_json_object
from trtllm_deploy.releases.release import load_release, release_names, spans
from trtllm_deploy.spec.settings import TritonSettings

_NEEDED = {  # parameters without which a model doesn't work
    "tensorrt_llm": ("gpt_model_path", "gpt_model_type"),
    "preprocessing": ("tokenizer_dir",),
    "postprocessing": ("tokenizer_dir",),
    "tensorrt_llm_bls": (),
}
# model_state.cc; the others are read by Python
_BOOLS, _PYTHON_BOOLS = "True|true|TRUE|1|False|false|FALSE|0", "(?i:true|false|yes|no|[tfyn10])"
_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FORMER: dict[str, str] = load_data("check/former_parameters.yaml")
_ONE_SERVES = 8  # requests at once that one python process keeps up with, roughly
_CONTAINER_SHARED_MEMORY = 64 * 2**20  # docker's default


def spelling(facts: Facts) -> Iterator[Finding]:
    """Values that are read as something else, or not at all."""
    for model in facts.models.values():
        needed = _NEEDED.get(model.role, ())
        for key in needed:
            if model.get(key) is None and model.get("encoder_model_path") is None:
                yield found("not_set", model.at(key), key=key)
        left = [key for key, value in model.parameters.items() if value.startswith("${")]
        if left := [key for key in left if key not in needed]:
            yield found("left_open", model.at(left[0]), keys=", ".join(left))
        for key, value in model.parameters.items():
            expected, pattern = _understood(model.role, key)
            if model.get(key) is None or re.fullmatch(pattern, value, re.DOTALL):
                continue
            number = model.number(key) if "number" in expected else None
            reading = "the backend logs a line and takes its default"
            if number is not None:
                reading = f"the backend reads {number:g} and goes on"
            elif key == "gpt_model_type":
                reading = "the model doesn't load with anything else"
            values = {"key": key, "value": value, "expected": expected, "reading": reading}
            yield found("misread", model.at(key), **values)


def _understood(role: str, key: str) -> tuple[str, str]:
    """What a parameter's value may be, for people and as a pattern."""
    models = [load_release(name).models for name in release_names()]
    parameters = [each[role].parameters for each in models if role in each]
    setting = next((each[key] for each in parameters if key in each), "")
    field = TritonSettings.model_fields.get(setting)
    kinds = _leaves(field.annotation) if field else []
    if words := [each for each in kinds if isinstance(each, str)]:
        return f"one of {', '.join(words)}", "|".join([*words, *(["v1"] if "V1" in words else [])])
    if bool in kinds:
        return "true or false", _BOOLS if role == "tensorrt_llm" else _PYTHON_BOOLS
    if float in kinds:
        return "a number from 0 to 1", r"0?\.\d+|0|1(\.0*)?"
    return ("a whole number", r"\d+") if {int, ByteSize} & {*kinds} else ("", ".*")


def _leaves(annotation: Any) -> list[Any]:
    inside = get_args(annotation)
    return [leaf for each in inside for leaf in _leaves(each)] if inside else [annotation]


def keys(facts: Facts) -> Iterator[Finding]:
    """Parameters that nobody reads: misspelt, or of another release."""
    mine = facts.release.name if facts.release else None
    releases = {name: with_additions(load_release(name)) for name in release_names()}
    for model in facts.playing(*_NEEDED):
        known = {
            name: {*models[model.role].parameters, *models[model.role].constants}
            for name, models in releases.items()
        }
        for key in filter(model.get, model.parameters):
            owners = [name for name in known if key in known[name]]
            if mine in owners or (mine is None and owners):
                continue
            near = difflib.get_close_matches(key, set().union(*known.values()), n=1, cutoff=0.85)
            if owners:
                who = {"owners": spans(owners), "mine": mine}
                yield found("other_release", model.at(key), key=key, **who)
            elif now := _FORMER.get(key):
                yield found("former", model.at(key), key=key, now=now)
            elif near:
                yield found("misspelt", model.at(key), key=key, near=near[0])
            elif model.role == "tensorrt_llm":  # python models may have parameters of their own
                yield found("unknown", model.at(key), key=key)


def required(facts: Facts) -> Iterator[Finding]:
    """Parameters that the release reads without a default."""
    if facts.release is None:
        return
    for model in facts.playing(*_NEEDED):
        for key in sorted(facts.release.models[model.role].required - {*model.parameters}):
            yield found("required", model.at("parameters"), key=key, release=facts.release.name)


def guided(facts: Facts) -> Iterator[Finding]:
    """What guided decoding needs of the C++ backend (model_instance_state.cc)."""
    release = facts.release
    if release and "guided_decoding_backend" not in release.models["tensorrt_llm"].parameters:
        return
    for llm in facts.playing("tensorrt_llm"):
        info = llm.get("xgrammar_tokenizer_info_path")
        if llm.config.backend != "tensorrtllm" or not llm.get("guided_decoding_backend"):
            continue
        if info is None:
            yield found("guided_unset", llm.at("guided_decoding_backend"))
        elif not Path(info).exists():
            yield found("guided_absent", llm.at("xgrammar_tokenizer_info_path"), path=info)


def batches(facts: Facts) -> Iterator[Finding]:
    """Batch sizes that differ, and python models that work on one request at a time."""
    parts = facts.playing("ensemble", *_NEEDED)
    sizes = {model.name: model.config.max_batch_size for model in parts}
    for model in parts:
        size, where = sizes[model.name], model.at("max_batch_size")
        steps = [each.model_name for each in model.config.ensemble_scheduling.step]
        smaller = [name for name in steps if sizes.get(name, size) < size]
        if smaller:
            yield found("batch_of_step", where, size=size, smaller=", ".join(smaller))
        serial = model.role == "preprocessing" or "1/lib" in model.paths
        count = model.instances
        if serial and count * _ONE_SERVES < size:
            needed = size if model.role != "preprocessing" else -(-size // _ONE_SERVES)
            counts = {"count": count, "size": size, "needed": needed}
            yield found("few_instances", model.at("instance_group"), **counts)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        least = min(parts, key=lambda each: sizes[each.name])
        yield found("batches_differ", least.at("max_batch_size"), sizes=listed)


def streams(facts: Facts) -> Iterator[Finding]:
    """What decoupled mode doesn't go with."""
    for llm in facts.playing("tensorrt_llm"):
        if not llm.config.model_transaction_policy.decoupled:
            continue
        for model in facts.playing("postprocessing"):
            if model.instances > 1:
                where = model.at("instance_group")
                yield found("out_of_order", where, count=model.instances, llm=llm.name)
        policy = llm.get("batch_scheduler_policy")
        if policy == "max_utilization" and not llm.flag("enable_chunked_context"):
            yield found("utilization", llm.at("batch_scheduler_policy"))


def tokenizers(facts: Facts) -> Iterator[Finding]:
    """Tokenizers that aren't there, can't be loaded, or have more tokens than the model."""
    size = facts.engine.pretrained.get("vocab_size") if facts.engine else None
    read: dict[str, int | str] = {"": 0}
    for model in facts.playing("preprocessing", "postprocessing"):
        folder, where = model.get("tokenizer_dir") or "", model.at("tokenizer_dir")
        if folder not in read:
            read[folder] = _vocabulary(Path(folder))
        tokens = read[folder]
        if isinstance(tokens, str):
            rule = "tokenizer_hub" if _HUB_ID.fullmatch(folder) else "tokenizer"
            yield found(rule, where, problem=tokens)
        elif isinstance(size, int) and tokens > size:
            yield found("vocabulary", where, tokens=tokens, size=size)


def _vocabulary(folder: Path) -> int | str:
    """The tokens of a tokenizer, 0 if unknown; or what is wrong with it."""
    file = folder / "tokenizer.json"
    try:
        if not folder.is_dir():
            return f"there is no folder {folder}"
        if not file.is_file():
            known = any((folder / name).is_file() for name in _TOKENIZERS)
            return 0 if known else f"there is no tokenizer in {folder}"
        import tokenizers

        return int(tokenizers.Tokenizer.from_file(str(file)).get_vocab_size())
    except Exception as error:  # from_file raises plain Exception
        return f"{file} can't be loaded: {error}"


def chat(facts: Facts) -> Iterator[Finding]:
    """The chat template that preprocessing is to apply."""
    for model in facts.playing("preprocessing"):
        folder = Path(model.get("tokenizer_dir") or "")
        asked = model.flag("apply_chat_template") and folder.is_dir()
        if asked and not _has_chat_template(folder):
            yield found("chat_template", model.at("apply_chat_template"), folder=folder)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json_object(folder / "tokenizer_config.json").get("chat_template"))
    except (OSError, UserError):
        return False


def shared_memory(facts: Facts) -> Iterator[Finding]:
    """Room for python models, which pass tensors through /dev/shm."""
    count = sum(model.config.backend == "python" for model in facts.models.values())
    size = facts.launch.shared_memory
    if count and size is not None and size <= _CONTAINER_SHARED_MEMORY:
        yield found("shared_memory", "/dev/shm", mib=size >> 20, count=count)


RULES = (spelling, keys, required, guided, batches, streams, tokenizers, chat, shared_memory)

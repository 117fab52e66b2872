"""Preflight's rules about how the models of a repository fit Triton, and each other.

Each is a function from facts to findings: folders, backends, and the tensors of an ensemble.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trtllm_deploy.backends.triton.models import Model
from trtllm_deploy.check.facts import Facts, found
from trtllm_deploy.machine.finding import Finding

_BEFORE_BLS_GUARD = re.compile(r"0\.(\d|1[0-2])\.")  # 0.13 and later take a default for ${…}
_LLM_ON = ("tensorrtllm", "python")  # the C++ backend, or a model.py in its place
_DELAY = 100_000  # microseconds; a request alone waits that long before its first token


def layout(facts: Facts) -> Iterator[Finding]:
    """What Triton asks of every model's folder."""
    for model in facts.models.values():
        name = model.config.name
        if name not in ("", model.name):
            yield found("other_name", model.at("name"), name=name, folder=model.name)
        if not any(map(str.isdigit, model.paths)):
            yield found("no_version", model.file.parent)
        elif model.config.backend == "python" and "1/model.py" not in model.paths:
            yield found("no_code", model.file.parent / "1")


def backends(facts: Facts) -> Iterator[Finding]:
    """What is to run each model: named, known, and the one that its part is written for."""
    for model in facts.models.values():
        config, where = model.config, model.at("backend")
        if model.role == "ensemble":
            if (config.platform, config.backend) != ("ensemble", ""):
                yield found("ensemble_platform", where)
        elif config.backend.startswith("${"):
            yield found("placeholder", where, name=config.backend[2:].rstrip("}"))
        elif model.role and config.platform:
            yield found("platform", model.at("platform"), platform=config.platform)
        elif not config.backend and not config.platform:
            if not any(path.startswith("1/model.") for path in model.paths):
                yield found("no_backend", model.file)
        elif config.backend and model.role:
            known = _LLM_ON if model.role == "tensorrt_llm" else ("python",)
            if config.backend not in known:
                names = " or ".join(known)
                yield found("other_backend", where, backend=config.backend, known=names)


def repeats(facts: Facts) -> Iterator[Finding]:
    """Parameters and wires that are written more than once."""
    for model in facts.models.values():
        for key in model.repeated:
            yield found("repeated", model.at(key), key=key)


def instances(facts: Facts) -> Iterator[Finding]:
    """How often an engine is loaded, and how long its requests wait to be batched."""
    for llm in facts.playing("tensorrt_llm"):
        lists = [each for each in (llm.get("gpu_device_ids") or "").split(";") if each.strip()]
        if llm.config.backend == "tensorrtllm" and llm.instances > max(1, len(lists)):
            yield found("engine_copies", llm.at("instance_group"), count=llm.instances)
        delay = llm.config.dynamic_batching.max_queue_delay_microseconds
        if delay >= _DELAY and (llm.get("gpt_model_type") or "").startswith("inflight"):
            where = llm.at("max_queue_delay_microseconds")
            yield found("queue_delay", where, seconds=delay / 1e6)


def wiring(facts: Facts) -> Iterator[Finding]:
    """Models and tensors that an ensemble or BLS calls and that aren't there."""
    calls = [
        (model, step.model_name)
        for model in facts.playing("ensemble")
        for step in model.config.ensemble_scheduling.step
    ]
    for bls in facts.playing("tensorrt_llm_bls"):
        llm = bls.parameters.get("tensorrt_llm_model_name") or "tensorrt_llm"
        version = facts.engine.version if facts.engine else ""
        if llm.startswith("${") and not _BEFORE_BLS_GUARD.match(version):
            llm = "tensorrt_llm"
        calls += [(bls, name) for name in (llm, "preprocessing", "postprocessing")]
    for caller, name in calls:
        if name not in facts.folders:
            names = ", ".join(sorted(facts.folders))
            yield found("absent", caller.at(name), name=name, names=names)
    for ensemble in facts.playing("ensemble"):
        for step in ensemble.config.ensemble_scheduling.step:
            if model := facts.models.get(step.model_name):
                yield from _mapping(ensemble, step, model)


def _mapping(ensemble: Model, step: Any, model: Model) -> Iterator[Finding]:
    inputs = {each.name: each.optional for each in model.config.input}
    outputs = {each.name for each in model.config.output}
    wrong = [*(set(step.input_map) - set(inputs)), *(set(step.output_map) - outputs)]
    missing = [name for name in inputs if not (inputs[name] or name in step.input_map)]
    for what, tensors in (("no such tensor", wrong), ("an input that isn't mapped", missing)):
        if tensors:
            where = ensemble.at(tensors[0] if tensors is wrong else model.name)
            names = ", ".join(sorted(tensors))
            yield found("unmapped", where, step=model.name, what=what, tensors=names)


def types(facts: Facts) -> Iterator[Finding]:
    """Tensors of an ensemble that its models don't give the same type."""
    from tritonclient.grpc.model_config_pb2 import DataType

    for ensemble in facts.playing("ensemble"):
        said: dict[str, dict[int, str]] = {}
        for tensor, model, type_ in _wires(facts, ensemble):
            said.setdefault(tensor, {}).setdefault(type_, model)
        for tensor, kinds in said.items():
            if len(kinds) > 1:
                listed = ", ".join(f"{DataType.Name(kind)} in {who}" for kind, who in kinds.items())
                yield found("wire_types", ensemble.at(tensor), tensor=tensor, types=listed)


def _wires(facts: Facts, ensemble: Model) -> Iterator[tuple[str, str, int]]:
    """Each end of each tensor: its name in the ensemble, the model, and the type there."""
    for each in (*ensemble.config.input, *ensemble.config.output):
        yield each.name, ensemble.name, each.data_type
    for step in ensemble.config.ensemble_scheduling.step:
        if model := facts.models.get(step.model_name):
            ends = ((model.config.input, step.input_map), (model.config.output, step.output_map))
            for tensors, names in ends:
                for each in tensors:
                    if each.name in names:
                        yield names[each.name], model.name, each.data_type


RULES = (layout, backends, repeats, instances, wiring, types)

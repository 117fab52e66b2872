"""What a release or a backend gets wrong of a model, by its config.json alone.

In: the deployment file, and the configs that are known. Out: nothing, or what is wrong and how to
mend it, before weights are downloaded. Rotary scaling: TensorRT-LLM's layers/attention.py and
functional.py (RopeEmbeddingUtils) of 0.11.0 to 0.16.0 and 1.0.0. Windows: tensorrtllm_backend's
model_instance_state.cc, which reads one number before 0.13.0 and a list from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.checkpoint.attention_windows import attention_windows, narrowest
from trtllm_deploy.checkpoint.source_faults import CheckpointKind, source_fault
from trtllm_deploy.releases.release import release_number
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.precision import PRECISIONS

Configs = Mapping[str, Mapping[str, Any]]
"""What config.json says, by model name, of those that are known."""

_ROPE_SINCE = {"default": (0, 11), "linear": (0, 11), "llama3": (0, 12)}
# The first release that computes a kind. Others fail there or, worse, build and answer garbage:
# dynamic and longrope fall into inv_freq x factor, and so does yarn before 1.0.0, whose table has
# yarn's frequencies; that its kernels also use yarn's attention factor is unproven.
_WINDOW_LISTS_SINCE = (0, 13)
ROPE_FIX = "write 'backend: llmapi', or choose a release or a model that fits"


def refuse_models(file: DeploymentFile, configs: Configs, kind: CheckpointKind) -> None:
    """Raises UserError with the model's line: no such checkpoint can be made of it."""
    for name, config in configs.items():
        model = file.deployment.models[name]
        for precision in file.deployment.precisions:
            with suppress(KeyError):  # the checkpoint stage says what its config lacks
                fault = source_fault(config, kind, PRECISIONS[precision], model.tp, model.pp)
                if fault is not None:
                    raise file.error(("models", name), fault.what, fault.fix)


def refuse_release(file: DeploymentFile, configs: Configs) -> None:
    """Raises UserError with the model's line: the release lacks its class, or turns positions
    another way."""
    release = file.deployment.release
    for name, config in configs.items():
        architecture = next(iter(config.get("architectures") or ()), None)
        known = ARCHITECTURES.get(str(architecture))
        if known is not None and release_number(release) < known.since:
            first = ".".join(map(str, known.since))
            raise file.error(
                ("models", name, "source"),
                f"TensorRT-LLM {release} has no {architecture}, {first} is the first",
                "choose a release or a model that fits",
            )
        if fault := rope_fault(config, release):
            raise file.error(("models", name, "source"), fault, ROPE_FIX)


def rope_fault(config: Mapping[str, Any], release: str) -> str | None:
    """Why a release's engine would turn positions another way than the model does; None: it won't.

    ``config`` is the model's config.json, of transformers 4 or 5, or a checkpoint's.
    """
    names = ("rope_parameters", "rope_scaling", "rotary_scaling")
    scaling: Any = next((config[name] for name in names if config.get(name)), {})
    if not isinstance(scaling, Mapping):
        return "its rotary scaling is no object"
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if kind == "dynamic" and "alpha" in scaling:
        return None
    since = _ROPE_SINCE.get(kind)
    if since is None:
        without = " without alpha" if kind == "dynamic" else ""
        return f"engines of TensorRT-LLM don't compute rotary scaling '{kind}'{without}"
    if release_number(release) < since:
        first = ".".join(map(str, since))
        return f"TensorRT-LLM {release} has no rotary scaling '{kind}', {first} is the first"
    return None


def refuse_windows(file: DeploymentFile, cells: Sequence[Cell], configs: Configs) -> None:
    """Raises UserError: a layer looks back less far than max_seq_len, and nothing can say so."""
    for cell in cells:
        config = configs.get(cell.model, {})
        needed = window_setting(config, _longest(file, cell))
        if needed is None:
            continue
        asked = file.deployment.triton.max_attention_window_size
        said = f"{cell.model} looks back {narrowest(config)} tokens, {cell.name} has more"
        if asked is not None and _wider(asked, needed):
            raise file.error(
                ("triton", "max_attention_window_size"),
                f"{said}: {asked} is wider than its window",
                "remove it: the model's config says it",
            )
        if len(needed) > 1 and release_number(file.deployment.release) < _WINDOW_LISTS_SINCE:
            raise file.error(
                ("models", cell.model, "source"),
                f"{said}, and TensorRT-LLM {file.deployment.release} takes one window for all"
                " layers",
                "choose a later release, or a shorter isl_osl",
            )


def carried_window(file: DeploymentFile, cell: Cell, config: Mapping[str, Any]) -> dict[str, Any]:
    """The triton: setting that tells an engine of the model's windows; empty where none is needed.

    What the file says itself stays.
    """
    needed = window_setting(config, _longest(file, cell))
    if needed is None or file.deployment.triton.max_attention_window_size is not None:
        return {}
    return {"max_attention_window_size": list(needed)}


def window_setting(config: Mapping[str, Any], longest: int) -> tuple[int, ...] | None:
    """max_attention_window_size of sequences up to ``longest``: one number, or one per layer."""
    windows = [min(each or longest, longest) for each in attention_windows(config)]
    if not windows or min(windows) == longest:
        return None
    return (windows[0],) if len(set(windows)) == 1 else tuple(windows)


def _longest(file: DeploymentFile, cell: Cell) -> int:
    return int(file.flag(cell, "max_seq_len"))


def _wider(asked: str, needed: Sequence[int]) -> bool:
    given = [int(each) for each in asked.split(",")]
    pairs = range(max(len(given), len(needed)))
    return any(given[i % len(given)] > needed[i % len(needed)] for i in pairs)

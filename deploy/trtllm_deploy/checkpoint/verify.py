"""Verification: a new checkpoint, read back, against the model it was made from.

Comes in: both folders and token ids of some prompts. Goes out: a report (shares, errors,
perplexities), or the reason why the checkpoint isn't the model, with the likely cause. Both are
computed in float32, layer by layer, so that neither has to fit into memory. Knows nothing of how
the checkpoint was made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.checkpoint.faults import (
    Split,
    activation_fault,
    not_finite,
    outer_faults,
    weight_error,
    weight_faults,
)
from trtllm_deploy.checkpoint.layerwise import hidden_states
from trtllm_deploy.checkpoint.overflow import Overflow
from trtllm_deploy.checkpoint.source_tensors import SourceTensors
from trtllm_deploy.checkpoint.tensors import CheckpointTensors, InputRounding, LayerTensors
from trtllm_deploy.checkpoint.trtllm_format import CONFIG, config_differences
from trtllm_deploy.machine.json_files import read_json_object
from trtllm_deploy.spec.precision import PRECISIONS, Precision

REPORT = "verify.json"
_RANGE = {"fp8": 448.0, "int8": 127.0}  # steps from zero to the largest number


@dataclass(slots=True)
class _Findings:
    """What the two passes saw beside hidden states."""

    faults: list[str] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)
    worst_weight: tuple[float, str] = (0.0, "")


@dataclass(frozen=True, slots=True)
class Task:
    """What to verify.

    ``prompts`` are token ids. ``measured`` is the largest input of each linear that calibration
    saw, by its name in the model, where that is known. ``min_top1`` is the share of positions at
    which both must have the same top token.
    """

    model_dir: Path
    checkpoint_dir: Path
    precision: Precision
    prompts: Sequence[Sequence[int]]
    min_top1: float
    measured: Mapping[str, float] = field(default_factory=dict)
    kv_cache_dtype: str | None = None
    as_hf: bool = False


def verify_checkpoint(task: Task, device: str = "cpu") -> dict[str, Any]:
    """The report of a checkpoint that passes.

    It needs memory for the embedding, the head, one layer and the prompts' logits, one prompt at a
    time. Reads both checkpoints from disk, the original twice. Raises UserError: it isn't the model
    that it was made from; says the likely cause.
    """
    started = time.monotonic()
    source = SourceTensors(task.model_dir)
    if not task.as_hf:
        _check_config(task, source.config.to_dict())
    checkpoint: LayerTensors
    checkpoint = (SourceTensors if task.as_hf else CheckpointTensors)(task.checkpoint_dir)
    ids, mask = _padded(task.prompts)
    findings, overflow = _Findings(), Overflow(mask)
    half = task.precision.dtype == "float16"

    def watch(index: int, layer: nn.Module, weights: Mapping[str, Tensor]) -> None:
        if half:
            overflow.watch(index, layer)
            for name, weight in weights.items():
                overflow.weight(f"layers.{index}.{name}", weight)
        for name, rounding in checkpoint.roundings(index).items():
            key = f"model.layers.{index}.{name}"
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, key=key, rounding=rounding: findings.seen.update(
                    {key: _largest(inputs[0], rounding, mask)}
                )
            )

    def compare(index: int, _: nn.Module, weights: Mapping[str, Tensor]) -> None:
        _compare_layer(task, checkpoint, index, weights, source.layer(index), findings)

    original = hidden_states(source, ids, device, watch)
    read_back = hidden_states(checkpoint, ids, device, compare)
    _check_activations(task, checkpoint, findings)
    outer = (source.outer(), checkpoint.outer())
    known = ARCHITECTURES.get((source.config.architectures or [""])[0])
    offset = known.norm_offset if known else 0.0
    for name, weight in outer[0].items():
        if half:
            overflow.weight(name, weight)
        more = offset if "norm" in name else 0.0  # as they are multiplied, and rounded
        findings.faults.extend(outer_faults(name, outer[1][name] + more, weight + more))
    heads = tuple(each["lm_head.weight"].to(device) for each in outer)
    del outer
    cap = getattr(source.config, "final_logit_softcapping", None)
    figures = _compare_logits(task.prompts, (original, read_back), heads, cap)
    report = {
        "precision": task.precision.name,
        "kv_cache_dtype": task.kv_cache_dtype,
        "min_top1": task.min_top1,
        **figures,
        "worst_weight": {"tensor": findings.worst_weight[1], "error": findings.worst_weight[0]},
        "device": device,
        "seconds": round(time.monotonic() - started, 3),
    }
    if overflow.said:
        raise UserError(overflow.said, where=task.checkpoint_dir, fix=_in_bf16(task.precision))
    _judge(task, report, findings)
    return report


def _check_config(task: Task, hf_config: Mapping[str, Any]) -> None:
    file = task.checkpoint_dir / CONFIG
    differences = config_differences(read_json_object(file), hf_config)
    if differences:
        raise UserError(f"the checkpoint isn't the model: {'; '.join(differences)}", where=file)


def _judge(task: Task, report: Mapping[str, Any], findings: _Findings) -> None:
    where = task.checkpoint_dir
    figures = (*report["perplexity"].values(), report["mean_abs_err"])
    if not findings.faults and not all(map(math.isfinite, figures)):
        raise UserError(
            "the model's or the checkpoint's logits are NaN or infinite",
            where=where,
            fix="look for NaN or Inf in the source's weights",
        )
    top1 = report["top1"]
    failed = not top1 >= task.min_top1  # also when it isn't a number
    if not findings.faults and not failed:
        return
    agree = f"top tokens agree at {top1:.1%} of {report['positions']} positions"
    if findings.faults:
        more = f" (and {len(findings.faults) - 1} more)" if len(findings.faults) > 1 else ""
        cause = f"likely cause: {findings.faults[0]}{more}"
    else:
        cause = f"{task.min_top1:.1%} are asked for; likely cause: {_no_fault(task, findings)}"
    raise UserError(
        f"the checkpoint isn't the model it was made from: {agree}; {cause}",
        where=task.checkpoint_dir,
        fix="make the checkpoint again" if findings.faults else "see 'verify:' and 'calibration:'",
    )


def _in_bf16(precision: Precision) -> str:
    """The precision that differs in its dtype alone, where there is one."""
    others = [each for each in PRECISIONS.values() if each.dtype == "bfloat16"]
    same = [each.name for each in others if each.quant_algo == precision.quant_algo]
    return f"make the checkpoint in {' or '.join(same or [each.name for each in others])}"


def _no_fault(task: Task, findings: _Findings) -> str:
    """What is left as a cause when no single tensor is wrong."""
    error, tensor = findings.worst_weight
    kv = f" with {task.kv_cache_dtype} KV cache" if task.kv_cache_dtype else ""
    return (
        f"{task.precision.name}{kv} is too coarse for this model, or was calibrated on other text"
        f" (largest error of a weight: {error:.1%}, {tensor})"
    )


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [prompts, longest], and 1 where a token stands, 0 where padding does."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return ids, mask


def _largest(x: Tensor, rounding: InputRounding, mask: Tensor) -> float:
    """Over the tokens of prompts; an expert sees some tokens, among them padding's."""
    x = x if rounding.smoothing is None else x * rounding.smoothing.to(x)
    largest = x.abs().amax(-1)
    return (largest * mask.to(x.device) if x.dim() == 3 else largest).max().item()


def _compare_layer(
    task: Task,
    checkpoint: LayerTensors,
    index: int,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    findings: _Findings,
) -> None:
    """Each weight of a layer against the original's, smoothing undone."""
    roundings = checkpoint.roundings(index)
    for name, weight in ours.items():
        linear = name.removesuffix(".weight")
        smoothing = roundings[linear].smoothing if linear in roundings else None
        if smoothing is not None and linear != name:
            weight = weight * smoothing.to(weight)
        expected = theirs.get(name)
        full = f"model.layers.{index}.{name}"
        if expected is None or expected.shape != weight.shape:
            findings.faults.append(f"the original has no {full} of shape {list(weight.shape)}")
            continue
        expected = expected.to(weight)
        if bad := not_finite(full, weight, expected):
            findings.faults.append(bad)
            continue
        findings.worst_weight = max(findings.worst_weight, (weight_error(weight, expected), full))
        if weight.dim() == 2:
            split = _split(task.precision, checkpoint, index, linear)
            findings.faults.extend(weight_faults(full, weight, expected, split))


def _split(precision: Precision, checkpoint: LayerTensors, index: int, linear: str) -> Split:
    block = precision.group_size or (0 if precision.quant_algo == "FP8" else -1)
    if not isinstance(checkpoint, CheckpointTensors):
        return Split((0,), 0, block)
    ranks, dim = checkpoint.spread(index, linear)
    return Split(ranks, dim, block)


def _check_activations(task: Task, checkpoint: LayerTensors, findings: _Findings) -> None:
    for index in range(checkpoint.config.num_hidden_layers):
        roundings = checkpoint.roundings(index)
        for name, rounding in roundings.items():
            if rounding.scale is None:
                continue
            # linears that are one in the engine share a scale, the largest of theirs
            shared = [other for other in roundings if roundings[other] is rounding]
            names = [f"model.layers.{index}.{other}" for other in shared]
            if shared[0] == name and (fault := _activation_fault(task, names, rounding, findings)):
                findings.faults.append(fault)


def _activation_fault(
    task: Task, names: Sequence[str], rounding: InputRounding, findings: _Findings
) -> str | None:
    assert rounding.scale is not None
    measured = [task.measured[name] for name in names if name in task.measured]
    return activation_fault(
        " and ".join(names),
        rounding.scale * _RANGE[rounding.kind],
        max(measured, default=None),
        max(findings.seen.get(name, 0.0) for name in names),  # no token may reach an expert,
    )


@torch.inference_mode()
def _compare_logits(
    prompts: Sequence[Sequence[int]],
    states: tuple[Tensor, ...],
    heads: tuple[Tensor, ...],
    cap: float | None,
) -> dict[str, Any]:
    """Figures over all positions; perplexity over those that have a next token."""
    same = positions = targets = 0
    error_sum = error_max = 0.0
    losses = [0.0, 0.0]
    for row, prompt in enumerate(prompts):
        ids = torch.tensor(prompt, device=heads[0].device)
        a, b = (each[row, : len(prompt)] @ head.T for each, head in zip(states, heads, strict=True))
        if cap is not None:
            a, b = (cap * torch.tanh(each / cap) for each in (a, b))
        error = (a - b).abs()
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        positions += len(prompt)
        targets += len(prompt) - 1
        error_sum += error.mean().item() * len(prompt)
        error_max = max(error_max, error.max().item())
        for which, logits in enumerate((a, b)):
            loss = nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
            losses[which] += loss.item()
    original, checkpoint = (math.exp(min(loss / max(targets, 1), 700)) for loss in losses)
    return {
        "prompts": len(prompts),
        "positions": positions,
        "top1": same / positions,
        "mean_abs_err": error_sum / positions,
        "max_abs_err": error_max,
        "perplexity": {"original": original, "checkpoint": checkpoint},
    }

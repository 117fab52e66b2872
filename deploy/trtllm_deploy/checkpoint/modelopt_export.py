"""From a Hugging Face model to a checkpoint, with NVIDIA modelopt.

Comes in: a checked job. Goes out: in the job's output folder a TensorRT-LLM checkpoint
(``rank<N>.safetensors``) or one for the LLM API, and last of all ``config.json``, so that a folder
with a config.json is complete. Runs in a process of its own (``quantize``), on the GPU where there
is one and the job is calibrated.
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint, torch_to_tensorrt_llm_checkpoint
from modelopt.torch.export.quant_utils import preprocess_linear_fusion
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.apart import take_apart
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, Architecture, renamed
from trtllm_deploy.checkpoint.job import CheckpointJob
from trtllm_deploy.checkpoint.source_files import TOKENIZER_FILES
from trtllm_deploy.checkpoint.trtllm_format import CONFIG, complete_config
from trtllm_deploy.spec.precision import Precision, find_precision

Progress = Callable[[str], None]

_KV_BITS: dict[str, Any] = {"fp8": (4, 3), "int8": 8}  # e4m3: 4 bits of exponent, 3 of mantissa
_KEY_AND_VALUE_SCALES = (".k_cache_scaling_factor", ".v_cache_scaling_factor")
_ALL_OFF: dict[str, Any] = {
    "quant_cfg": [{"quantizer_name": "*", "enable": False}],
    "algorithm": "max",
}


def export_checkpoint(job: CheckpointJob, progress: Progress) -> dict[str, float]:
    """Load, quantize, export, complete the config.

    Returns the largest input of each linear that calibration measured, by its name in the model.
    Raises UserError: the model or its tokenizer doesn't load.
    """
    precision = find_precision(job.precision)
    torch.manual_seed(job.seed)
    progress("0% load model")
    model = _load(job, precision)
    hf_config: dict[str, Any] = model.config.to_dict()
    if job.kind == "trtllm":
        take_apart(model, hf_config["architectures"][0])
    if job.needs_calibration:
        model = _quantize(model, job, _recipe(precision, job.kv_cache_dtype), progress)
    measured = _measured(model)
    progress("80% export")
    # modelopt writes config.json before the last weights, so it works in a folder aside
    aside = job.output_dir / ".export"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with torch.no_grad():
        (_export_hf if job.kind == "hf" else _export)(model, job, precision, hf_config, aside)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    _move(aside, job.output_dir)
    return measured


def _load(job: CheckpointJob, precision: Precision) -> Any:
    on_gpu = job.needs_calibration and torch.cuda.is_available()
    spread = on_gpu and find_spec("accelerate") is not None  # device_map needs accelerate
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            job.model_dir,
            dtype=getattr(torch, precision.dtype),
            trust_remote_code=job.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            device_map="auto" if spread else None,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"the model doesn't load: {error}", where=job.model_dir) from error
    if report["missing_keys"]:
        raise UserError(
            f"the model's weights lack {sorted(report['missing_keys'])[0]}", where=job.model_dir
        )
    model.eval()
    return model if spread or not on_gpu else model.to("cuda")


def _recipe(precision: Precision, kv_cache_dtype: str | None) -> dict[str, Any]:
    """modelopt's preset, and after it the quantizers of keys and values."""
    preset = precision.modelopt_config
    recipe = copy.deepcopy(getattr(mtq, preset) if preset else _ALL_OFF)
    if kv_cache_dtype is not None:
        cfg = {"num_bits": _KV_BITS[kv_cache_dtype], "axis": None}
        kv = {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": cfg}
        recipe["quant_cfg"] = [*recipe["quant_cfg"], kv]
    return recipe


def _quantize(model: Any, job: CheckpointJob, recipe: dict[str, Any], progress: Progress) -> Any:
    assert job.calibration is not None  # check_job saw to it
    encode, prompts, length = job.encoder(), job.prompts(), job.calibration.max_length
    passes = itertools.count(1)

    def measure(model: Any) -> None:
        # One prompt at a time: padding would be measured too. SmoothQuant and AWQ call this twice.
        label = f"calibrate on {len(prompts)} prompts, pass {next(passes)}"
        for number, prompt in enumerate(prompts):
            if number % max(1, len(prompts) // 20) == 0:
                progress(f"{10 + 70 * number // len(prompts)}% {label}")
            if ids := encode(prompt, length):
                model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)

    with torch.no_grad():
        return mtq.quantize(model, recipe, measure)


def _measured(model: Any) -> dict[str, float]:
    found = {}
    for name, module in model.named_modules():
        quantizer = getattr(module, "input_quantizer", None)
        if quantizer is not None and quantizer.is_enabled and quantizer.amax is not None:
            found[name] = quantizer.amax.max().item()
    return found


def _export(
    model: Any, job: CheckpointJob, precision: Precision, hf_config: dict[str, Any], aside: Path
) -> None:
    ours = ARCHITECTURES[hf_config["architectures"][0]]
    for linear in ours.joined:
        for layer in model.model.layers:  # one smoothing and one scale for what becomes one
            preprocess_linear_fusion(
                [layer.get_submodule(part) for part in ours.linears[linear].parts]
            )
    norms = _take_norms(model, ours)
    ranks = torch_to_tensorrt_llm_checkpoint(
        model,
        ours.decoder_type,
        getattr(torch, precision.dtype),
        inference_tensor_parallel=job.tp,
        inference_pipeline_parallel=job.pp,
    )
    exported: dict[str, Any] = {}
    for exported, weights, _ in ranks:
        # the two that kv_cache_scaling_factor is made of: no release has a parameter for them
        for name in [each for each in weights if each.endswith(_KEY_AND_VALUE_SCALES)]:
            del weights[name]
        for linear, parts in ours.joined.items():
            _join(weights, linear, parts)
        per_stage = len(norms) // job.pp
        first = exported["rank"] // job.tp * per_stage
        for local, found in enumerate(norms[first : first + per_stage]):
            weights |= {f"transformer.layers.{local}.{name}": each for name, each in found.items()}
        weights = {renamed(name, job.names): each for name, each in weights.items()}
        save_file(weights, aside / f"rank{exported['rank']}.safetensors")
    quantization = exported["quantization"]
    if "quantized_layers" in quantization:  # of nothing quantized; no release takes that key
        kept = ("quant_algo", "kv_cache_quant_algo")
        exported["quantization"] = {name: quantization[name] for name in kept}
    elif "exclude_modules" in quantization:
        excluded = [renamed(name, job.names) for name in quantization["exclude_modules"]]
        exported["quantization"] = {**quantization, "exclude_modules": excluded}
    config = complete_config(exported, hf_config, precision.quant_algo)
    (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _take_norms(model: Any, ours: Architecture) -> list[dict[str, Tensor]]:
    """Each layer's norms that the exporter would stumble over, taken out of the model."""
    taken = []
    for layer in model.model.layers:
        found = {}
        for name in ours.unexported:
            norm = layer.get_submodule(ours.norms[name])
            weight = norm.weight.data.float() + ours.norm_offset
            found[f"{name}.weight"] = weight.to(norm.weight.dtype).cpu()
            layer.set_submodule(ours.norms[name], torch.nn.Identity())
        taken.append(found)
    return taken


def _join(weights: dict[str, Tensor], linear: str, parts: Sequence[str]) -> None:
    """Make one linear of several, in place: their output channels one after the other.

    Of what belongs to the input they have one for all, or can't be joined.
    """
    whole = re.compile(rf"(.+\.){re.escape(parts[0])}\.(\w+)")
    for match in [found for name in weights if (found := whole.fullmatch(name))]:
        layer, kind = match.groups()
        each = [weights.pop(f"{layer}{part}.{kind}") for part in parts]
        shared = kind in ("activation_scaling_factor", "prequant_scaling_factor")
        if shared or each[0].numel() == 1:
            if not all(torch.equal(each[0], other) for other in each):
                raise UserError(f"{layer}{linear}: its parts differ in their {kind}")
            weights[f"{layer}{linear}.{kind}"] = each[0]
        else:
            weights[f"{layer}{linear}.{kind}"] = torch.cat(each)


def _export_hf(
    model: Any, job: CheckpointJob, precision: Precision, _: dict[str, Any], aside: Path
) -> None:
    if job.needs_calibration:
        export_hf_checkpoint(model, dtype=getattr(torch, precision.dtype), export_dir=aside)
    else:  # nothing is quantized, and modelopt refuses experts that aren't
        model.save_pretrained(aside)
    for pattern in TOKENIZER_FILES:
        for file in job.model_dir.glob(pattern):
            shutil.copyfile(file, aside / file.name)


def _move(aside: Path, target: Path) -> None:
    mode = (aside / CONFIG).stat().st_mode
    for file in sorted(aside.iterdir(), key=lambda file: file.name == CONFIG):
        file.chmod(mode)  # safetensors makes files for the owner only
        file.replace(target / file.name)
    aside.rmdir()

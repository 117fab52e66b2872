"""From a Hugging Face model to a TensorRT-LLM checkpoint, with NVIDIA modelopt.

Comes in: a checked job. Goes out: ``rank<N>.safetensors`` and, last of all, ``config.json`` in the
job's output folder, so that a folder with a config.json is complete. Runs in a process of its own
(:mod:`deploy.quantize`), on the GPU where there is one and the precision is calibrated.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from client.errors import UserError
from deploy.precision import Precision, find_precision
from deploy.quantize import CheckpointJob, read_prompts
from deploy.trtllm_checkpoint import ARCHITECTURES, CONFIG, complete_config, read_json_object

Progress = Callable[[str], None]


def export_checkpoint(job: CheckpointJob, progress: Progress) -> None:
    """Load, quantize, export, complete the config.

    Raises:
        UserError: the model or its tokenizer doesn't load.
    """
    precision = find_precision(job.precision)
    torch.manual_seed(job.seed)
    progress("0% load model")
    model = _load(job, precision)
    hf_config: dict[str, Any] = model.config.to_dict()
    if precision.modelopt_config:
        model = _quantize(model, job, precision.modelopt_config, progress)
    progress("80% export")
    _export(model, job, precision, hf_config)
    progress("100% done")


def _load(job: CheckpointJob, precision: Precision) -> Any:
    on_gpu = precision.calibrated and torch.cuda.is_available()
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


def _quantize(model: Any, job: CheckpointJob, preset: str, progress: Progress) -> Any:
    assert job.calibration is not None  # check_job saw to it
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            job.model_dir, trust_remote_code=job.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # a broken tokenizer file raises nearly anything
        raise UserError(f"the tokenizer doesn't load: {error}", where=job.model_dir) from error
    prompts = list(read_prompts(job.calibration.path))
    if len(prompts) > job.calibration.samples:
        prompts = random.Random(job.seed).sample(prompts, job.calibration.samples)
    length = job.calibration.max_length
    passes = itertools.count(1)

    def measure(model: Any) -> None:
        # One prompt at a time: padding would be measured too. SmoothQuant and AWQ call this twice.
        label = f"calibrate on {len(prompts)} prompts, pass {next(passes)}"
        for number, prompt in enumerate(prompts):
            if number % max(1, len(prompts) // 20) == 0:
                progress(f"{10 + 70 * number // len(prompts)}% {label}")
            batch = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=length)
            if batch["input_ids"].numel():
                model(input_ids=batch["input_ids"].to(model.device), use_cache=False)

    with torch.no_grad():
        return mtq.quantize(model, getattr(mtq, preset), measure)


def _export(
    model: Any, job: CheckpointJob, precision: Precision, hf_config: dict[str, Any]
) -> None:
    # modelopt writes config.json before the last rank's weights, so it works in a folder aside.
    aside = job.output_dir / ".export"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with torch.no_grad():
        export_tensorrt_llm_checkpoint(
            model,
            ARCHITECTURES[hf_config["architectures"][0]].decoder_type,
            getattr(torch, precision.dtype),
            export_dir=aside,
            inference_tensor_parallel=job.tp,
            inference_pipeline_parallel=job.pp,
        )
    config = complete_config(read_json_object(aside / CONFIG), hf_config, precision.quant_algo)
    (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for shard in aside.glob("rank*.safetensors"):
        shard.chmod((aside / CONFIG).stat().st_mode)  # safetensors makes files for the owner only
        shard.replace(job.output_dir / shard.name)
    (aside / CONFIG).replace(job.output_dir / CONFIG)
    shutil.rmtree(aside)

"""The verification of a job's checkpoint: prompts become tokens, the report becomes a file.

Comes in: a job whose checkpoint is there. Goes out: ``verify.json`` beside the checkpoint, or an
error. Runs on the GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.attention_windows import narrowest
from trtllm_deploy.checkpoint.calibration import built_in_prompts, read_prompts
from trtllm_deploy.checkpoint.job import CheckpointJob, Verification
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.checkpoint.verify import REPORT, Task, verify_checkpoint
from trtllm_deploy.machine.json_files import read_json_object, write_json
from trtllm_deploy.spec.precision import find_precision, least_top1

_MAX_TOKENS = 64  # of a prompt: long enough for attention to matter, short enough for a CPU


def verify_job(
    job: CheckpointJob, progress: Callable[[str], None], measured: Mapping[str, float]
) -> None:
    """Compare the checkpoint with the model and write the report.

    ``measured`` is the largest input of each linear that calibration saw. Raises UserError: the
    checkpoint isn't the model; or the tokenizer doesn't load.
    """
    asked, precision = job.verification, find_precision(job.precision)
    if asked is None:
        return
    if job.kind == "hf" and precision.group_size:
        # its scales are folded into the weights before it: no layer is the original's
        write_json(job.output_dir / REPORT, {"skipped": f"no reader for {precision.name} as hf"})
        return
    progress("90% verify")
    task = Task(
        model_dir=job.model_dir,
        checkpoint_dir=job.output_dir,
        precision=precision,
        prompts=_tokens(job, asked),
        min_top1=least_top1(precision, job.kv_cache_dtype)
        if asked.min_top1 is None
        else asked.min_top1,
        kv_cache_dtype=job.kv_cache_dtype,
        measured=measured,
        as_hf=job.kind == "hf",
    )
    report = verify_checkpoint(task, "cuda" if torch.cuda.is_available() else "cpu")
    write_json(job.output_dir / REPORT, report)
    before, after = report["perplexity"]["original"], report["perplexity"]["checkpoint"]
    progress(
        f"99% verified: top tokens agree at {report['top1']:.1%} of {report['positions']}"
        f" positions, perplexity {before:.4g} to {after:.4g}"
    )


def _tokens(job: CheckpointJob, asked: Verification) -> list[list[int]]:
    """Token ids of the prompts; of those that calibration used, where there was one."""
    encode = job.encoder()
    # a checkpoint says nothing of sliding windows: within one, both see the same
    most = min(_MAX_TOKENS, narrowest(read_json_object(job.model_dir / CONFIG)) or _MAX_TOKENS)
    if job.calibration is not None:
        texts = job.prompts()
    else:
        texts = built_in_prompts() if asked.text is None else list(read_prompts(asked.text))
    found = [encode(text, most) for text in texts[: asked.prompts]]
    prompts = [ids for ids in found if len(ids) > 1]
    if not prompts:
        raise UserError("no prompt of two tokens at least to verify on", where=asked.text)
    return prompts

"""The TensorRT-LLM container's own checkpoint scripts: convert_checkpoint.py and quantize.py.

Comes in: a checked job that names a release, its calibration prompts in a file. Goes out: a
checkpoint whose config is complete. The flags are checked against the release; what the scripts do
is theirs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.checkpoint.calibration import read_prompts
from trtllm_deploy.checkpoint.job import CheckpointJob
from trtllm_deploy.checkpoint.trtllm_format import CONFIG, add_defaults
from trtllm_deploy.machine.child import run_command
from trtllm_deploy.machine.json_files import read_json_object, write_json
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.precision import find_precision


def script_command(job: CheckpointJob, calibration_dir: Path, architecture: str) -> tuple[str, ...]:
    """The command that makes the job's checkpoint of a model of ``architecture``, as argv.

    Full precision is converted, which needs no GPU; all else goes through quantize.py, int8_wo too:
    convert_checkpoint.py would lay its weights out for one GPU type, unreadable elsewhere. Raises
    UserError: the release has no such script, or it doesn't take a flag or its value.
    """
    assert job.release is not None
    release, precision = load_release(job.release), find_precision(job.precision)
    where = {
        "model_dir": str(job.model_dir.absolute()),
        "output_dir": str(job.output_dir.absolute()),
    }
    split = {"dtype": precision.dtype, "tp_size": job.tp, "pp_size": job.pp}
    if precision.quant_algo is None and job.kv_cache_dtype is None:
        ours = ARCHITECTURES[architecture]
        name = f"convert_checkpoint-{ours.script or ours.decoder_type}"
        values: dict[str, Any] = {**where, **split}
        if job.pp == 1:
            del values["pp_size"]  # a script may have none
    else:
        name = "quantize"
        values = {**where, **split, **_quantize_flags(job, calibration_dir)}
    command = release.commands.get(name)
    if command is None:
        raise UserError(f"TensorRT-LLM {job.release} has no script for {name}")
    return ("python3", release.script(name), *command.line(command.spelt(values)))


def _quantize_flags(job: CheckpointJob, calibration_dir: Path) -> dict[str, Any]:
    precision = find_precision(job.precision)
    flags: dict[str, Any] = {
        "qformat": "full_prec"
        if precision.quant_algo is None
        else precision.like or precision.name,
        "kv_cache_dtype": job.kv_cache_dtype,
        "seed": job.seed,
    }
    if precision.group_size:
        flags["awq_block_size"] = precision.group_size
    if job.calibration is not None:
        flags |= {
            "calib_dataset": str(calibration_dir.absolute()),
            "calib_size": job.calibration.samples,
            "calib_max_seq_length": job.calibration.max_length,
        }
    return flags


def run_scripts(
    job: CheckpointJob,
    log_file: Path,
    on_line: Callable[[str], None],
    environment: Mapping[str, str],
) -> None:
    """Run the script; its output goes to ``log_file``.

    Raises UserError: a flag that the release doesn't take, or the script failed or wrote no config.
    """
    calibration_dir = log_file.with_suffix(".calibration")
    architecture = read_json_object(job.model_dir / CONFIG)["architectures"][0]
    command = script_command(job, calibration_dir, architecture)
    try:
        if job.calibration is not None:
            write_data_set(job, calibration_dir)
        job.output_dir.mkdir(parents=True, exist_ok=True)
        run_command(command, log_file=log_file, on_line=on_line, environment=environment)
    finally:
        shutil.rmtree(calibration_dir, ignore_errors=True)
    if not (job.output_dir / CONFIG).is_file():
        raise UserError(f"{Path(command[1]).name} wrote no {CONFIG}", where=log_file)
    complete(job.output_dir)


def complete(checkpoint: Path) -> None:
    """Write into a script's config.json what the script leaves to TensorRT-LLM's defaults."""
    write_json(checkpoint / CONFIG, add_defaults(read_json_object(checkpoint / CONFIG)))


def write_data_set(job: CheckpointJob, folder: Path) -> None:
    """A folder that ``datasets`` loads with split train, column text: what quantize.py reads."""
    assert job.calibration is not None
    assert not isinstance(job.calibration.data, str)  # the caller fetched it
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as stream:
        for text in read_prompts(job.calibration.data):
            stream.write(json.dumps({"text": text}) + "\n")

"""Making a checkpoint: the child process that does it, and the parent's side of it.

    python -m trtllm_deploy.checkpoint.quantize JOB.json

The parent's side imports no torch: it checks the job, gets the calibration prompts, starts the
child, and reads two kinds of lines from it, ``progress: 40% calibrate`` and ``error: ...``; all
else goes to the log. The child works in ``modelopt_export`` and then verifies what it made, offline
and without credentials. Where the container's own scripts make the checkpoint
(``container_scripts``), the child only verifies.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.calibration import write_prompts
from trtllm_deploy.checkpoint.container_scripts import run_scripts
from trtllm_deploy.checkpoint.job import CheckpointJob, check_job
from trtllm_deploy.checkpoint.trtllm_format import check_checkpoint
from trtllm_deploy.machine.child import CommandFailedError, run_command
from trtllm_deploy.machine.environment import clean_environment

_PROGRESS = "progress: "
_ERROR = "error: "
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

_UNWRITABLE = re.compile(
    r"No space left|Disk quota exceeded|Read-only file system|Permission denied"
)

OnLine = Callable[[str], None]


def run_checkpoint(job: CheckpointJob, log_file: Path, on_line: OnLine = lambda _: None) -> None:
    """Make the checkpoint in a child process; returns when it is there, complete and verified.

    ``on_line`` is told each progress text, such as ``40% calibrate``. The child ends with the
    parent, however that ends. Raises UserError: the job can't be done, the child failed, or the
    checkpoint isn't the model; says why and where the log is.
    """
    check_job(job)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    environment = clean_environment(_OFFLINE)
    job = _with_prompts(job, log_file, on_line)
    if job.release is not None:
        run_scripts(job, log_file, on_line, environment)
    job_file = log_file.with_suffix(".job.json")
    job_file.write_text(job.to_json(), encoding="utf-8")
    _run_child(job, job_file, log_file, on_line, environment)
    if job.kind == "trtllm":
        check_checkpoint(job.output_dir)


def _with_prompts(job: CheckpointJob, log_file: Path, on_line: OnLine) -> CheckpointJob:
    """The job with calibration data that is a file: the child has no network."""
    calibration = job.calibration if job.needs_calibration else None
    if calibration is not None and (isinstance(calibration.data, str) or calibration.data.is_dir()):
        on_line(f"0% read {calibration.data}")
        file = log_file.with_suffix(".calibration.jsonl")
        data = write_prompts(calibration.data, calibration.samples, file)
        calibration = replace(calibration, data=data)
    return replace(job, calibration=calibration)


def _run_child(
    job: CheckpointJob,
    job_file: Path,
    log_file: Path,
    on_line: OnLine,
    environment: dict[str, str],
) -> None:
    said = ""

    def follow(line: str) -> None:
        nonlocal said
        if line.startswith(_PROGRESS):
            on_line(line[len(_PROGRESS) :].strip())
        elif line.startswith(_ERROR):
            said = line[len(_ERROR) :].strip()

    try:
        run_command(
            [sys.executable, "-m", "trtllm_deploy.checkpoint.quantize", str(job_file.absolute())],
            log_file=log_file,
            on_line=follow,
            environment=environment,
            cwd=Path(__file__).parents[2],  # -m looks there first, whatever lies where we run
            append=job.release is not None,
        )
    except CommandFailedError as error:
        if error.returncode == 2 and said:
            raise UserError(said) from None
        why = said or f"it ended with exit code {error.returncode}"
        if error.returncode == -9:
            why = "it was killed, perhaps for lack of memory"
        raise UserError(
            f"quantization to {job.precision} failed: {why}",
            where=log_file,
            fix=_MEMORY if error.out_of_memory and error.returncode != -9 else None,
        ) from None


_MEMORY = "choose more GPUs (tp, pp), fewer calibration samples or a shorter max_length"


def main(arguments: list[str] | None = None) -> int:
    """The child. Exit code 0: done, 2: the user can mend it, 1: anything else (with traceback)."""
    parser = argparse.ArgumentParser(
        prog="trtllm_deploy.checkpoint.quantize", description="Make one checkpoint."
    )
    parser.add_argument("job", type=Path, help="JSON file of a CheckpointJob")
    options = parser.parse_args(arguments)
    os.environ.update(_OFFLINE)
    job = CheckpointJob.from_json(options.job.read_text(encoding="utf-8"))
    try:
        _make(job)
    except UserError as error:
        print(f"{_ERROR}{error}", flush=True)
        return 2
    except Exception as error:
        if _UNWRITABLE.search(str(error)):
            print(f"{_ERROR}{job.output_dir}: can't be written: {error}", flush=True)
            return 2
        traceback.print_exc()
        sys.stderr.flush()
        print(f"{_ERROR}{type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        return 1
    return 0


def _make(job: CheckpointJob) -> None:
    def progress(text: str) -> None:
        print(f"{_PROGRESS}{text}", flush=True)

    try:
        if job.release is None:  # else a script of NVIDIA's made it, and modelopt takes seconds
            check_job(job)
            from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint
        from trtllm_deploy.checkpoint.verify_job import verify_job
    except ImportError as error:
        raise UserError(
            f"quantization needs more packages: {error}",
            fix="pip install 'trtllm-deploy[quantize]'",
        ) from error
    measured = export_checkpoint(job, progress) if job.release is None else {}
    verify_job(job, progress, measured)
    progress("100% done")


if __name__ == "__main__":
    sys.exit(main())

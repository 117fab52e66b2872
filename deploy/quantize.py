"""Making a TensorRT-LLM checkpoint: the job, its checks, and the child process that does it.

    python -m deploy.quantize JOB.json

The parent's side imports no torch: it checks the job, starts the child, and reads two kinds of
lines from it, ``progress: 40% calibrate`` and ``error: ...``; all else goes to the log. The child
works in :mod:`deploy.modelopt_export`, offline and without credentials.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from client.errors import UserError
from deploy.precision import Precision, find_precision
from deploy.trtllm_checkpoint import ARCHITECTURES, CONFIG, check_checkpoint, read_json_object

_PROGRESS = "progress: "
_ERROR = "error: "
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_CREDENTIALS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Prompts to measure activations on: a jsonl with ``text_input`` or ``text``.

    At most ``samples`` prompts are used, each cut to ``max_length`` tokens.
    """

    path: Path
    samples: int = 128
    max_length: int = 512


@dataclass(frozen=True, slots=True)
class CheckpointJob:
    """A Hugging Face model folder to turn into a checkpoint for ``tp`` x ``pp`` GPUs.

    ``seed`` chooses the calibration prompts where there are more than asked for.
    """

    model_dir: Path
    output_dir: Path
    precision: str
    tp: int = 1
    pp: int = 1
    calibration: Calibration | None = None
    trust_remote_code: bool = False
    seed: int = 1234

    def to_json(self) -> str:
        """The job as JSON, paths absolute."""
        return json.dumps(asdict(self), default=lambda path: str(Path(path).absolute()), indent=2)

    @classmethod
    def from_json(cls, text: str) -> CheckpointJob:
        """The job that :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: the text isn't such a job.
        """
        fields: dict[str, Any] = json.loads(text)
        asked = fields.pop("calibration", None)
        if asked is not None:
            asked = Calibration(**{**asked, "path": Path(asked["path"])})
        fields |= {name: Path(fields[name]) for name in ("model_dir", "output_dir")}
        return cls(**fields, calibration=asked)


def check_job(job: CheckpointJob) -> None:
    """Find what would make the job fail, without loading the model.

    Raises:
        UserError: the model folder, the architecture, tp or pp, the calibration data, or an
            output folder that isn't free.
    """
    precision = find_precision(job.precision)
    if (job.output_dir / CONFIG).exists() or any(job.output_dir.glob("rank*.safetensors")):
        raise UserError("already holds a checkpoint", where=job.output_dir)
    file = job.model_dir / CONFIG
    if not file.is_file():
        raise UserError("is no Hugging Face model: it has no config.json", where=job.model_dir)
    config = read_json_object(file)
    architectures = config.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise UserError(
            f"architecture '{architectures[0]}' isn't supported",
            where=file,
            fix=f"one of: {', '.join(ARCHITECTURES)}",
        )
    _check_division(job, precision, config, file)
    if not precision.calibrated:
        return
    if job.calibration is None:
        raise UserError(
            f"precision '{precision.name}' needs calibration prompts",
            fix="name a jsonl with text_input under 'calibration'",
        )
    if not list(read_prompts(job.calibration.path)):
        raise UserError("no calibration prompts in it", where=job.calibration.path)


def _check_division(
    job: CheckpointJob, precision: Precision, config: Mapping[str, Any], file: Path
) -> None:
    """Each GPU takes whole heads, whole channels, whole layers, whole groups."""
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        kv_heads = config.get("num_key_value_heads") or heads
        width = heads * (config.get("head_dim") or hidden // heads)
        channels = {
            "hidden_size": hidden,
            "intermediate_size": config["intermediate_size"],
            "attention width": width,
        }
        counts = {"num_attention_heads": heads, **channels}
        layers = config["num_hidden_layers"]
    except KeyError as error:
        raise UserError(f"required field {error} is missing", where=file) from None
    for name, count in counts.items():
        if count % job.tp:
            raise UserError(f"tp {job.tp} doesn't divide {name} {count}", where=file)
    if kv_heads % job.tp and job.tp % kv_heads:
        raise UserError(
            f"tp {job.tp} and num_key_value_heads {kv_heads} don't divide each other", where=file
        )
    if layers % job.pp:
        raise UserError(f"pp {job.pp} doesn't divide num_hidden_layers {layers}", where=file)
    if precision.name == "int8_sq" and job.tp > kv_heads:
        raise UserError(
            f"int8_sq can't repeat key-value heads: tp {job.tp} is more than {kv_heads}", where=file
        )
    for name, count in channels.items():
        if precision.group_size and count % (precision.group_size * job.tp):
            raise UserError(
                f"{precision.name} needs {name} {count} divisible by tp x {precision.group_size}",
                where=file,
            )


def read_prompts(path: Path) -> Iterator[str]:
    """The prompts of a calibration jsonl, one by one.

    Raises:
        UserError: can't be read, or with the line: isn't a JSON object, has neither field.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # U+2028 may stand in a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=path) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"not JSON: {error}", where=path, line=number) from None
        text = row.get("text_input", row.get("text")) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text:
            raise UserError("no text in 'text_input' or 'text'", where=path, line=number)
        yield text


def run_checkpoint(
    job: CheckpointJob, log_file: Path, on_line: Callable[[str], None] | None = None
) -> None:
    """Make the checkpoint in a child process; returns when it is there and complete.

    ``on_line`` is told each progress text, such as ``40% calibrate``. The child ends with the
    parent, however that ends.

    Raises:
        UserError: the job can't be done, or the child failed; says why and where the log is.
    """
    check_job(job)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    job_file = log_file.with_suffix(".job.json")
    job_file.write_text(job.to_json(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "deploy.quantize",
        str(job_file.absolute()),
        "--until-stdin-closes",
    ]
    environment = {key: value for key, value in os.environ.items() if key not in _CREDENTIALS}
    with (
        log_file.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],  # -m looks there first, whatever lies where we run
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**environment, **_OFFLINE},
        ) as child,
    ):
        assert child.stdout is not None
        try:
            said = _follow(child.stdout, log, on_line or (lambda _: None))
        except BaseException:
            child.kill()
            raise
    if child.returncode == 2 and said:
        raise UserError(said)
    if child.returncode:
        why = said or f"it ended with exit code {child.returncode}"
        if child.returncode == -9:
            why = "it was killed, perhaps for lack of memory"
        raise UserError(f"quantization to {job.precision} failed: {why}", where=log_file)
    check_checkpoint(job.output_dir)


def _follow(lines: TextIO | Any, log: TextIO, on_line: Callable[[str], None]) -> str | None:
    """Copy the child's lines to the log; returns its last error line."""
    error = None
    for line in lines:
        log.write(line)
        log.flush()
        if line.startswith(_PROGRESS):
            on_line(line[len(_PROGRESS) :].strip())
        elif line.startswith(_ERROR):
            error = line[len(_ERROR) :].strip()
    return error


def main(arguments: list[str] | None = None) -> int:
    """The child. Exit code 0: done, 2: the user can mend it, 1: anything else (with traceback)."""
    parser = argparse.ArgumentParser(prog="deploy.quantize", description="Make one checkpoint.")
    parser.add_argument("job", type=Path, help="JSON file of a CheckpointJob")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the parent")
    options = parser.parse_args(arguments)
    os.environ.update(_OFFLINE)
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job = CheckpointJob.from_json(options.job.read_text(encoding="utf-8"))
        check_job(job)
        _export(job)
        check_checkpoint(job.output_dir)
    except UserError as error:
        print(f"{_ERROR}{error}", flush=True)
        return 2
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        print(f"{_ERROR}{type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        return 1
    return 0


def _export(job: CheckpointJob) -> None:
    try:
        from deploy.modelopt_export import export_checkpoint
    except ImportError as error:
        raise UserError(
            f"quantization needs more packages: {error}",
            fix="pip install 'trtllm-deploy[quantize]'",
        ) from error
    export_checkpoint(job, lambda text: print(f"{_PROGRESS}{text}", flush=True))


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

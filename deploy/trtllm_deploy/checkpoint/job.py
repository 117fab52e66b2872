"""A checkpoint to make: what is asked for, and what can be known to be wrong with it beforehand.

Comes in: a Hugging Face model folder, a precision, a split over GPUs. Goes out: a checked job.
Reads configs and prompts only; torch isn't needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.calibration import choose, read_prompts
from trtllm_deploy.checkpoint.source_faults import CheckpointKind, source_fault
from trtllm_deploy.checkpoint.source_files import check_weights, model_config
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.spec.precision import PRECISIONS, find_precision


@dataclass(frozen=True, slots=True)
class Calibration:
    """Prompts to measure activations on.

    ``data`` is a jsonl with ``text_input`` or ``text``, the folder of a data set, or the name of
    one on the hub. At most ``samples`` prompts are used, each cut to ``max_length`` tokens.
    """

    data: Path | str
    samples: int = 512
    max_length: int = 512


@dataclass(frozen=True, slots=True)
class Verification:
    """How the checkpoint is compared with the model.

    ``min_top1`` is the share of positions with the same top token to ask for, None for the
    precision's own. ``text`` is a jsonl of prompts for a job without calibration data; None takes
    built-in texts.
    """

    prompts: int = 32
    min_top1: float | None = None
    text: Path | None = None


@dataclass(frozen=True, slots=True)
class CheckpointJob:
    """A Hugging Face model folder to turn into a checkpoint for ``tp`` x ``pp`` GPUs.

    ``kind`` is trtllm, for trtllm-build and the reference backend, or hf, for the LLM API.
    ``release`` names the TensorRT-LLM release whose own scripts make the checkpoint; None: modelopt
    in this environment. ``names`` are beginnings of a layer's tensor names, and what the release
    that builds calls them. ``seed`` chooses prompts where there are more than asked for.
    """

    model_dir: Path
    output_dir: Path
    precision: str
    tp: int = 1
    pp: int = 1
    calibration: Calibration | None = None
    trust_remote_code: bool = False
    seed: int = 1234
    kv_cache_dtype: str | None = None
    kind: CheckpointKind = "trtllm"
    release: str | None = None
    verification: Verification | None = Verification()
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs_calibration(self) -> bool:
        """Whether activations or the KV cache are measured on prompts."""
        return PRECISIONS[self.precision].calibrated or self.kv_cache_dtype is not None

    def prompts(self) -> list[str]:
        """Those to calibrate on; the data is a file by then."""
        assert self.calibration is not None and isinstance(self.calibration.data, Path)
        return choose(
            list(read_prompts(self.calibration.data)), self.calibration.samples, self.seed
        )

    def encoder(self) -> Callable[[str, int], list[int]]:
        """Text to at most so many token ids, special tokens included: as serving tokenizes.

        With tokenizer.json, where there is one: transformers may read another tokenizer out of it
        (its LlamaTokenizerFast loses the spaces of a byte-level one). Raises UserError: it doesn't
        load.
        """
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        file = self.model_dir / "tokenizer.json"
        try:
            if file.is_file():
                own = Tokenizer.from_file(str(file))
                own.no_truncation()
                own.no_padding()
                return lambda text, most: list(own.encode(text).ids[:most])
            other: Any = AutoTokenizer.from_pretrained(
                self.model_dir, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
            return lambda text, most: list(other(text)["input_ids"][:most])
        except Exception as error:  # a broken tokenizer file raises nearly anything
            raise UserError(f"the tokenizer doesn't load: {error}", where=self.model_dir) from error

    def to_json(self) -> str:
        """The job as JSON, paths absolute."""
        return json.dumps(asdict(self), default=lambda path: str(Path(path).absolute()), indent=2)

    @classmethod
    def from_json(cls, text: str) -> CheckpointJob:
        """The job that :meth:`to_json` wrote; calibration data is a file by then.

        Raises ValueError, TypeError: the text isn't such a job.
        """
        fields: dict[str, Any] = json.loads(text)
        calibration, verification = fields.pop("calibration"), fields.pop("verification")
        if calibration is not None:
            calibration = Calibration(**{**calibration, "data": Path(calibration["data"])})
        if verification is not None:
            prompts = verification["text"]
            text_file = None if prompts is None else Path(prompts)
            verification = Verification(**{**verification, "text": text_file})
        fields |= {name: Path(fields[name]) for name in ("model_dir", "output_dir")}
        return cls(**fields, calibration=calibration, verification=verification)


def check_job(job: CheckpointJob) -> None:
    """Find what would make the job fail, without loading the model.

    Raises UserError: the model folder, the architecture, tp or pp, the calibration data, or an
    output folder that isn't free.
    """
    precision = find_precision(job.precision)
    if (job.output_dir / CONFIG).exists() or any(job.output_dir.glob("rank*.safetensors")):
        raise UserError("already holds a checkpoint", where=job.output_dir)
    file = job.model_dir / CONFIG
    if not file.is_file():
        raise UserError("is no Hugging Face model: it has no config.json", where=job.model_dir)
    config = model_config(job.model_dir)
    if job.kind == "hf" and not precision.as_hf:
        known = ", ".join(each.name for each in PRECISIONS.values() if each.as_hf)
        raise UserError(f"the LLM API takes no {precision.name} checkpoint", fix=f"use {known}")
    try:
        fault = source_fault(config, job.kind, precision, job.tp, job.pp)
    except KeyError as error:
        raise UserError(f"required field {error} is missing", where=file) from None
    if fault is not None:
        raise UserError(fault.what, where=file, fix=fault.fix)
    check_weights(job.model_dir)
    _check_calibration(job)


def _check_calibration(job: CheckpointJob) -> None:
    if not job.needs_calibration:
        return
    if job.calibration is None:
        raise UserError(
            f"precision '{job.precision}' needs calibration prompts",
            fix="name a jsonl with text_input under 'calibration'",
        )
    data = job.calibration.data
    if isinstance(data, Path) and not data.is_dir() and not list(read_prompts(data)):
        raise UserError("no calibration prompts in it", where=data)

"""What the installed TensorRT-LLM says of a command and a checkpoint, before GPU time is spent.

Comes in: trtllm-build's arguments, a checkpoint folder. Goes out: its verdict, in its own words.
The questions are asked in a child process (``judge_child``), by the Python that trtllm-build runs
with; this one imports nothing of TensorRT-LLM. Where none is installed, nothing is asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.backends.judge_child import ANSWER
from trtllm_deploy.machine.supervise import ending_with_parent

_CHILD = Path(__file__).with_name("judge_child.py")
_LIMIT_S = 300.0  # importing tensorrt_llm from a cold disk takes a minute, the questions seconds
_KEPT = (  # of the environment: what finds libraries and GPUs, no credentials
    *("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "OPAL_PREFIX", "OMP_NUM_THREADS"),
)
_FIXES: Mapping[str, str] = {
    # what TensorRT-LLM says → what mends it
    r"unrecognized arguments: (.+)": "remove {0} from 'build:'",
    r"argument (\S+): ": "write another value for {0}",
    r"has no attribute '(\w+)'": "config.json lacks {0} for this release; write"
    " 'checkpoint_with: scripts'",
    r"unsupported model architecture|^KeyError: ": "choose a release that has the architecture",
    r"not provided tensors": "write 'checkpoint_with: scripts', and the release makes its own",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``refused`` says why in TensorRT-LLM's words, ``unasked`` why it couldn't be asked.

    ``counts`` are tensors over the ranks that differ: parameters, missing, refused, unexpected.
    """

    refused: str | None = None
    unasked: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Question:
    """``command``: arguments of trtllm-build; ``checkpoint``: a folder. Either may be left out."""

    command: tuple[str, ...] = ()
    checkpoint: Path | None = None


def ask(
    questions: Sequence[Question], python: Sequence[str] | None = None, limit_s: float = _LIMIT_S
) -> list[Verdict]:
    """Ask the TensorRT-LLM whose trtllm-build is on PATH, or that of ``python``; in their order.

    Never raises for what the child does: where it crashes or is slower than ``limit_s``, the
    verdicts that are missing say so as ``unasked``.
    """
    python = python or _python()
    if python is None:
        return [Verdict(unasked="there is no trtllm-build here") for _ in questions]
    asked = "".join(json.dumps(asdict(each), default=str) + "\n" for each in questions)
    try:
        said, why = _answers([*python, str(_CHILD)], asked, limit_s)
    except OSError as error:
        said, why = "", f"{python[0]} doesn't run: {error.strerror}"
    lines = [each[len(ANSWER) :] for each in said.splitlines() if each.startswith(ANSWER)]
    verdicts = [Verdict(**json.loads(line)) for line in lines]
    return verdicts + [Verdict(unasked=why) for _ in questions[len(verdicts) :]]


def refuse_unless_accepted(command: Sequence[str], checkpoint: Path, release: str) -> str | None:
    """Ask, and pass on a refusal; returns why nothing could be asked, None where it is accepted.

    Raises UserError: TensorRT-LLM refuses the command or the checkpoint, in its words.
    """
    (verdict,) = ask([Question(tuple(command), checkpoint)])
    if verdict.refused is None:
        return verdict.unasked
    raise UserError(
        f"TensorRT-LLM {release} refuses it: {verdict.refused}",
        where=checkpoint,
        fix=fix_of(verdict.refused),
    )


def fix_of(refused: str) -> str | None:
    """What mends a refusal, where known."""
    for pattern, fix in _FIXES.items():
        if match := re.search(pattern, refused):
            return fix.format(*match.groups())
    return None


def _python() -> tuple[str, ...] | None:
    """The interpreter in trtllm-build's first line: the container's, not ours."""
    tool = shutil.which("trtllm-build")
    if tool is None:
        return None
    with Path(tool).open("rb") as stream:
        first = stream.readline(4096).decode("utf-8", "replace")
    words = first[2:].split() if first.startswith("#!") else []
    return tuple(words) if words and "python" in words[-1] else ("python3",)


def _answers(command: Sequence[str], asked: str, limit_s: float) -> tuple[str, str]:
    """What the child said, and why it said no more."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
        start_new_session=True,
        preexec_fn=ending_with_parent(),
    ) as child:
        try:
            said, _ = child.communicate(asked, timeout=limit_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            said, _ = child.communicate()
            return said, f"it didn't answer within {limit_s:g} s"
    last = ([line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"])[-1]
    return said, f"it ended with exit code {child.returncode}: {last[:300]}"

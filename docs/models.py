"""Write models.md: what becomes of a tiny random model of each architecture in each precision.

    TRTLLM_SOURCES=FOLDER python docs/models.py      # minutes; FOLDER has <release>/TensorRT-LLM
    TRTLLM_SOURCES=FOLDER python docs/models.py Gemma2ForCausalLM ...      # only their rows anew
    python docs/models.py --check                    # seconds: the table has every row, no other

Each is exported by modelopt whole, for two ranks of tensor parallelism and for two stages; read
back and verified; served by the reference engine; and shown to TensorRT-LLM's own classes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, former_names  # noqa: E402
from trtllm_deploy.releases.release import release_number  # noqa: E402
from trtllm_deploy.spec.precision import PRECISIONS  # noqa: E402

TABLE = ROOT / "docs" / "models.md"
SPLITS = {"whole": (1, 1), "tp 2": (2, 1), "pp 2": (1, 2)}
KV = {"fp8": "fp8", "int8_sq": "int8"}
HEAD = "| architecture | precision | made | verified | served | accepted by |"
TEXT = """# Models

What is sure of each architecture on the engine path. Written by `docs/models.py` from tiny random
models (2 layers, 256 wide), with the real modelopt and transformers, and TensorRT-LLM's own Python
of {trees}.

- **made**: exported {splits}; fp8 with an fp8 KV cache, int8_sq with an int8 one. The precisions
  whose names end in _bf16 weren't run.
- **verified**: read back from two ranks, no fault in any tensor; the share of positions with the
  model's top token. Random weights are the worst case for a coarse precision: no two tokens are far
  apart. A trained model is held to the shares in [reference.md](reference.md).
- **served**: the reference engine's greedy answers are those of transformers' `generate`: of the
  model itself for fp16, of the checkpoint read back for what is rounded.
- **accepted by**: releases whose own `PretrainedConfig`, model class and loading take every
  checkpoint made, with no tensor missing, refused or unexpected. 1.0.0 calls some activation
  scales of w4a8_awq unexpected.

Other architectures go through `backend: llmapi`, whose engine says what it takes.

{head}
|---|---|---|---|---|---|
{rows}
"""
Row = tuple[str, str]
_FORMER = "-former"  # a checkpoint with the names of releases before Architecture.renamed_in


def rows() -> Iterator[Row]:
    """What the table has a line of."""
    for name, architecture in ARCHITECTURES.items():
        for precision in PRECISIONS.values():
            variant = precision.name.endswith("_bf16")  # the same weights, in another type around
            if precision.quant_algo not in architecture.without and not variant:
                yield name, precision.name


def main(*words: str) -> str | None:
    """Write the table, or say what is wrong with the one there is."""
    if "--check" in words:
        found = re.findall(r"^\| (\w+) \| (\w+) \|", TABLE.read_text("utf-8"), re.MULTILINE)
        lost = set(rows()) ^ (set(found) - {("architecture", "precision")})
        return f"docs/models.md isn't of this code, see docs/models.py: {sorted(lost)}" * bool(lost)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modelopt's
        TABLE.write_text(_text(Path(folder), words or tuple(ARCHITECTURES)), encoding="utf-8")
    return None


def _text(root: Path, names: Sequence[str]) -> str:
    from tests.deploy.tiny_models import save_tiny

    models = {name: save_tiny(root / name, name) for name in names}
    told: dict[Row, list[str]] = {}
    made: dict[Row, list[Path]] = {}
    for name, precision in rows():
        if name in names:
            print(name, precision, file=sys.stderr, flush=True)
            told[name, precision], made[name, precision] = _tried(models[name], name, precision)
    accepted = _accepted(made)
    lines = {row: f"| {' | '.join((*row, *told[row], _span(accepted[row])))} |" for row in told}
    return TEXT.format(
        trees=", ".join(_trees()) or "no release",
        splits=", ".join(SPLITS),
        head=HEAD,
        rows="\n".join(lines.get(row) or _kept(row) for row in rows()),
    )


def _kept(row: Row) -> str:
    """The line of a row that isn't made anew."""
    start = f"| {' | '.join(row)} |"
    return next(line for line in TABLE.read_text("utf-8").splitlines() if line.startswith(start))


def _tried(model: Path, name: str, precision: str) -> tuple[list[str], list[Path]]:
    """The first three verdicts, and the checkpoints."""
    from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob
    from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint

    folders: dict[str, list[Path]] = {}
    said = []
    measured: Mapping[str, float] = {}
    ours = ARCHITECTURES[name]
    for (split, (tp, pp)), names in product(SPLITS.items(), ({}, ours.formerly)):
        if (pp > 1 and not ours.pp) or (split in folders and not names):
            continue
        target = model.parent / f"{name}-{precision}-{tp}-{pp}{_FORMER * bool(names)}"
        calibration = Calibration(model / "prompts.jsonl", 3, 32)
        kv = KV.get(precision)
        job = CheckpointJob(
            *(model, target, precision, tp, pp, calibration), kv_cache_dtype=kv, names=names
        )
        with contextlib.redirect_stdout(sys.stderr):
            measured = export_checkpoint(job, lambda _: None)
        folders.setdefault(split, []).append(target)
    said.append(", ".join(folders))
    said.append(_verified(model, folders["tp 2"][-1], precision, measured))
    said.append("yes" if _served(model, folders["whole"][-1], precision) else "no")
    return said, [each for made in folders.values() for each in made]


def _verified(model: Path, made: Path, precision: str, measured: Mapping[str, float]) -> str:
    from llm_perf.errors import UserError
    from trtllm_deploy.checkpoint.verify import Task, verify_checkpoint

    prompts, kv = _prompts(), KV.get(precision)
    task = Task(model, made, PRECISIONS[precision], prompts, 0.0, measured, kv_cache_dtype=kv)
    try:
        return f"{verify_checkpoint(task)['top1']:.1%}"
    except UserError as error:
        return f"no: {error}"


def _served(model: Path, made: Path, precision: str) -> bool:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.deploy.engines import ask, tokens
    from trtllm_deploy.checkpoint.readback import load_model
    from trtllm_deploy.reference.generation import Engine, Request
    from trtllm_deploy.reference.limits import CacheSettings, Limits

    truth = (
        AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if precision == "fp16"
        else load_model(made)
    )
    expected = [
        truth.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=-1)[
            0, len(prompt) :
        ].tolist()
        for prompt in _prompts()
    ]
    limits = Limits(4, 64, 128, 64, 16)
    engine = Engine(load_model(made), limits, CacheSettings())
    try:
        asked = [Request(tuple(prompt), 8) for prompt in _prompts()]
        return [list(tokens(answer)) for answer in ask(engine, asked)] == expected
    finally:
        engine.close()


def _prompts() -> Sequence[Sequence[int]]:
    """The tokens that the models are calibrated on (tests/deploy/tiny_models.py)."""
    return [list(range(first, first + 30)) for first in (1, 31, 61)]


def _trees() -> Mapping[str, Path]:
    root = os.environ.get("TRTLLM_SOURCES")
    files = Path(root).glob("*/TensorRT-LLM/tensorrt_llm/builder.py") if root else ()
    return {file.parents[2].name: file.parents[1] for file in sorted(files)}


def _accepted(made: Mapping[Row, Sequence[Path]]) -> Mapping[Row, Sequence[str]]:
    """The releases that take all checkpoints of a row."""
    from trtllm_deploy.backends.judge import Question, ask

    child = str(ROOT / "tests" / "nvidia" / "without_tensorrt.py")
    found: dict[Row, list[str]] = {row: [] for row in made}
    for release, tree in _trees().items():
        print(release, file=sys.stderr, flush=True)
        flat = [
            (row, folder)
            for row, folders in made.items()
            for folder in folders
            if not ARCHITECTURES[row[0]].formerly
            or bool(former_names(row[0], release_number(release))) == folder.name.endswith(_FORMER)
        ]
        asked = [Question(checkpoint=folder) for _, folder in flat]
        verdicts = ask(asked, [sys.executable, child, str(tree)], limit_s=900)
        bad = {
            row
            for (row, _), verdict in zip(flat, verdicts, strict=True)
            if verdict.refused or verdict.unasked or any(_wrong(verdict.counts))
        }
        for row in made.keys() - bad:
            found[row].append(release)
    return found


def _wrong(counts: Mapping[str, int]) -> Iterator[int]:
    return (number for name, number in counts.items() if name != "parameters")


def _span(releases: Sequence[str]) -> str:
    """Releases, a run of the trees as first to last."""
    known = list(_trees())
    if len(releases) < 3 or known.index(releases[-1]) - known.index(releases[0]) >= len(releases):
        return ", ".join(releases) or "none"
    return f"{releases[0]} to {releases[-1]}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) or 0)

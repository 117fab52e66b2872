"""Prompts for calibration and verification, from wherever they are.

Comes in: a jsonl, the folder of a data set, or a data set's name on the Hugging Face hub. Goes out:
texts. Imports no torch; ``datasets`` only where a folder or the hub needs it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module, resources
from itertools import islice
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError

# Hub data sets that ask for more than a name: (repository, configuration).
_HUB = {"cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0")}
_COLUMNS = ("text_input", "text", "article", "prompt", "content", "question", "instruction")
_INSTALL = "pip install 'trtllm-deploy[datasets]', or name a jsonl with text_input"


def read_prompts(path: Path) -> Iterator[str]:
    """The prompts of a calibration jsonl, one by one.

    Raises UserError: can't be read, or with the line: isn't a JSON object, has neither field.
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


def choose(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` of the prompts, drawn with ``seed``; all of them where there are no more."""
    return list(prompts) if len(prompts) <= count else random.Random(seed).sample(prompts, count)


def built_in_prompts() -> list[str]:
    """Texts to compare two models on, where the user names none: English, Chinese, code."""
    text = (resources.files("trtllm_deploy.checkpoint") / "prompts.txt").read_text(encoding="utf-8")
    return [part.strip() for part in text.split("\n\n")]


def write_prompts(data: Path | str, samples: int, file: Path) -> Path:
    """A jsonl with ``text`` of the first ``samples`` rows of a data set, at ``file``.

    ``data`` is the folder of a data set (jsonl files, or whatever ``datasets`` loads) or the name
    of one on the hub, which is asked for no more rows than needed. Raises UserError: there is no
    such data set, no network, no text in it, or ``datasets`` is missing.
    """
    texts = list(islice(_texts(data), samples))
    if not texts:
        raise UserError("has no texts to calibrate on", where=str(data))
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def _texts(data: Path | str) -> Iterator[str]:
    if isinstance(data, Path) and (files := sorted(data.glob("*.jsonl"))):
        for file in files:
            yield from read_prompts(file)
    else:
        yield from _column(_rows(data), str(data))


def _column(rows: Iterable[Any], where: str) -> Iterator[str]:
    """The first column with a known name, of each row that has text there."""
    for row in rows:
        names = [name for name in _COLUMNS if isinstance(row.get(name), str)]
        if not names:
            known = ", ".join(_COLUMNS)
            raise UserError(
                f"no text column among {', '.join(row)}", where=where, fix=f"known are {known}"
            )
        if row[names[0]].strip():
            yield row[names[0]]


def _rows(data: Path | str) -> Iterator[Any]:
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise UserError(f"{data} needs the package 'datasets'", fix=_INSTALL) from None
    datasets.disable_progress_bars()
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if isinstance(data, Path) and (data / "state.json").is_file():
            yield from datasets.load_from_disk(str(data))
        elif isinstance(data, Path):
            yield from datasets.load_dataset(str(data), split="train")
        else:
            name, configuration = _HUB.get(data, (data, None))
            # offline the local cache answers, and it has no streams
            yield from datasets.load_dataset(
                name, configuration, split="train", streaming=not offline
            )
    except UserError:
        raise
    except Exception as error:  # datasets raises nearly anything
        raise _unloadable(data, error, offline) from None


def _unloadable(data: Path | str, error: Exception, offline: bool) -> UserError:
    if isinstance(data, Path):
        return UserError(
            f"isn't a data set: {type(error).__name__}: {error}",
            where=data,
            fix="name a folder with train.jsonl or train.parquet, or a jsonl",
        )
    why = "HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {error}"
    if os.environ.get("HF_TOKEN"):
        why = why.replace(os.environ["HF_TOKEN"], "***")
    return UserError(
        f"the calibration data set {data} can't be loaded from the hub ({why[:200]})",
        fix="check name and network, or name a jsonl under 'calibration: data:'",
    )

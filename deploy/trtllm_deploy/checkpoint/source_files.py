"""Which files of a Hugging Face model are its checkpoint, and what the small ones say.

Comes in: file names, or a folder. Goes out: the names that later stages read, the model's config,
or what is wrong with its weights. Knows nothing of where files come from; reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.shard import check_shard
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.machine.json_files import read_json_object

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
    "*.tiktoken",
)
"""Patterns of what a tokenizer may be kept in."""

WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"
SIDE_CONFIGS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Where modelopt, AutoGPTQ and AutoAWQ say how weights are quantized, if not in config.json."""

UNREAD = ("*/*", "consolidated*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx", "*.h5", "*.msgpack")
"""Patterns of what a repository may hold beside the checkpoint that is read: weights once more."""

_METHODS = dict(zip(SIDE_CONFIGS, ("modelopt", "gptq", "awq"), strict=True))
_BESIDE = (CONFIG, "generation_config.json", *SIDE_CONFIGS, WEIGHT_INDEX, *TOKENIZER_FILES)


def needed_files(names: Iterable[str], index: Path | None, remote_code: bool) -> list[str]:
    """Of a checkpoint's file names those that later stages read, in order.

    Weights are those that the ``index`` lists, else model.safetensors, as transformers loads them;
    neither ``consolidated.safetensors`` nor ``original/``. Python files only where the user trusts
    them. Raises UserError: the index isn't one.
    """
    there = {name for name in names if "/" not in name}
    patterns = (*_BESIDE, "*.py") if remote_code else _BESIDE
    beside = {name for name in there if any(fnmatchcase(name, each) for each in patterns)}
    weights = {WEIGHTS} if index is None else listed_weights(index)
    return sorted(beside | (weights & there))


def folder_files(folder: Path, remote_code: bool = False) -> list[Path]:
    """:func:`needed_files` of a folder.

    Raises UserError: one is a link out of the folder, or no regular file. A snapshot in the Hugging
    Face cache consists of links to its model's ``blobs``.
    """
    index = folder / WEIGHT_INDEX
    names = [path.name for path in folder.iterdir() if not path.is_dir()]
    if index.name in names:
        _see_that_it_is_its_own(index, folder)
    needed = needed_files(names, index if index.name in names else None, remote_code)
    for name in needed:
        _see_that_it_is_its_own(folder / name, folder)
    return [folder / name for name in needed]


def _see_that_it_is_its_own(file: Path, folder: Path) -> None:
    real, home = file.resolve(), folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
        raise UserError(
            f"is a link out of the model's folder, to {real}",
            where=file,
            fix="put a copy or a hard link in its place, or name the folder that it leads to",
        )
    if not real.is_file():
        raise UserError("isn't a regular file", where=file)


def listed_weights(index: Path) -> set[str]:
    """The weight files that an index names. Raises UserError: it isn't one, or leads elsewhere."""
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict):
        raise UserError("has no weight_map", where=index)
    for name in listed.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"names {name!r}, which is no file beside it", where=index)
    return set(listed.values())


def check_weights(folder: Path) -> None:
    """Each weight file of a Hugging Face checkpoint is there and whole; no weights are read.

    Raises UserError: a shard is missing, truncated or no safetensors file.
    """
    for file in weight_files(folder):
        check_shard(file)


def weight_files(folder: Path) -> list[Path]:
    """The weights of a folder, in order; those of an index whether they are there or not."""
    whole, index = folder / WEIGHTS, folder / WEIGHT_INDEX
    if index.is_file():
        return [folder / name for name in sorted(listed_weights(index))]
    return [whole] if whole.is_file() else []


def model_config(folder: Path) -> dict[str, Any]:
    """:func:`read_model_config` of a folder."""
    names = (CONFIG, *SIDE_CONFIGS)
    return read_model_config({name: folder / name for name in names if (folder / name).is_file()})


def read_model_config(files: Mapping[str, Path]) -> dict[str, Any]:
    """config.json, completed by what files beside it say of quantized weights.

    ``files`` are by their name in the model. Raises UserError: one isn't a JSON object.
    """
    config = read_json_object(files[CONFIG])
    for name, method in _METHODS.items():
        if name in files and not config.get("quantization_config"):
            said = read_json_object(files[name])
            config["quantization_config"] = {"quant_method": method, **said}
    return config

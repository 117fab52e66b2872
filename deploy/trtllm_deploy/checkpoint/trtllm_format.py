"""A TensorRT-LLM checkpoint on disk: ``config.json`` and one ``rank<N>.safetensors`` per GPU.

Comes in: a folder, or what modelopt wrote and the Hugging Face config it came from. Goes out: the
config, complete and consistent, or the reason why the folder is no checkpoint. Reads no weights
and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.architectures import (
    ARCHITECTURES,
    Architecture,
    find_architecture,
    find_field,
)
from trtllm_deploy.checkpoint.shard import check_shard
from trtllm_deploy.machine.json_files import read_json_object

CONFIG = "config.json"


# The names are those of tensorrt_llm/models/modeling_utils.py (PretrainedConfig) and of its
# QWenConfig and LLaMAConfig; a missing rotary_base silently means 10000 there.
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "architecture": str,
    "dtype": str,
    "logits_dtype": str,
    "vocab_size": int,
    "max_position_embeddings": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "head_size": int,
    "hidden_act": str,
    "norm_epsilon": (int, float),
    "position_embedding_type": str,
    "rotary_base": (int, float),
    "rotary_scaling": (dict, type(None)),
    "attn_bias": bool,
    "mlp_bias": bool,
    "mapping.world_size": int,
    "mapping.tp_size": int,
    "mapping.pp_size": int,
    "quantization.quant_algo": (str, type(None)),
    "quantization.kv_cache_quant_algo": (str, type(None)),
}

_WITHOUT = {"rotary_base": " (TensorRT-LLM would take 10000)"}

# Fields of the same name and value in TensorRT-LLM's config and in Hugging Face's.
_SAME = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings"),
)


def complete_config(
    exported: Mapping[str, Any], hf_config: Mapping[str, Any], quant_algo: str | None
) -> dict[str, Any]:
    """What modelopt exported plus what TensorRT-LLM needs and modelopt leaves out.

    ``hf_config`` is the model's config as transformers 5 gives it (``rope_parameters``), from which
    modelopt can't read the rotary base. ``mapping.cp_size`` stays out: it is 1 by default, and
    TensorRT-LLM itself writes it only when it isn't. Raises UserError: the two contradict each
    other.
    """
    architecture = hf_config["architectures"][0]
    ours = ARCHITECTURES[architecture]
    for name in [each for each in _SAME if each not in ours.fields]:
        if exported.get(name) != hf_config.get(name):
            raise UserError(
                f"modelopt exported {name}={exported.get(name)}, the model's config says"
                f" {name}={hf_config.get(name)}",
                where=architecture,
            )
    rope = _rope(hf_config)
    if "rope_theta" not in rope:
        raise UserError(
            "the model's config has no rope_theta", where=architecture, fix="add it to config.json"
        )
    nested = {name: hf_config[theirs] for name, theirs in ours.fields.items() if "." in name}
    for name, value in nested.items():
        part, _, key = name.partition(".")
        exported = {**exported, part: {**exported.get(part, {}), key: int(value)}}
    return {
        **exported,
        "architecture": ours.name,
        "tie_word_embeddings": False,  # a tied head is written out
        **ours.marks,
        **ours.extra,
        **_from_model(hf_config),
        "rotary_scaling": _rotary_scaling(rope),
        "quantization": {**exported["quantization"], "quant_algo": quant_algo},
    }


def add_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as TensorRT-LLM's own scripts write it, with what they leave to its defaults.

    The defaults are those of PretrainedConfig, QWenConfig and LLaMAConfig. There is none for
    rotary_base here: its default is wrong for nearly every model.
    """
    name = find_architecture(config)
    known = ARCHITECTURES.get(name or "")
    heads = config.get("num_attention_heads") or 1
    return {
        "head_size": (config.get("hidden_size") or 0) // heads,
        "logits_dtype": "float32",
        "rotary_scaling": None,
        "attn_bias": bool(known and known.attn_bias),
        "mlp_bias": False,
        **({**known.marks, **known.extra} if known else {}),
        **config,
    }


def config_differences(config: Mapping[str, Any], hf_config: Mapping[str, Any]) -> list[str]:
    """Where a checkpoint's config and the model's contradict each other, a sentence each.

    ``config`` is taken as it stands, so that a missing field shows here first.
    """
    expected = {name: hf_config.get(name) for name in _SAME}
    expected |= {"vocab_size": hf_config["vocab_size"], **_from_model(hf_config)}
    told = []
    for name, value in expected.items():
        if name not in config or config[name] is None:
            told.append(f"{name} is missing{_WITHOUT.get(name, '')}, the model has {value}")
        elif config[name] != value:
            told.append(f"{name} is {config[name]}, the model has {value}")
    scaling, ours = _rotary_scaling(_rope(hf_config)), config.get("rotary_scaling")
    if _plain(scaling) != _plain(ours):
        told.append(f"rotary_scaling is {ours}, the model has {scaling}")
    return told


def _plain(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without its kind, which releases keep under one name or another."""
    if scaling is None:
        return None
    return {key: scaling[key] for key in scaling if key not in ("type", "rope_type")}


def _rope(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(hf_config.get("rope_parameters") or {})


def _from_model(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that modelopt leaves out or may get wrong."""
    ours = ARCHITECTURES[hf_config["architectures"][0]]
    activation = hf_config[ours.activation]
    biased = bool(hf_config.get("attention_bias", False))
    return {
        "hidden_act": ours.activations.get(activation, activation),
        **{name: hf_config[theirs] for name, theirs in ours.fields.items() if "." not in name},
        "norm_epsilon": hf_config["rms_norm_eps"],
        "rotary_base": float(_rope(hf_config)["rope_theta"]),
        "attn_bias": biased if ours.attn_bias is None else ours.attn_bias,
        "mlp_bias": bool(hf_config.get("mlp_bias", False)),
    }


def _rotary_scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    return {"type": kind, "rope_type": kind, **scaling}  # releases differ in which they read


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's config.json with every needed field there and of its type.

    Raises UserError: names the file and the field that is missing or wrong.
    """
    file = directory / CONFIG
    config = read_json_object(file)
    for path, kind in _FIELDS.items():
        value: Any = config
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                raise UserError(f"required field '{path}' is missing", where=file)
            value = value[name]
        if not isinstance(value, kind):
            raise UserError(f"field '{path}' is {value!r}", where=file)
    architecture = find_architecture(config)
    if architecture is None:
        alike = [each for each in ARCHITECTURES.values() if each.name == config["architecture"]]
        _check_marks(config, alike, file)
        check_architecture(config["architecture"], file)
    else:
        _check_there(config, ARCHITECTURES[architecture], file)
    _check_mapping(config, file)
    return config


def _check_there(config: Mapping[str, Any], ours: Architecture, file: Path) -> None:
    _check_marks(config, [ours], file)
    for name in (*ours.extra, *ours.fields):
        try:
            find_field(config, name)
        except (KeyError, TypeError):
            raise UserError(f"required field '{name}' is missing", where=file) from None


def _check_marks(config: Mapping[str, Any], alike: Sequence[Architecture], file: Path) -> None:
    """See that the fields that tell architectures of one name apart are there, and known."""
    for name in {mark: None for each in alike for mark in each.marks}:
        if name not in config:
            raise UserError(f"required field '{name}' is missing", where=file)
        known = [each.marks[name] for each in alike if name in each.marks]
        if config[name] not in known:
            said = " or ".join(map(repr, known))
            raise UserError(f"field '{name}' is {config[name]!r}, not {said}", where=file)


def check_architecture(name: str, where: Path) -> None:
    """Raises UserError for an architecture that isn't supported."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"architecture '{name}' isn't supported", where=where, fix=f"one of: {known}"
        )


def _check_mapping(config: Mapping[str, Any], file: Path) -> None:
    mapping = config["mapping"]
    if min(mapping["tp_size"], mapping["pp_size"]) < 1:
        raise UserError("mapping.tp_size and mapping.pp_size are 1 at least", where=file)
    if config["num_hidden_layers"] % mapping["pp_size"]:
        raise UserError("mapping.pp_size doesn't divide num_hidden_layers", where=file)
    if mapping["world_size"] != mapping["tp_size"] * mapping["pp_size"]:
        raise UserError("mapping.world_size isn't tp_size x pp_size", where=file)


def rank_files(directory: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """The weight files that ``config`` asks for, rank 0 first."""
    return (
        directory / f"rank{rank}.safetensors" for rank in range(config["mapping"]["world_size"])
    )


def check_checkpoint(directory: Path) -> dict[str, Any]:
    """The config of a complete checkpoint: all fields, and all rank files whole.

    Raises UserError: what is missing, truncated or left over, and where.
    """
    config = read_config(directory)
    expected = list(rank_files(directory, config))
    for file in expected:
        check_shard(file)
    surplus = sorted(set(directory.glob("rank*.safetensors")) - set(expected))
    if surplus:
        raise UserError(
            f"mapping.world_size is {config['mapping']['world_size']}, yet this file is there",
            where=surplus[0],
        )
    return config

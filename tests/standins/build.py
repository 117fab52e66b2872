"""trtllm-build: reads a TensorRT-LLM checkpoint, writes config.json and rank<N>.engine."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.standins.contract import fail_half_way, fault, started

_VERSIONS = {"0.11.0": "0.11.0", "1.2": "1.2.1"}
_NEEDED = ("architecture", "dtype", "hidden_size", "num_hidden_layers", "vocab_size", "mapping")
_PLUGINS = (
    *("gpt_attention_plugin", "gemm_plugin", "nccl_plugin", "context_fmha", "tokens_per_block"),
    *("remove_input_padding", "use_paged_context_fmha", "use_fp8_context_fmha", "paged_state"),
)


def main(command: str) -> int:
    """Build."""
    arguments = started(command)
    release = os.environ["TRT_STANDIN_RELEASE"]
    print(f"[TensorRT-LLM] TensorRT-LLM version: {_VERSIONS[release]}", flush=True)
    checkpoint, output = Path(arguments.checkpoint_dir), Path(arguments.output_dir)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for name in _NEEDED:
        if name not in config:
            sys.exit(f"KeyError: {name!r}")
    ranks = config["mapping"]["world_size"]
    shards = [_digest(checkpoint / f"rank{rank}.safetensors") for rank in range(ranks)]
    if arguments.input_timing_cache:
        Path(arguments.input_timing_cache).read_bytes()  # as the real one: it has to be there
    if fault() == "oom":
        print("[TRT] [E] [defaultAllocator.cpp::allocateAsync::48] Error Code 1: Cuda Runtime")
        print("(In allocateAsync at defaultAllocator.cpp:48, out of memory)", flush=True)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    engine_config = {
        "version": _VERSIONS[release],
        "pretrained_config": config,
        "build_config": _build_config(arguments, config),
    }
    (output / "config.json").write_text(json.dumps(engine_config, indent=4), encoding="utf-8")
    said = json.dumps(engine_config, sort_keys=True)
    for rank, shard in enumerate(shards):
        if rank == ranks - 1 and fault() == "lose_rank":
            continue
        if rank == (ranks + 1) // 2 or ranks == 1:
            fail_half_way()
        engine = hashlib.sha256(f"{said}{shard}{rank}".encode()).hexdigest()
        (output / f"rank{rank}.engine").write_text(f"stand-in engine {engine}\n")
        print(f"[TRT-LLM] [I] Serializing engine to {output}/rank{rank}.engine...", flush=True)
    Path(arguments.output_timing_cache).write_text(f"timing cache of {release}\n")
    print("[TRT-LLM] [I] Total time of building all engines: 00:00:00", flush=True)
    return 0


def _digest(file: Path) -> str:
    """Of a whole safetensors file; a cut one is an error, as for the real reader."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    end = max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
    if len(data) != 8 + length + end:
        sys.exit("SafetensorError: Error while deserializing header: MetadataIncompleteBuffer")
    return hashlib.sha256(data).hexdigest()


def _build_config(arguments: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """As BuildConfig.to_dict: lengths derived where not given, switches of plugins as booleans."""
    given = vars(arguments)
    longest = config.get("max_position_embeddings", 1024)
    max_seq_len = given["max_seq_len"] or longest
    switches = {"enable": True, "disable": False}
    return {
        "max_input_len": min(given["max_input_len"], max_seq_len),
        "max_seq_len": max_seq_len,
        "max_batch_size": given["max_batch_size"],
        "max_beam_width": given["max_beam_width"],
        "max_num_tokens": given["max_num_tokens"],
        "plugin_config": {
            name: switches.get(given[name], given[name]) for name in _PLUGINS if name in given
        },
    }

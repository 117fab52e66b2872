"""convert_checkpoint.py and quantize.py: a Hugging Face model in, a TensorRT-LLM checkpoint out.

Full precision is laid out here, tensor by tensor; what needs calibration goes through modelopt, as
in the real script.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.standins.contract import fail_half_way, fault, started

_ALGORITHMS = {"int8_wo": "W8A16", "int4_wo": "W4A16", "full_prec": None}
_PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
}


def main(command: str) -> int:
    """Convert, or quantize."""
    arguments = started(command)
    model, output = Path(arguments.model_dir), Path(arguments.output_dir)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if fault() == "oom":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", flush=True)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    quantize = command == "quantize"
    if quantize and (arguments.qformat in _PRESETS or arguments.kv_cache_dtype):
        written = _with_modelopt(arguments, model, output)
    else:
        dtype = "float16" if arguments.dtype == "auto" else arguments.dtype
        algorithm = _ALGORITHMS[arguments.qformat] if quantize else None
        if not quantize and arguments.use_weight_only:
            sys.exit("the stand-in doesn't lay out quantized weights")
        written = _config(config, dtype, algorithm, arguments.tp_size, arguments.pp_size)
        _write_ranks(model, config, written, output)
    (output / "config.json").write_text(json.dumps(written, indent=4), encoding="utf-8")
    print("Total time of converting checkpoints: 00:00:00", flush=True)
    return 0


def _config(
    hf: dict[str, Any], dtype: str, algorithm: str | None, tp: int, pp: int
) -> dict[str, Any]:
    qwen = hf["architectures"][0].startswith("Qwen2")
    rope = hf.get("rope_parameters") or {}
    return {
        "architecture": hf["architectures"][0],
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": hf["vocab_size"],
        "max_position_embeddings": hf["max_position_embeddings"],
        "hidden_size": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "num_hidden_layers": hf["num_hidden_layers"],
        "num_attention_heads": hf["num_attention_heads"],
        "num_key_value_heads": hf["num_key_value_heads"],
        "hidden_act": hf["hidden_act"],
        "norm_epsilon": hf["rms_norm_eps"],
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": hf.get("rope_theta") or rope.get("rope_theta"),
        "rotary_scaling": None,
        **({"qwen_type": "qwen2"} if qwen else {"attn_bias": False, "mlp_bias": False}),
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": None},
    }


def _write_ranks(model: Path, hf: dict[str, Any], config: dict[str, Any], output: Path) -> None:
    weights: dict[str, Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        weights |= load_file(file)
    dtype = getattr(torch, config["dtype"])
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    ranks = config["mapping"]["world_size"]
    for rank in range(ranks):
        if rank == ranks - 1 and fault() == "lose_rank":
            continue
        if rank == (ranks + 1) // 2 or ranks == 1:
            fail_half_way()
        tensors = dict(_rank(weights, hf, config, rank))
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, output / f"rank{rank}.safetensors"
        )


def _rank(
    weights: dict[str, Tensor], hf: dict[str, Any], config: dict[str, Any], rank: int
) -> Iterator[tuple[str, Tensor]]:
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    stage, part = divmod(rank, tp)
    per_stage = hf["num_hidden_layers"] // pp
    if stage == 0:
        yield "transformer.vocab_embedding.weight", weights["model.embed_tokens.weight"]
    if stage == pp - 1:
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        padding = torch.zeros(-len(head) % tp, head.shape[1], dtype=head.dtype)
        yield "lm_head.weight", torch.cat([head, padding]).chunk(tp)[part].clone()
        yield "transformer.ln_f.weight", weights["model.norm.weight"]
    for local in range(per_stage):
        theirs, ours = f"model.layers.{stage * per_stage + local}", f"transformer.layers.{local}"
        for kind in ("weight", "bias"):
            if f"{theirs}.self_attn.q_proj.{kind}" in weights:
                qkv = _qkv(weights, f"{theirs}.self_attn", kind, hf, tp, part)
                yield f"{ours}.attention.qkv.{kind}", qkv
        by_row = {"attention.dense": "self_attn.o_proj", "mlp.proj": "mlp.down_proj"}
        by_column = {"mlp.fc": "mlp.gate_proj", "mlp.gate": "mlp.up_proj"}
        for dim, names in ((1, by_row), (0, by_column)):
            for name, source in names.items():
                whole = weights[f"{theirs}.{source}.weight"]
                yield f"{ours}.{name}.weight", whole.chunk(tp, dim)[part].clone()
        yield f"{ours}.input_layernorm.weight", weights[f"{theirs}.input_layernorm.weight"]
        post = weights[f"{theirs}.post_attention_layernorm.weight"]
        yield f"{ours}.post_layernorm.weight", post


def _qkv(
    weights: dict[str, Tensor], attention: str, kind: str, hf: dict[str, Any], tp: int, part: int
) -> Tensor:
    """Query, key and value heads of one rank; key-value heads repeat where there are too few."""
    kv_heads = hf["num_key_value_heads"]
    found = []
    for name in "qkv":
        tensor = weights[f"{attention}.{name}_proj.{kind}"]
        if name != "q" and kv_heads < tp:
            heads = tensor.reshape(kv_heads, -1, *tensor.shape[1:])
            heads = heads.repeat_interleave(tp // kv_heads, dim=0)
            tensor = heads.reshape(-1, *tensor.shape[1:])
        found.append(tensor.chunk(tp)[part])
    return torch.cat(found)


def _with_modelopt(arguments: argparse.Namespace, model: Path, output: Path) -> dict[str, Any]:
    """As quantize_by_modelopt.py: load, quantize, export, complete the config."""
    import copy

    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_tensorrt_llm_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float16 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    hf = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = _texts(Path(arguments.calib_dataset))[: arguments.calib_size]

    def forward(network: Any) -> None:
        for text in texts:
            batch = tokenizer(
                text,
                return_tensors="pt",
                truncation=True,
                max_length=arguments.calib_max_seq_length,
            )
            network(input_ids=batch["input_ids"], use_cache=False)

    preset = copy.deepcopy(getattr(mtq, _PRESETS[arguments.qformat]))
    if arguments.kv_cache_dtype == "fp8":
        preset["quant_cfg"] = [*preset["quant_cfg"], *mtq.FP8_KV_CFG["quant_cfg"]]
    with torch.no_grad():
        network = mtq.quantize(network, preset, forward)
        fail_half_way()
        export_tensorrt_llm_checkpoint(
            network,
            "qwen" if hf["architectures"][0].startswith("Qwen2") else "llama",
            dtype,
            export_dir=output,
            inference_tensor_parallel=arguments.tp_size,
            inference_pipeline_parallel=arguments.pp_size,
        )
    if fault() == "lose_rank":
        (output / f"rank{arguments.tp_size * arguments.pp_size - 1}.safetensors").unlink()
    written: dict[str, Any] = json.loads((output / "config.json").read_text(encoding="utf-8"))
    written["rotary_base"] = hf.get("rope_theta") or hf["rope_parameters"]["rope_theta"]
    written["norm_epsilon"] = hf["rms_norm_eps"]
    written["intermediate_size"] = hf["intermediate_size"]
    if hf["architectures"][0].startswith("Qwen2"):
        written["qwen_type"] = "qwen2"
    return written


def _texts(folder: Path) -> list[str]:
    """Column text of split train of a local data set, as the real script reads it."""
    if not folder.is_dir():
        sys.exit(f"NotImplementedError: the stand-in has no network for {folder}")
    rows = [
        json.loads(line)
        for file in sorted(folder.glob("train*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [row["text"] for row in rows]

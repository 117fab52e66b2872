"""A TensorRT-LLM checkpoint read back into a Hugging Face model.

Comes in: a checkpoint folder. Goes out: one model on one device that computes what TensorRT-LLM
would: weights as quantized, activations and KV cache rounded where the engine rounds them. The
model is built from the checkpoint alone, so a wrong or missing field shows. Knows nothing of
tokenizers, end tokens or engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.apart import take_apart
from trtllm_deploy.checkpoint.attention import attend_as_engines, round_to
from trtllm_deploy.checkpoint.tensors import (
    CheckpointTensors,
    InputRounding,
    LayerTensors,
)


def load_model(checkpoint_dir: Path, *, device: str = "cpu") -> Any:
    """The checkpoint as a ``transformers.PreTrainedModel``, in evaluation mode.

    It computes in the checkpoint's own type, but in float32 on the CPU, where half precision is
    slow: the weights are still those of the checkpoint, exactly. Raises UserError: the checkpoint
    isn't complete, names the file and what it lacks.
    """
    tensors = CheckpointTensors(checkpoint_dir)
    cpu = torch.device(device).type == "cpu"
    dtype = torch.float32 if cpu else getattr(torch, tensors.fields["dtype"])
    model = empty_model(tensors, dtype, "cpu")
    weights = {name: tensor.to(dtype) for name, tensor in _weights(tensors)}
    try:
        report = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:  # of another shape
        raise UserError(str(error).splitlines()[-1].strip(), where=checkpoint_dir) from None
    for problem, names in zip(("missing", "unexpected"), report, strict=True):
        if names:
            raise UserError(f"{problem} keys: {sorted(names)[0]}", where=checkpoint_dir)
    for index, layer in enumerate(model.model.layers):
        round_layer(layer, tensors, index)
    model.requires_grad_(False)
    return model.eval().to(device)


def empty_model(tensors: LayerTensors, dtype: torch.dtype, device: str) -> Any:
    """The model of the tensors' config, its parameters on no device yet; all else on ``device``."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            tensors.config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    take_apart(model, (tensors.config.architectures or [""])[0])
    attend_as_engines()
    for module in model.modules():  # Gemma's embedding keeps its scale in a buffer
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
    model.model.rotary_emb = type(model.model.rotary_emb)(tensors.config, device=device)
    return model


def _weights(tensors: LayerTensors) -> Iterator[tuple[str, Tensor]]:
    yield from tensors.outer().items()
    for index in range(tensors.config.num_hidden_layers):
        for name, tensor in tensors.layer(index).items():
            yield f"model.layers.{index}.{name}", tensor


def round_layer(layer: nn.Module, tensors: LayerTensors, index: int) -> None:
    """Make a decoder layer round its activations and its KV cache as the engine does."""
    for name, rounding in tensors.roundings(index).items():
        _round_input(layer.get_submodule(name), rounding)
    kv = tensors.kv_rounding(index)
    if kv is not None:
        layer.get_submodule("self_attn").kv_rounding = kv  # type: ignore[assignment]


def _round_input(linear: nn.Module, rounding: InputRounding) -> None:
    """Make a linear round its input first, as the quantized kernel does."""
    if rounding.smoothing is not None:
        linear.register_buffer("smoothing", rounding.smoothing, persistent=False)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = inputs[0]
        if rounding.smoothing is not None:
            x = x * module.smoothing.to(x)  # type: ignore[operator]
        return (x if rounding.scale is None else round_to(x, rounding.kind, rounding.scale),)

    linear.register_forward_pre_hook(hook)

"""A model computed one layer at a time, so that one layer and its head have to fit into memory.

Comes in: tensors by layer and token ids. Goes out: hidden states, in float32. The layers are those
of transformers; each has its weights while it runs, and none before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.readback import empty_model, round_layer
from trtllm_deploy.checkpoint.tensors import LayerTensors

OnLayer = Callable[[int, nn.Module, dict[str, Tensor]], None]


@torch.inference_mode()
def hidden_states(
    tensors: LayerTensors, ids: Tensor, device: str, on_layer: OnLayer | None = None
) -> Tensor:
    """Last hidden states [prompts, tokens, hidden] of ``ids`` [prompts, tokens].

    Prompts are padded on the right: attention looks back only, so what stands after a prompt's end
    changes nothing before it. ``on_layer`` is called with each layer and its weights, on
    ``device``, just before the layer runs. Raises UserError: the layer's weights aren't those of
    the config.
    """
    model = _empty_model(tensors, device)

    def load(index: int) -> Callable[..., None]:
        def hook(layer: nn.Module, *_: Any) -> None:
            weights = {name: tensor.to(device) for name, tensor in tensors.layer(index).items()}
            _fill(layer, weights, f"layer {index}")
            if on_layer is not None:
                on_layer(index, layer, weights)
            round_layer(layer, tensors, index)

        return hook

    for index, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(load(index))
        layer.register_forward_hook(_empty)
    states: Tensor = model(input_ids=ids.to(device), use_cache=False).last_hidden_state
    return states


def _empty_model(tensors: LayerTensors, device: str) -> Any:
    """The model without its head; of its weights only what stands outside the layers."""
    model = empty_model(tensors, torch.float32, device).model
    outer = tensors.outer()
    for name in ("embed_tokens", "norm"):
        weight = outer[f"model.{name}.weight"].to(device)
        _fill(model.get_submodule(name), {"weight": weight}, name)
    return model


def _fill(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{what}: {str(error).splitlines()[-1].strip()}") from None


def _empty(module: nn.Module, *_: Any) -> None:
    module.to("meta")

"""What transformers loads is read, in whatever way it was saved: to the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.deploy.tiny_models import save_tiny
from trtllm_deploy.checkpoint.layerwise import hidden_states
from trtllm_deploy.checkpoint.source_tensors import SourceTensors

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(1, 31).reshape(1, 30)
Weights = dict[str, torch.Tensor]


def without_prefix(weights: Weights) -> Weights:
    return {name.removeprefix("model."): each for name, each in weights.items()}


def head_only(weights: Weights) -> Weights:
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    return weights


def head_only_without_prefix(weights: Weights) -> Weights:
    return without_prefix(head_only(weights))


@pytest.mark.parametrize(
    ("tied", "change"),
    [
        (False, dict),
        (True, dict),
        (False, without_prefix),
        (True, without_prefix),
        (True, head_only),
        (True, head_only_without_prefix),
    ],
)
def test_it_reads_what_transformers_loads(
    tmp_path: Path, tied: bool, change: Callable[[Weights], Weights]
) -> None:
    folder = save_tiny(tmp_path, "LlamaForCausalLM", tie_word_embeddings=tied)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    save_file({"junk": torch.zeros(1)}, folder / "consolidated.safetensors")
    with torch.inference_mode():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected = loaded(input_ids=IDS).logits
    source = SourceTensors(folder)
    ours = hidden_states(source, IDS, "cpu") @ source.outer()["lm_head.weight"].T
    assert torch.allclose(ours, expected, atol=1e-4)

"""The architectures that checkpoints are made of, and their names on either side.

Comes in: a name of Hugging Face, or a TensorRT-LLM checkpoint's config. Goes out: how the two are
called and what tells them apart. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one Hugging Face architecture is exported.

    ``name`` is what every TensorRT-LLM release calls it (models/__init__.py, MODEL_MAP);
    ``decoder_type`` is modelopt's name of the layer layout. ``marks`` are config fields that tell
    it from others of that name; ``extra`` are those that NVIDIA's ``from_hugging_face`` writes,
    that a model class may ask for, and that modelopt leaves out.
    """

    name: str
    decoder_type: str
    model_type: str
    marks: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: Mapping[str, Architecture] = {
    # 0.11.0 knows no Qwen2ForCausalLM; from 0.16 on QWenForCausalLM reads seq_length, which isn't
    # the context length (models/qwen/config.py: 8192 where the model's config has none)
    "Qwen2ForCausalLM": Architecture(
        "QWenForCausalLM",
        "qwen",
        "qwen2",
        marks={"qwen_type": "qwen2"},
        extra={
            "seq_length": 8192,
            "moe_intermediate_size": 0,
            "moe_shared_expert_intermediate_size": 0,
        },
    ),
    "LlamaForCausalLM": Architecture("LlamaForCausalLM", "llama", "llama"),
}


def find_architecture(config: Mapping[str, Any]) -> str | None:
    """Hugging Face's name of what a checkpoint's config describes; None: none that is known.

    TensorRT-LLM's own scripts write one name or the other, by release.
    """
    name = config.get("architecture")
    if name in ARCHITECTURES:
        return str(name)
    for known, each in ARCHITECTURES.items():
        marked = all(config.get(mark) == value for mark, value in each.marks.items())
        if name == each.name and marked:
            return known
    return None

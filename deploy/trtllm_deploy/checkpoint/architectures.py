"""The architectures that checkpoints are made of, and their names on either side.

Comes in: a name of Hugging Face, or a TensorRT-LLM checkpoint's config. Goes out: how the two are
called and what tells them apart. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NORMS = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one Hugging Face architecture is exported.

    ``name`` is what every TensorRT-LLM release calls it (models/__init__.py, MODEL_MAP) from
    ``since`` on, the first one read that does; ``decoder_type`` is modelopt's name of the layer
    layout. ``marks`` are config fields that tell it from others of that name; ``extra`` are those
    that NVIDIA's ``from_hugging_face`` writes, that a model class may ask for, and that modelopt
    leaves out. ``attn_bias`` says whether q, k and v have biases in TensorRT-LLM's class, None:
    where the model's config says so. ``norms`` are a layer's, by their names there and in
    transformers.
    """

    name: str
    decoder_type: str
    model_type: str
    since: tuple[int, ...] = (0, 11)
    marks: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    attn_bias: bool | None = None
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)


# from 0.16 on QWenForCausalLM reads seq_length, which isn't the context length
# (models/qwen/config.py: 8192 where the model's config has none)
_QWEN = {
    "seq_length": 8192,
    "moe_intermediate_size": 0,
    "moe_shared_expert_intermediate_size": 0,
}


ARCHITECTURES: Mapping[str, Architecture] = {
    # 0.11.0 knows no Qwen2ForCausalLM
    "Qwen2ForCausalLM": Architecture(
        "QWenForCausalLM",
        "qwen",
        "qwen2",
        marks={"qwen_type": "qwen2"},
        extra=_QWEN,
        attn_bias=True,
    ),
    "LlamaForCausalLM": Architecture("LlamaForCausalLM", "llama", "llama"),
    # of the class of Llama in every release (models/__init__.py, MODEL_MAP)
    "MistralForCausalLM": Architecture("MistralForCausalLM", "llama", "mistral"),
    "Qwen3ForCausalLM": Architecture(
        "Qwen3ForCausalLM",
        "qwen",
        "qwen3",
        since=(1, 0),
        marks={"qwen_type": "qwen3"},
        extra=_QWEN,
        attn_bias=False,
        norms={
            **_NORMS,
            "attention.q_layernorm": "self_attn.q_norm",
            "attention.k_layernorm": "self_attn.k_norm",
        },
    ),
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

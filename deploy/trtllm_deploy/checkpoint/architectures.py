"""The architectures that checkpoints are made of, and their names on either side.

Comes in: a name of Hugging Face, or a TensorRT-LLM checkpoint's config. Goes out: how the two are
called and what tells them apart. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight of a TensorRT-LLM layer, and what it is in transformers.

    ``parts`` are the modules that it holds, in their order along the output channels; a ``{}`` in
    their names counts experts, which lie stacked. ``split`` says what ranks share out: the heads of
    q, k and v, output channels (of each part), input channels, or nothing: each has the whole,
    which is never quantized then.
    """

    parts: tuple[str, ...]
    split: Literal["heads", "output", "input", "whole"]


_NORMS = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}
_ATTENTION = {
    "attention.qkv": Linear(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "heads"),
    "attention.dense": Linear(("self_attn.o_proj",), "input"),
}
_GATED = {
    **_ATTENTION,
    "mlp.fc": Linear(("mlp.gate_proj",), "output"),  # the one with the activation
    "mlp.gate": Linear(("mlp.up_proj",), "output"),
    "mlp.proj": Linear(("mlp.down_proj",), "input"),
}


@dataclass(frozen=True, slots=True)
class Experts:
    """The linears of one expert, as they are called in files and by modelopt's exporter."""

    gate: str
    up: str
    down: str

    def linears(self) -> Mapping[str, Linear]:
        """Router and experts: fc holds the half without the activation first (layers/moe.py)."""
        name = "mlp.experts.{}."
        return {
            "mlp.router": Linear(("mlp.gate",), "whole"),
            "mlp.fc": Linear((name + self.up, name + self.gate), "output"),
            "mlp.proj": Linear((name + self.down,), "input"),
        }


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one Hugging Face architecture is exported, and read back.

    ``name`` is what every TensorRT-LLM release calls it (models/__init__.py, MODEL_MAP) from
    ``since`` on, the first one read that does; ``decoder_type`` is modelopt's name of the layer
    layout. ``marks`` are config fields that tell it from others of that name; ``extra`` are those
    that NVIDIA's ``from_hugging_face`` writes, that a model class may ask for, and that modelopt
    leaves out. ``attn_bias`` says whether q, k and v have biases in TensorRT-LLM's class, None:
    where the model's config says so. ``norms`` and ``linears`` are a layer's, by their names there.
    ``fields`` are more config fields, dotted, and those of transformers that they are; ``switches``
    those of them that are 0 or 1 and no truth value.
    ``activations`` are those that TensorRT-LLM calls otherwise. ``on_disk`` are beginnings of names
    that files have otherwise than transformers. ``only`` are values of a model's config beside
    which TensorRT-LLM's class computes something else, ``head_size`` whether it takes one that
    isn't hidden_size / heads, ``pp`` whether it can be split into pipeline stages; ``without``
    quantizations (quant_algo) that modelopt or the class doesn't make of it. ``fused`` are linears
    of transformers that are several in all else here; ``joined`` linears of TensorRT-LLM that
    modelopt exports as several, in their order. ``script`` is the container's own
    converter where it isn't that of ``decoder_type``.
    ``norm_offset`` is what TensorRT-LLM's weights of norms have more than those
    of transformers, ``unexported`` are norms that modelopt leaves out. ``activation`` is the field
    of transformers' config, ``like`` are fields of it that no checkpoint has. ``formerly`` are
    beginnings of a layer's names, and what releases before ``renamed_in`` call them.
    """

    name: str
    decoder_type: str
    model_type: str
    since: tuple[int, ...] = (0, 11)
    marks: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    attn_bias: bool | None = None
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)
    linears: Mapping[str, Linear] = field(default_factory=lambda: _GATED)
    fields: Mapping[str, str] = field(default_factory=dict)
    switches: frozenset[str] = frozenset()
    activations: Mapping[str, str] = field(default_factory=dict)
    experts: Experts | None = None
    on_disk: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    head_size: bool = True
    pp: bool = True
    without: frozenset[str] = frozenset()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    script: str | None = None
    norm_offset: float = 0.0
    unexported: tuple[str, ...] = ()
    activation: str = "hidden_act"
    like: Mapping[str, Any] = field(default_factory=dict)
    formerly: Mapping[str, str] = field(default_factory=dict)
    renamed_in: tuple[int, ...] = ()


# from 0.16 on QWenForCausalLM reads seq_length, which isn't the context length
# (models/qwen/config.py: 8192 where the model's config has none)
_QWEN = {
    "seq_length": 8192,
    "moe_intermediate_size": 0,
    "moe_shared_expert_intermediate_size": 0,
}
_GEMMA2 = ("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping")
_SWIGLU = {"silu": "swiglu"}  # the gate is made explicit there
# modelopt can't smooth stacked experts; their scales of AWQ have other names than the classes read
_NOT_OF_EXPERTS = frozenset({"W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ"})
_MIXTRAL = Experts("w1", "w3", "w2")
_QWEN_EXPERT = Experts("gate_proj", "up_proj", "down_proj")
_SHARED = "mlp.shared_expert"


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
    "MistralForCausalLM": Architecture("MistralForCausalLM", "llama", "mistral", attn_bias=False),
    "Qwen3ForCausalLM": Architecture(
        "Qwen3ForCausalLM",
        "qwen",
        "qwen3",
        since=(1, 0),
        marks={"qwen_type": "qwen3"},
        extra=_QWEN,
        attn_bias=False,
        only={"attention_bias": False},
        norms={
            **_NORMS,
            "attention.q_layernorm": "self_attn.q_norm",
            "attention.k_layernorm": "self_attn.k_norm",
        },
    ),
    "MixtralForCausalLM": Architecture(
        "MixtralForCausalLM",
        "llama",
        "mixtral",
        attn_bias=False,
        linears={**_ATTENTION, **_MIXTRAL.linears()},
        fields={"moe.num_experts": "num_local_experts", "moe.top_k": "num_experts_per_tok"},
        activations=_SWIGLU,
        experts=_MIXTRAL,
        on_disk={"block_sparse_moe.": "mlp."},
        without=_NOT_OF_EXPERTS,
    ),
    "Qwen2MoeForCausalLM": Architecture(
        "QWenForCausalLM",
        "qwen",
        "qwen2_moe",
        since=(0, 12),  # 0.11.0 takes experts from an object that no config.json becomes there
        marks={"qwen_type": "qwen2_moe"},
        extra={"seq_length": _QWEN["seq_length"]},
        attn_bias=True,
        linears={
            **_ATTENTION,
            **_QWEN_EXPERT.linears(),
            f"{_SHARED}.fc": Linear((f"{_SHARED}.up_proj", f"{_SHARED}.gate_proj"), "output"),
            f"{_SHARED}.proj": Linear((f"{_SHARED}.down_proj",), "input"),
            f"{_SHARED}_gate": Linear((f"{_SHARED}_gate",), "whole"),
        },
        fields={
            "moe.num_experts": "num_experts",
            "moe.top_k": "num_experts_per_tok",
            "moe.normalization_mode": "norm_topk_prob",  # NONE is 0, RENORMALIZE 1
            "intermediate_size": "intermediate_size",  # modelopt writes that of an expert
            "moe_intermediate_size": "moe_intermediate_size",
            "moe_shared_expert_intermediate_size": "shared_expert_intermediate_size",
        },
        switches=frozenset({"moe.normalization_mode"}),
        activations=_SWIGLU,
        experts=_QWEN_EXPERT,
        only={"qkv_bias": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        without=_NOT_OF_EXPERTS,
        formerly={_SHARED: "shared_expert"},
        renamed_in=(0, 16),
    ),
    "Phi3ForCausalLM": Architecture(
        "Phi3ForCausalLM",
        "llama",
        "phi3",
        attn_bias=False,
        linears={
            **_ATTENTION,
            "mlp.fc": Linear(("mlp.up_proj", "mlp.gate_proj"), "output"),
            "mlp.proj": _GATED["mlp.proj"],
        },
        activations=_SWIGLU,
        only={"partial_rotary_factor": 1.0},
        head_size=False,
        pp=False,  # models/phi3/model.py: every rank has embedding, last norm and head
        fused={
            "self_attn.qkv_proj": _ATTENTION["attention.qkv"].parts,
            "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        },
        joined={"mlp.fc": ("mlp.gate", "mlp.fc")},
        script="phi",
    ),
    "Gemma2ForCausalLM": Architecture(
        "Gemma2ForCausalLM",
        "llama",  # modelopt builds gemma2 and writes no config for it
        "gemma2",
        since=(0, 16),  # before, it shared the embedding with the head, and had no stages
        norms={
            **_NORMS,
            "pre_feedforward_layernorm": "pre_feedforward_layernorm",
            "post_feedforward_layernorm": "post_feedforward_layernorm",
        },
        fields={name: name for name in _GEMMA2},
        script="gemma",
        norm_offset=1.0,
        unexported=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        activation="hidden_activation",
        like={"sliding_window": 2**30},  # Triton's setting says the real one
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


def former_names(architecture: str, release: tuple[int, ...]) -> Mapping[str, str]:
    """Beginnings of a layer's names that a release calls otherwise than later ones."""
    known = ARCHITECTURES.get(architecture)
    return known.formerly if known and release < known.renamed_in else {}


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A tensor's or module's name, ``transformer.layers.<N>.<rest>``, where names begin rests."""
    match = re.fullmatch(r"(transformer\.layers\.\d+\.)(.+)", name)
    for old, new in names.items():
        if match and match[2].startswith(old):
            return match[1] + new + match[2].removeprefix(old)
    return name


def find_field(config: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted field of a checkpoint's config. Raises KeyError: it isn't there."""
    value: Any = config
    for name in path.split("."):
        value = value[name]
    return value

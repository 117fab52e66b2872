"""What of a model's config.json its size follows from.

In: a Hugging Face config of a decoder with grouped-query attention and a gated MLP, of an
architecture that checkpoints are made of. Out: a frozen shape and its parameter count; none for any
other, whose layers would only be guessed (experts, latent attention). Knows nothing of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES

_OTHER_LAYERS = ("num_local_experts", "num_experts", "n_routed_experts", "kv_lora_rank")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model; ``intermediate`` is the width of its MLP, ``biases`` those on q, k, v."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool
    biases: bool
    architecture: str = ""
    norms: int = 2
    """of a layer, over the hidden states"""
    head_norms: int = 0
    """of a layer, over a head"""

    def matrices(self, kv_heads: int | None = None) -> int:
        """Weights of one layer's matrices; with ``kv_heads`` key-value heads, if given."""
        width = self.heads * self.head_size
        kv_width = (kv_heads or self.kv_heads) * self.head_size
        attention = 2 * self.hidden * width + 2 * self.hidden * kv_width
        return attention + 3 * self.hidden * self.intermediate

    def vectors(self) -> int:
        """Weights of one layer's norms and of its biases."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_size if self.biases else 0
        return self.norms * self.hidden + self.head_norms * self.head_size + biases

    @property
    def parameters(self) -> int:
        """All weights; an output matrix that is the embedding counts once."""
        ends = self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden
        return ends + self.layers * (self.matrices() + self.vectors())


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a config.json tells.

    None where a field is missing, or the architecture is one whose layers aren't known.
    """
    try:
        architecture = str(config["architectures"][0])
        known = ARCHITECTURES[architecture]
        if any(config.get(name) for name in _OTHER_LAYERS):
            return None
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        of_heads = sum("self_attn" in name for name in known.norms.values())
        return ModelShape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=bool(config.get("attention_bias", False))
            if known.attn_bias is None
            else known.attn_bias,
            architecture=architecture,
            norms=len(known.norms) - of_heads,
            head_norms=of_heads,
        )
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None


def trained_length(config: Mapping[str, Any]) -> int | None:
    """The most positions that a config.json says the model was made for; None: it doesn't say.

    max_position_embeddings, or what rotary scaling stretches the original length to.
    """
    known = config.get("max_position_embeddings")
    if type(known) is not int:
        return None
    names = ("rope_parameters", "rope_scaling", "rotary_scaling")
    scaling: Any = next((config[name] for name in names if config.get(name)), {})
    scaling = scaling if isinstance(scaling, Mapping) else {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings", known)
    if type(factor) in (int, float) and type(original) is int:
        return max(known, int(factor * original))
    return known

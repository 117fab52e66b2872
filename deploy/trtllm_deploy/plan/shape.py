"""What of a model's config.json its size follows from.

In: a Hugging Face config of a decoder with grouped-query attention and a gated MLP (Llama, Qwen2).
Out: a frozen shape and its parameter count. Knows nothing of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    def matrices(self, kv_heads: int | None = None) -> int:
        """Weights of one layer's matrices; with ``kv_heads`` key-value heads, if given."""
        width = self.heads * self.head_size
        kv_width = (kv_heads or self.kv_heads) * self.head_size
        attention = 2 * self.hidden * width + 2 * self.hidden * kv_width
        return attention + 3 * self.hidden * self.intermediate

    def vectors(self) -> int:
        """Weights of one layer's two norms and of its biases."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_size if self.biases else 0
        return 2 * self.hidden + biases

    @property
    def parameters(self) -> int:
        """All weights; an output matrix that is the embedding counts once."""
        ends = self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden
        return ends + self.layers * (self.matrices() + self.vectors())


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a config.json tells; None where a field is missing."""
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        architecture = str(next(iter(config.get("architectures") or ()), ""))
        return ModelShape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=architecture == "Qwen2ForCausalLM" or bool(config.get("attention_bias", False)),
            architecture=architecture,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None

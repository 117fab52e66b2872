"""Small random models of every architecture that checkpoints are made of, with a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_deploy.checkpoint.architectures import ARCHITECTURES

SHAPE: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# what an architecture needs beside SHAPE to be as small
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "Qwen3ForCausalLM": {"head_dim": 64},
    "Gemma2ForCausalLM": {
        "head_dim": 64,
        "query_pre_attn_scalar": 48,
        "attn_logit_softcapping": 0.5,
        "hidden_act": "gelu_pytorch_tanh",  # beside hidden_activation, as on the hub
    },
    "Qwen2MoeForCausalLM": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
        "shared_expert_intermediate_size": 384,
    },
    "MixtralForCausalLM": {"num_local_experts": 4, "intermediate_size": 256},
}
PROMPTS = tuple("".join(map(chr, range(first, first + 30))) for first in (32, 62, 92))


def save_tiny(folder: Path, name: str, **change: Any) -> Path:
    """A float16 model of that architecture whose top tokens stand out, biases not zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(
        ARCHITECTURES[name].model_type,
        **{**SHAPE, "initializer_range": 0.06, **_SMALL.get(name, {}), **change},
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter, value in model.named_parameters():
        if parameter.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(value, mean=value.mean().item(), std=0.1)
    model.half().save_pretrained(folder)
    _letters().save_pretrained(folder)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in PROMPTS), encoding="utf-8"
    )
    return folder


def _letters() -> Any:
    """A tokenizer of which each printable character is a token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{chr(31 + index): index for index in range(1, 96)}}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")

"""What of a model can't be split over so many GPUs. Knows nothing of checkpoints or engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_deploy.spec.precision import Precision

_OF_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")


def indivisible(config: Mapping[str, Any], precision: Precision, tp: int, pp: int) -> str | None:
    """What of a Hugging Face config can't be split over the GPUs, in words, or None.

    Each GPU takes whole heads, whole channels, whole layers, whole groups. Raises KeyError for a
    field that is missing.
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    kv_heads = config.get("num_key_value_heads") or heads
    channels = {
        "hidden_size": hidden,
        "intermediate_size": config["intermediate_size"],
        **{name: config[name] for name in _OF_EXPERTS if config.get(name)},
        "attention width": heads * (config.get("head_dim") or hidden // heads),
    }
    layers, group = config["num_hidden_layers"], precision.group_size
    findings = (
        *(
            (count % tp, f"tp {tp} doesn't divide {name} {count}")
            for name, count in {"num_attention_heads": heads, **channels}.items()
        ),
        (
            kv_heads % tp and tp % kv_heads,
            f"tp {tp} and num_key_value_heads {kv_heads} don't divide each other",
        ),
        (layers % pp, f"pp {pp} doesn't divide num_hidden_layers {layers}"),
        (
            precision.name == "int8_sq" and tp > kv_heads,
            f"int8_sq can't repeat key-value heads: tp {tp} is more than {kv_heads}",
        ),
        *(
            (
                group and count % (group * tp),
                f"{precision.name} needs {name} {count} divisible by tp x {group}",
            )
            for name, count in channels.items()
        ),
    )
    return next((text for wrong, text in findings if wrong), None)

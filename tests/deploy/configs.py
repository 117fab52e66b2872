"""Model configs, to be compared."""

from __future__ import annotations

from tritonclient.grpc.model_config_pb2 import ModelConfig


def ordered(config: ModelConfig) -> ModelConfig:
    """By name, as Triton takes tensors: a release file that builds on another has its order."""
    for tensors in (config.input, config.output):
        tensors.sort(key=lambda each: each.name)
    return config

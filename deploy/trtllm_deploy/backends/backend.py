"""The backends, by the name that a deployment file has for them."""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_deploy.backends.llmapi import LlmApiBackend
from trtllm_deploy.backends.protocol import Backend
from trtllm_deploy.backends.reference import ReferenceBackend
from trtllm_deploy.backends.tensorrt import TensorrtBackend
from trtllm_deploy.backends.trtllm_serve.backend import TrtllmServeBackend
from trtllm_deploy.backends.vllm.backend import VllmBackend

BACKENDS: Mapping[str, Backend] = {
    "reference": ReferenceBackend(),
    "tensorrt": TensorrtBackend(),
    "llmapi": LlmApiBackend(),
    "vllm": VllmBackend(),
    "trtllm-serve": TrtllmServeBackend(),
}

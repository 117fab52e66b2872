"""vLLM: a Hugging Face checkpoint in, ``vllm serve`` on it out; its settings, options, logs.

Knows nothing of Triton or of TensorRT-LLM but the names that a deployment file has for settings.
"""

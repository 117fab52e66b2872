"""trtllm-serve: a Hugging Face checkpoint in, TensorRT-LLM's own OpenAI server on it out.

Every setting is in one YAML file, only model, place and backend on the command line: which of the
two comes first differs between releases. Knows nothing of Triton but the names that a deployment
file has for settings.
"""

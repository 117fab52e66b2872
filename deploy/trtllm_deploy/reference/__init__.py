"""The engine that runs inside Triton in place of TensorRT-LLM: token ids in, token ids out.

Knows nothing of text, of Triton, or of how its checkpoint was made.
"""

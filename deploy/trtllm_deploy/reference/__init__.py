"""The engine that runs inside Triton in place of TensorRT-LLM: token ids in, token ids out.

Its scheduler is a function that needs no engine: ``explain scheduling`` plays it by itself. Knows
nothing of text, of Triton, or of how its checkpoint was made.
"""

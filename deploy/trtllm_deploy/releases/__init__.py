"""What each TensorRT-LLM release is, as data: a release's name in, its facts out.

Knows nothing of a cell, a template or a machine.
"""

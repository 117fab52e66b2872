"""Triton: a model repository in, the server that serves it out; its command, program, processes.

Knows nothing of how the repository was made.
"""

"""This computer: GPUs, child processes, files written whole, package data, the console.

Knows nothing of models.
"""

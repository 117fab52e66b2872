"""Cells in, stages with their keys out, and the sizes of weights and KV cache. Makes nothing."""

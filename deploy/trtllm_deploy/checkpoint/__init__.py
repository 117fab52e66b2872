"""From a Hugging Face model to a verified checkpoint: a job in, a folder out.

Knows nothing of engines, cells or the store.
"""

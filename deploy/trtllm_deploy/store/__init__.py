"""Finished artifacts, addressed by what they were made from.

Knows nothing of what they are.
"""

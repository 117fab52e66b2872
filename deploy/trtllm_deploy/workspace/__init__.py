"""The user's folder: its names and logs, what is there, why, and what is left over.

Knows nothing of how artifacts are made.
"""

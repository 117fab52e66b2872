"""The clock: when is what sent, by whom, how many at once. An order in, exchanges out.

Knows nothing of what the bytes mean.
"""

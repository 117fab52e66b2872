"""The commands of ``llm_perf``: flags in, a screen, files and an exit code out.

Knows nothing of protocols or formulas.
"""

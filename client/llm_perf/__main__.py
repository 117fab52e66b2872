"""``python -m llm_perf``."""

from llm_perf.cli.main import main

main()

"""Draw what ``trtllm-deploy run`` ends with: python docs/picture.py RESULTS -o FILE.svg"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console

from llm_perf import api
from trtllm_deploy.study.table import print_summary


def main() -> None:
    """Write one SVG that loads nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder with ledger.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    rows = api.read_measurements(asked.results)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    print_summary(rows, Path("workspace/results"), console)
    picture = console.export_svg(title="make quickstart")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # from the network
    asked.output.write_text(re.sub(r"[ \t]+\n", "\n", picture), encoding="utf-8")


if __name__ == "__main__":
    main()

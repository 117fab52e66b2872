"""nvidia-smi: the GPUs of STANDIN_GPUS, a line each of index, name, memory.total, compute_cap."""

from __future__ import annotations

import os
import sys

_QUERY = "--query-gpu=index,name,memory.total,compute_cap"


def main(_: str) -> int:
    """Answer the one query that is known; as the real one, in MiB and without units."""
    if sorted(sys.argv[1:]) != ["--format=csv,noheader,nounits", _QUERY]:
        print("Invalid combination of input arguments", file=sys.stderr)
        return 2
    listing = os.environ.get("STANDIN_GPUS", "")
    if not listing:
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
        return 9
    print(listing)
    return 0

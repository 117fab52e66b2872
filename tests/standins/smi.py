"""nvidia-smi: the GPUs of TRT_STANDIN_GPUS, a line each of index, name, memory.total, compute_cap.

A line may go on with the UUID and ``Enabled``, if MIG is; TRT_STANDIN_MIG then is what -L says.
TRT_STANDIN_COMPLAINT, a text, and TRT_STANDIN_CODE are how it fails instead.

smi.xml is what the real one reports of an H200 with driver 580, without what identifies it, and the
topology is written as there. TRT_STANDIN_REPORT is a JSON object of paths in it and their texts,
for every GPU; TRT_STANDIN_LINK is how the GPUs are joined, NV18 if not set.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

_QUERY = "--query-gpu=index,name,memory.total,compute_cap,uuid,mig.mode.current"


def main(_: str) -> int:
    """Answer what is known; the listing as the real one, in MiB and without units."""
    listing = os.environ.get("TRT_STANDIN_GPUS", "")
    gpus = [[field.strip() for field in row] for row in csv.reader(listing.splitlines())]
    answers = {
        ("--format=csv,noheader,nounits", _QUERY): _listing,
        ("-L",): lambda _: os.environ["TRT_STANDIN_MIG"],
        ("-q", "-x"): _report,
        ("-m", "topo"): _topology,
    }
    answer = answers.get(tuple(sorted(sys.argv[1:])))
    if answer is None:
        print("Invalid combination of input arguments", file=sys.stderr)
        return 2
    if complaint := os.environ.get("TRT_STANDIN_COMPLAINT"):
        print(complaint)
        return int(os.environ["TRT_STANDIN_CODE"])
    if not listing:
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
        return 9
    print(answer(gpus))
    return 0


def _listing(gpus: list[list[str]]) -> str:
    told = [[*gpu, f"GPU-{gpu[0]:0>8}-5a1e-4cbd-9d2b-3f6c0e7d1a42", "[N/A]"] for gpu in gpus]
    full = [gpu if len(gpu) > 4 else more for gpu, more in zip(gpus, told, strict=True)]
    return "\n".join(", ".join(gpu) for gpu in full)


def _report(gpus: list[list[str]]) -> str:
    log = ElementTree.parse(Path(__file__).with_suffix(".xml")).getroot()
    pattern = log.find("gpu")
    assert pattern is not None
    log.remove(pattern)
    told = json.loads(os.environ.get("TRT_STANDIN_REPORT", "{}"))
    for _, name, memory, *_ in gpus:
        gpu = copy.deepcopy(pattern)
        texts = {"product_name": name, "fb_memory_usage/total": f"{memory} MiB", **told}
        for path, text in texts.items():
            element = gpu.find(path)
            assert element is not None, path
            element.text = text
        log.append(gpu)
    return ElementTree.tostring(log, encoding="unicode")


def _topology(gpus: list[list[str]]) -> str:
    names = [f"GPU{index}" for index, *_ in gpus]
    link = os.environ.get("TRT_STANDIN_LINK", "NV18")
    heads = "\t".join(["", *names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])
    rows = [f"\x1b[4m{heads}\x1b[0m"]
    for name in names:
        cells = [" X " if other == name else link for other in names]
        rows.append("\t".join([name, *cells, "0-31", "0", "", "N/A"]))
    return "\n".join([*rows, "", "Legend:", "", "  X    = Self"])

"""Stand-ins for commands that need NVIDIA's container: they keep its contract, without its work.

``install`` puts them where the product looks. They read the real inputs, refuse what the real ones
refuse, and write what the real ones write; nothing in them comes from the product.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SCRIPTS = {
    "0.11.0": {
        "quantize": "quantization/quantize.py",
        "convert_checkpoint-qwen": "qwen/convert_checkpoint.py",
        "convert_checkpoint-llama": "llama/convert_checkpoint.py",
    },
    "1.2": {
        "quantize": "quantization/quantize.py",
        "convert_checkpoint-qwen": "models/core/qwen/convert_checkpoint.py",
        "convert_checkpoint-llama": "models/core/llama/convert_checkpoint.py",
    },
}


def install(
    folder: Path, release: str, *, gpus: int = 1, gpu: str = "NVIDIA H100 80GB HBM3, 81559, 9.0"
) -> dict[str, str]:
    """Write the commands of one release below ``folder``; returns the environment to use them.

    ``gpu`` is its name, memory in MiB and compute capability. Further variables: TRT_STANDIN_FAULT
    is ``oom``, ``die``, ``kill`` or ``lose_rank``, TRT_STANDIN_FAULT_IN text that the command line
    of a faulty run has in it (all runs, if not set); TRT_STANDIN_SECONDS how long each run takes;
    TRT_STANDIN_CALLS a file that gets a line of JSON for each run.
    """
    commands = {"trtllm-build": "bin/trtllm-build", "nvidia-smi": "bin/nvidia-smi"}
    commands |= {name: f"examples/{path}" for name, path in _SCRIPTS[release].items()}
    python = folder / "bin" / "python3"  # the container's python has torch, and so has this one
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    for name, path in commands.items():
        module = "build" if name == "trtllm-build" else "checkpoint"
        module = "smi" if name == "nvidia-smi" else module
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(_HERE.parents[1])!r})\n"
            f"from tests.standins.{module} import main\nsys.exit(main({name!r}))\n",
            encoding="utf-8",
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "TRTLLM_EXAMPLES": str(folder / "examples"),
        "TRT_STANDIN_RELEASE": release,
        "TRT_STANDIN_GPUS": "\n".join(f"{index}, {gpu}" for index in range(gpus)),
    }

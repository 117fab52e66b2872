"""trtllm-deploy with checkpoints that are only files, for tests of what happens around them.

    python light_build.py build FILE --workspace FOLDER ...

Engines come from the stand-in of trtllm-build, as processes; a checkpoint is written by a process
as well, one rank after the other, and notes its call as the stand-ins do.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import trtllm_deploy.builds.make
from trtllm_deploy.builds.executor import OnLine
from trtllm_deploy.builds.make import StageMaker
from trtllm_deploy.checkpoint.job import CheckpointJob
from trtllm_deploy.cli.main import main
from trtllm_deploy.machine.child import run_command
from trtllm_deploy.plan.plan import Stage

_WRITE = """
import json, os, sys, time
job = json.loads(sys.argv[1])
with open(os.environ["TRT_STANDIN_CALLS"], "a") as calls:
    calls.write(json.dumps({"command": "checkpoint", **job["made"]}) + "\\n")
ranks = job["mapping"]["world_size"]
for rank in range(ranks):
    data = f"{job['made']} rank {rank}".encode() * 100
    header = {"x": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    header = json.dumps(header).encode()
    with open(f"{job['folder']}/rank{rank}.safetensors", "wb") as shard:
        print("writes", shard.name, flush=True)
        shard.write(len(header).to_bytes(8, "little") + header)
        shard.flush()
        time.sleep(float(os.environ.get("TRT_STANDIN_SECONDS", "0")) / ranks)
        shard.write(data)
with open(f"{job.pop('folder')}/config.json", "w") as config:
    json.dump(job, config)
"""


def light_checkpoint(
    job: CheckpointJob, log_file: Path, on_line: Callable[[str], None] = print
) -> None:
    """What :func:`trtllm_deploy.checkpoint.quantize.run_checkpoint` is in these tests."""
    mapping = {"world_size": job.tp * job.pp, "tp_size": job.tp, "pp_size": job.pp}
    made = {"model": job.model_dir.name, "precision": job.precision, "tp": job.tp, "pp": job.pp}
    needed = {**dict.fromkeys(("dtype", "hidden_size", "num_hidden_layers"), 1), "vocab_size": 512}
    config = {
        "architecture": "Light",
        **needed,
        "mapping": mapping,
        "made": made,
        "quantization": {},
    }
    text = json.dumps({**config, "folder": str(job.output_dir)})
    run_command(
        [sys.executable, "-S", "-c", _WRITE, text],
        log_file=log_file,
        on_line=on_line,
        environment=os.environ,
    )


class LightMaker(StageMaker):
    """Makes light checkpoints in whatever process it is used."""

    def __call__(self, stage: Stage, on_line: OnLine) -> bool:
        trtllm_deploy.builds.make.run_checkpoint = light_checkpoint
        return super().__call__(stage, on_line)


if __name__ == "__main__":
    trtllm_deploy.builds.make.StageMaker = LightMaker  # type: ignore[misc]
    main()

"""What KV-cache reuse saves: TTFT with it off and on, for prompts that begin alike.

    python benchmarks/kv_reuse.py [--rounds 2] [--json FILE]

Serves the fp16 cell of examples/quickstart.yaml twice with real Triton, asks both servers for the
64 prompts of examples/number-words/shared_prefix.jsonl (about 400 tokens in common) one at a time,
off and on in turn, and prints TTFT p50 of each and their ratio. The model is tiny and the backend
is the reference one: the figures show that reuse works, not what TensorRT-LLM gains by it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path[0] = str(Path(__file__).parent.parent)  # benchmarks is imported as a package

from llm_perf import api
from trtllm_deploy.machine.json_files import write_json
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CELL = "number_words_fp16_tp1_pp1_isl1024_osl64_bs4"


def deployment(folder: Path, reuse: bool) -> Path:
    """The quickstart, cut down to one cell, with reuse on or off."""
    spec: dict[str, Any] = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text("utf-8"))
    spec["precisions"] = ["fp16"]
    spec["matrix"]["max_batch_size"] = [4]
    spec["models"]["number_words"]["source"] = str(EXAMPLES / "number-words" / "model")
    spec["triton"]["enable_kv_cache_reuse"] = reuse
    del spec["calibration"], spec["measure"]
    file = folder / f"reuse-{reuse}.yaml"
    file.write_text(yaml.safe_dump(spec), "utf-8")
    return file


def built(file: Path, workspace: Path) -> Path:
    """The model repository of a deployment file's only cell."""
    command = ["trtllm-deploy", "build", str(file), "--workspace", str(workspace)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return (workspace / "ensemble_models" / CELL).resolve()


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each kind")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    workspace = options.workspace.resolve()
    model = EXAMPLES / "number-words"
    workload = api.load_workload(model / "shared_prefix.jsonl", model / "model", 64)
    ttft: dict[bool, list[float]] = {False: [], True: []}
    scores: dict[bool, list[float]] = {False: [], True: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for reuse in (False, True):
            server = ModelServer(
                built(deployment(folder, reuse), workspace),
                ports=free_ports(),
                log_file=workspace / "logs" / f"kv_reuse_{reuse}.log",
                cache_dir=workspace / "triton",
            )
            servers[reuse] = stack.enter_context(server)
            server.wait_ready()
        for number in range(options.rounds):
            for reuse in (False, True) if number % 2 == 0 else (True, False):
                endpoint = api.Endpoint(servers[reuse].grpc_url, "grpc", "ensemble")
                run = api.measure(endpoint, workload, api.Concurrency(1))
                ttft[reuse].append(float(run.metrics["time_to_first_token"]["p50"] or 0))
                scores[reuse].append(run.score or 0)
    figures = {
        "input_tokens_p50": median(prompt.input_tokens or 0 for prompt in workload.prompts),
        "ttft_p50_ms_off": ttft[False],
        "ttft_p50_ms_on": ttft[True],
        "ratio_on_to_off": median(ttft[True]) / median(ttft[False]),
        "score_off": scores[False],
        "score_on": scores[True],
    }
    for name, value in figures.items():
        print(f"{name:<18} {value}")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

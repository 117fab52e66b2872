"""What KV-cache reuse saves: TTFT with it off and on, for prompts that begin alike.

    python benchmarks/kv_reuse.py [--rounds 2] [--json FILE]

Serves the fp16 cell of examples/quickstart.yaml twice with real Triton, asks both servers for the
64 prompts of examples/number-words/shared_prefix.jsonl (about 400 tokens in common) one at a time,
off and on in turn, and prints TTFT p50 of each and their ratio. The model is tiny and the backend
is the reference one: the figures show that reuse works, not what TensorRT-LLM gains by it.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console

from client import api
from deploy.build import build, gather
from deploy.launch import TritonServer, free_ports
from deploy.plan import CellPlan, plan
from deploy.progress import BuildProgress
from deploy.spec import load_deployment
from deploy.store import write_json
from deploy.workspace import Workspace

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


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


def built(file: Path, workspace: Workspace) -> CellPlan:
    """The only cell of a deployment file, built."""
    loaded = load_deployment(file)
    facts = gather(loaded, workspace)
    plans = plan(loaded, facts)
    with BuildProgress(Console(stderr=True)) as progress:
        build(plans, loaded, facts, workspace, progress)
    return plans[0]


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each kind")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    workspace = Workspace(options.workspace.absolute())
    ttft: dict[bool, list[float]] = {False: [], True: []}
    scores: dict[bool, list[float]] = {False: [], True: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for reuse in (False, True):
            cell = built(deployment(folder, reuse), workspace)
            workload = api.load_workload(
                EXAMPLES / "number-words" / "shared_prefix.jsonl",
                workspace.artifact(cell.fetch),
                64,
            )
            server = TritonServer(
                workspace.artifact(cell.repository),
                ports=free_ports(),
                log_file=workspace.server_log(f"kv_reuse_{reuse}"),
                cache_dir=workspace.triton,
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
        "input_tokens_p50": median(prompt.input_tokens for prompt in workload.prompts),
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

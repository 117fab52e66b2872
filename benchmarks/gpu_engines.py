"""vLLM on one GPU: a Qwen2-7B shape in bf16 and in the fp8 that our pipeline makes of it.

    python benchmarks/gpu_engines.py --folder DIR make       weights, and checkpoints with modelopt
    python benchmarks/gpu_engines.py --folder DIR words      the example's accuracy in both
    python benchmarks/gpu_engines.py --folder DIR measure    loads, both clients in turns
    python benchmarks/gpu_engines.py --folder DIR table      Markdown of what there is

DIR takes 40 GB; /dev/shm is fastest. Weights are random, so nothing is downloaded. Each part
leaves its figures in DIR/out as soon as it has them, loads in DIR/out/ledger.jsonl; --until ends
it in time, and what was left out is told. Needs torch, modelopt and vllm in this environment.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parent.parent)  # benchmarks is imported as a package

from benchmarks.gpu_commands import MODEL, Bench, our_turn, ours, say, their_turn, vllm
from benchmarks.gpu_tables import BENCH, LENGTHS, PRECISIONS, figures, tables, top1
from llm_perf.api import (
    Concurrency,
    Conditions,
    Endpoint,
    Extent,
    Planned,
    Target,
    append_measurement,
    measure,
)
from llm_perf.workload.synthetic import Lengths
from llm_perf.workload.workload import Workload, synthetic_workload
from trtllm_deploy.machine.gpu import ask, gpus
from trtllm_deploy.plan.roofline import LISTED, Roofline
from trtllm_deploy.plan.shape import read_shape

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "number-words"
LIMITS = ("--max-model-len", "2048", "--max-num-seqs", "512")
SMALL = ("--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(2**30))


def make(bench: Bench) -> None:
    """The model, its fp8 checkpoint and the example's, by the job that `build` runs."""
    import torch

    from benchmarks.gpu_checkpoint import MIN_TOP1, random_model, write_prompts
    from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob, Verification
    from trtllm_deploy.checkpoint.quantize import run_checkpoint

    prompts, made = bench.folder / "calibration.jsonl", {}
    write_prompts(prompts, 128)

    def quantize(name: str, source: Path, data: Path, least: float | None) -> None:
        began = time.monotonic()
        job = CheckpointJob(
            model_dir=source,
            output_dir=bench.folder / f"{name}-fp8",
            precision="fp8_bf16",
            kind="hf",
            calibration=Calibration(data, 128, 512),
            verification=Verification(min_top1=least),
        )
        run_checkpoint(job, bench.out / f"{name}-fp8.log", lambda text: say(f"{name}: {text}"))
        report = json.loads((job.output_dir / "verify.json").read_text())
        size = sum(each.stat().st_size for each in job.output_dir.iterdir())
        made[name] = {"seconds": time.monotonic() - began, "bytes": size, "verify": report}
        bench.write("make", made)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        bench.write("ceilings", ceilings())
    quantize("words", EXAMPLE / "model", EXAMPLE / "calibration.jsonl", None)
    began = time.monotonic()
    parameters = random_model(bench.shape, bench.folder / "m-bf16", device, 1, torch.bfloat16)
    made["model"] = {"seconds": time.monotonic() - began, "parameters": parameters}
    if device == "cuda":
        torch.cuda.empty_cache()
    quantize("m", bench.folder / "m-bf16", prompts, MIN_TOP1)


def ceilings() -> dict[str, float]:
    """What a program gets of the GPU: a copy in TB/s (read and written), a product in TFLOP/s."""
    import torch
    from triton.testing import do_bench  # type: ignore[import-not-found,unused-ignore]

    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copy_ms = do_bench(lambda: target.copy_(source), return_mode="median")
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product_ms = do_bench(lambda: left @ left, return_mode="median")
    return {
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "copy_tb_s": 2 * source.numel() * 4 / copy_ms / 1e9,
        "bf16_tflop_s": 2 * 8192**3 / product_ms / 1e9,
    }


def machine() -> dict[str, str]:
    """The card, its driver and what ran on it."""
    found = {each: metadata.version(each) for each in ("vllm", "torch", "transformers")}
    try:
        card = ask("--query-gpu=name,driver_version", "--format=csv,noheader").strip()
    except (OSError, subprocess.SubprocessError):
        card = "no GPU"
    return {"card": card, "python": platform.python_version(), **found}


def words(bench: Bench) -> None:
    """The example's exact answers and next tokens, bf16 and fp8, both at once: nothing is timed."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(words_one, bench), PRECISIONS))


def words_one(bench: Bench, precision: str) -> None:
    model = EXAMPLE / "model" if precision == "bf16" else bench.folder / "words-fp8"
    name, port = f"words-{precision}", 8200 + PRECISIONS.index(precision)
    flags = ("--max-model-len", "512", "--dtype", "bfloat16", "--enforce-eager")
    with vllm(bench, name, model, port, *SMALL, *flags) as url:
        asked = ["--input-data", str(EXAMPLE / "prompts.jsonl"), "--max-tokens", "32"]
        asked += ["--concurrency", "32", "--sampling", "temperature=0"]
        asked += ["--tokenizer-path", str(model)]
        bench.write(name, ours(bench, url, name, asked))
        likeliest(bench, url, name, 256, 1)


def prompts(n: int, joined: int) -> list[str]:
    """Real prompts, the example's with their answers; several in one for longer ones."""
    rows = [json.loads(row) for row in (EXAMPLE / "prompts.jsonl").read_text("utf-8").splitlines()]
    texts = [f"{row['text_input']} {row['reference']}" for row in rows]
    return [" ".join((texts * 2)[first : first + joined]) for first in range(n)]


def measure_all(bench: Bench) -> None:
    """Each precision's server: next tokens, loads, both clients in turns."""
    bench.write("machine", machine())
    for precision in PRECISIONS:
        bench.attempt(f"{precision}: server", 120, partial(measure_one, bench, precision))


def measure_one(bench: Bench, precision: str) -> None:
    model = bench.folder / f"m-{precision}"
    with vllm(bench, precision, model, 8300, *LIMITS) as url:
        bench.attempt(f"{precision}: top1", 20, partial(likeliest, bench, url, precision, 64, 8))
        workloads = {
            (isl, osl): synthetic_workload(
                model, Lengths(isl), Lengths(osl), 3 * max(bench.concurrency), seed=isl
            )
            for isl, osl in LENGTHS
        }
        warm = Endpoint(url, "openai", MODEL), workloads[LENGTHS[0]], Concurrency(64)
        measure(*warm, _extent(128, 0))
        for lengths, n in product(LENGTHS, bench.concurrency):
            step = partial(load, bench, url, precision, lengths, workloads[lengths], n)
            bench.attempt(f"{precision}: {lengths} at {n}", 8 + n / 8, step)
        turns(bench, url, precision, model)


def likeliest(bench: Bench, url: str, name: str, n: int, joined: int) -> None:
    bench.write(f"top1-{name}", top1(url, MODEL, prompts(n, joined)))


def _extent(requests: int, warmup: int) -> Conditions:
    return Conditions(extent=Extent(requests=requests, warmup_requests=warmup))


def load(
    bench: Bench, url: str, precision: str, lengths: tuple[int, int], workload: Workload, n: int
) -> None:
    """One closed loop, kept as a line of the ledger with what the roofline expects."""
    conditions = _extent(max(8, min(4 * n, 256), 3 * n), min(n, 16))
    here, expected = gpus(), None
    shape = read_shape(json.loads((bench.folder / f"m-{precision}" / "config.json").read_text()))
    if here and shape and here[0].name in LISTED:
        roof = Roofline(shape, LISTED[here[0].name], "FP8" if precision == "fp8" else None)
        expected = {"source": "roofline", "metrics": roof.at(n, *lengths).metrics()}
    cell = {"model": "qwen2-7b", "precision": precision, "tp": 1, "pp": 1}
    cell |= {"isl": lengths[0], "osl": lengths[1], "max_batch_size": 512}
    target = Target(precision, url, "openai", MODEL, gpus=1, server="vllm", cell=cell)
    planned = Planned(
        target,
        Concurrency(n),
        workload,
        conditions.extent,
        study="gpu_engines",
        gpu={"name": here[0].name, "memory": here[0].memory, "count": 1} if here else None,
        prediction=expected,
    )
    seen = measure(Endpoint(url, "openai", MODEL), workload, Concurrency(n), conditions)
    append_measurement(bench.out, planned.measured(seen))


def turns(bench: Bench, url: str, precision: str, model: Path) -> None:
    """Both clients' commands, one after the other, the first to go changing with each round."""
    clients: dict[str, Callable[..., dict[str, Any]]] = {"llm_perf": our_turn, "vllm": their_turn}
    done: dict[str, list[Mapping[str, Any]]] = {}

    def round_(turn: int, n: int, requests: int) -> None:
        for client in sorted(clients, reverse=turn % 2 == 1):
            name = f"{precision}-{client}-{n}-{turn}"
            found = clients[client](bench, url, name, model, n, requests)
            done.setdefault(f"{client} {n}", []).append(found)
            bench.write(f"turns-{precision}", done)

    for turn, (n, requests) in product(range(bench.rounds), BENCH):
        what = f"{precision}: round {turn + 1} at {n}"
        bench.attempt(what, 50, partial(round_, turn, n, requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", choices=["make", "words", "measure", "table"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", type=Path, default=ROOT / "examples/shapes/qwen2-7b.json")
    parser.add_argument("--until", type=float, default=3600, help="seconds that all may take")
    parser.add_argument("--python", default=sys.executable, help="the one that has vllm")
    parser.add_argument("--vllm-flags", default="", help="more of them, for the server")
    parser.add_argument("--concurrency", default="1,4,16,64,128,256,512")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(
        options.folder,
        options.shape,
        options.until,
        options.python,
        tuple(options.vllm_flags.split()),
        tuple(int(each) for each in options.concurrency.split(",")),
        options.rounds,
    )
    bench.out.mkdir(parents=True, exist_ok=True)
    parts = {"make": make, "words": words, "measure": measure_all}
    if options.part in parts:
        parts[options.part](bench)
        say(f"{options.part} is done")
    else:
        bench.write("figures", figures(bench.out))
        print(tables(bench.out, bench.shape))


if __name__ == "__main__":
    main()

"""What the user's whole command costs: llm_perf against genai-perf, and whether they agree.

    python benchmarks/command.py [--genai-perf PATH] [--rounds 5] [--json FILE]

Both take turns at one real Triton with the number-words model and do equal work: 200 prompts once,
8 in flight, answers until the model ends them, results and table written. genai-perf gets
``--request-count 200``: one pass and no stability windows, the least it can do. Wall seconds are
from start to exit, CPU seconds user + system of the whole process tree. ``load`` is from the first
request to the last response: the server's time, common to both; ``outside`` is the rest of wall.
Throughput and latency are each tool's own, from its ``profile_export_genai_perf.json``;
perf_analyzer's threads have fixed shares of a request count, so the last third or so of its run
has fewer than 8 in flight, and its throughput is less for that.

genai-perf wants an environment of its own (pip install genai-perf==0.0.16); it is left out where it
isn't found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path[0] = str(Path(__file__).parent.parent)  # benchmarks is imported as a package

from benchmarks.peers import perf_analyzer
from trtllm_deploy.machine.json_files import write_json
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = EXAMPLES / "number-words" / "model"
CELL = "number_words_fp16_tp1_pp1_isl512_osl64_bs8"
PROMPTS, STREAMS, MAX_TOKENS = 200, 8, 64  # no answer of the model is as long as that
LIMIT_S = 120
Command = Callable[[str, Path], tuple[list[str], dict[str, str]]]
Figures = dict[str, float]


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--genai-perf", type=Path, help="the program; default: the one on PATH")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    found = options.genai_perf or shutil.which("genai-perf")
    with tempfile.TemporaryDirectory() as name:
        folder, workspace = Path(name), options.workspace.resolve()
        write_prompts(folder)
        commands: dict[str, Command] = {"llm_perf": ours}
        if found:
            commands["genai-perf"] = genai_perf(Path(found).absolute())
        else:
            print("genai-perf is left out: not on PATH, and no --genai-perf", file=sys.stderr)
        log = folder / "triton.log"
        repository = built(folder, workspace)
        with ModelServer(repository, ports=free_ports(), log_file=log) as server:
            server.wait_ready()
            rounds = measure(commands, server.grpc_url, folder, options.rounds)
    print_rounds(rounds)
    if options.json:
        write_json(options.json, {"rounds": rounds, "ratio_of_medians": ratios(rounds)})


def built(folder: Path, workspace: Path) -> Path:
    """The model repository of the quickstart's fp16 cell, with the older release's tensors."""
    spec: dict[str, Any] = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text("utf-8"))
    spec["release"] = "0.11.0"
    spec["precisions"] = ["fp16"]
    spec["matrix"]["max_batch_size"] = [STREAMS]
    spec["models"]["number_words"]["source"] = str(MODEL)
    del spec["calibration"], spec["measure"]
    file = folder / "command.yaml"
    file.write_text(yaml.safe_dump(spec), "utf-8")
    command = [sys.executable, "-m", "trtllm_deploy.cli.main", "build", str(file)]
    subprocess.run([*command, "--workspace", str(workspace)], check=True, stdout=sys.stderr)
    return (workspace / "ensemble_models" / CELL).resolve()


def write_prompts(folder: Path) -> None:
    """The same prompts for both, each in its own key."""
    lines = (EXAMPLES / "number-words" / "prompts.jsonl").read_text("utf-8").splitlines()
    for key in ("text_input", "text"):
        prompts = ({key: json.loads(line)["text_input"]} for line in lines[:PROMPTS])
        text = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
        (folder / f"{key}.jsonl").write_text(text, "utf-8")


def ours(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Our command, as a user gives it, with all files that it writes."""
    command = [str(Path(sys.executable).with_name("llm_perf")), "-u", url, "-m", "ensemble"]
    command += ["--tokenizer-path", str(MODEL), "--input-data", str(folder / "text_input.jsonl")]
    command += ["--max-tokens", str(MAX_TOKENS), "--concurrency", str(STREAMS)]
    return [*command, "--profile-export-file", str(folder / "out" / "run.json")], {}


def genai_perf(program: Path) -> Command:
    """Theirs, for the same measurement."""
    binary, environment = perf_analyzer()
    paths = os.pathsep.join([str(binary.parent), os.environ["PATH"]])
    variables = {**environment, "PATH": paths, "HF_HUB_OFFLINE": "1"}

    def command(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        flags = ["profile", "-m", "ensemble", "--backend", "tensorrtllm", "--streaming", "-u", url]
        flags += ["--input-file", str(folder / "text.jsonl"), "--num-prompts", str(PROMPTS)]
        flags += ["--concurrency", str(STREAMS), "--request-count", str(PROMPTS)]
        flags += ["--extra-inputs", f"max_tokens:{MAX_TOKENS}", "--tokenizer", str(MODEL)]
        return [str(program), *flags, "--artifact-dir", str(folder / "out")], variables

    return command


def measure(
    commands: dict[str, Command], url: str, folder: Path, rounds: int
) -> dict[str, list[Figures]]:
    """Each command's figures per round; a first round, for caches, is not among them."""
    figures: dict[str, list[Figures]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name in commands:
            row = once(*commands[name](url, folder), folder / "out")
            if number:
                figures[name].append(row)
    return figures


def once(command: list[str], environment: dict[str, str], out: Path) -> Figures:
    """Run a command to its end. Raises on a failure, with the end of what it said."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            ["timeout", str(LIMIT_S), *command],
            env={**os.environ, **environment},
            cwd=out.parent,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise ValueError(f"exit code {process.returncode}: {said.read()[-200:].decode()}")
    export = json.loads(next(out.rglob("profile_export.json")).read_text("utf-8"))
    requests = export["experiments"][0]["requests"]
    first = min(request["timestamp"] for request in requests)
    last = max(request["response_timestamps"][-1] for request in requests)
    metrics = json.loads(next(out.rglob("profile_export_genai_perf.json")).read_text("utf-8"))
    load = (last - first) / 1e9
    return {
        "requests": len(requests),
        "wall_s": wall,
        "load_s": load,
        "outside_s": wall - load,
        "cpu_s": used.ru_utime + used.ru_stime,
        "request_throughput_per_s": metrics["request_throughput"]["avg"],
        "request_latency_p50_ms": metrics["request_latency"]["p50"],
        "time_to_first_token_p50_ms": metrics["time_to_first_token"]["p50"],
    }


def ratios(rounds: dict[str, list[Figures]]) -> dict[str, float]:
    """Ours over genai-perf's, of each figure's median; empty where only one was measured."""
    if len(rounds) < 2:
        return {}
    ours, theirs = rounds.values()
    middle = {key: median(row[key] for row in theirs) for key in theirs[0]}
    return {key: median(row[key] for row in ours) / middle[key] for key in middle}


def print_rounds(rounds: dict[str, list[Figures]]) -> None:
    """Median, least and most of each figure, and the ratio of the medians."""
    print(f"{'median (least to most)':<27}" + "".join(f"{name:^28}" for name in rounds) + "  ratio")
    ratio = ratios(rounds)
    for key in next(iter(rounds.values()))[0]:
        line = f"{key:<27}"
        for rows in rounds.values():
            values = [row[key] for row in rows]
            line += f"{median(values):>9.2f} ({min(values):7.2f} to {max(values):7.2f})"
        print(line + (f"  {ratio[key]:.3f}" if ratio else ""))


if __name__ == "__main__":
    main()

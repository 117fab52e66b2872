"""What gpu_engines.py found, as Markdown: the figures of its folder in, tables out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.request import Request, urlopen

from llm_perf.api import Measurement, read_measurements
from trtllm_deploy.plan.memory import activation_bytes, kv_bytes_per_token, weight_bytes
from trtllm_deploy.plan.shape import read_shape

PRECISIONS = ("bf16", "fp8")
LENGTHS = ((1024, 128), (128, 128))
BENCH = ((16, 128), (128, 512))  # in flight, of how many requests
METRICS = (
    "output_token_throughput",
    "output_token_throughput_per_user",
    "inter_token_latency",
    "time_to_first_token",
    "request_throughput",
)
STEP_TOKENS, MOST, SHARE = 8192, 512, 0.92  # vLLM's defaults here, and --max-num-seqs


def top1(url: str, model: str, prompts: Sequence[str]) -> list[list[int]]:
    """The likeliest next token at each position of each prompt, as vLLM ranks them."""
    found = []
    for first in range(0, len(prompts), 16):
        body = {"model": model, "prompt": prompts[first : first + 16], "max_tokens": 1}
        body |= {"temperature": 0, "prompt_logprobs": 1}
        asked = Request(f"{url}/v1/completions", json.dumps(body).encode())
        asked.add_header("Content-Type", "application/json")
        with urlopen(asked, timeout=300) as answer:
            choices = json.load(answer)["choices"]
        for choice in sorted(choices, key=lambda each: int(each["index"])):
            ranked = [each for each in choice["prompt_logprobs"] if each]
            found.append([_first(each) for each in ranked])
    return found


def _first(ranked: Mapping[str, Mapping[str, Any]]) -> int:
    return min((each["rank"], int(token)) for token, each in ranked.items())[1]


def tables(out: Path, shape: Path) -> str:
    """All that can be told of the folder."""
    parts = (_machine, _sweep, _turns, _memory, _agreement, _made)
    return "\n\n".join(text for part in parts if (text := "\n".join(part(out, shape))))


def figures(out: Path) -> dict[str, Any]:
    """The same for programs: what was found by its name, and of each load the most asked for."""
    names = ("machine", "ceilings", "make", "server-bf16", "server-fp8", "turns-fp8", "turns-bf16")
    found = {name: value for name in names if (value := _read(out, name)) is not None}
    for name in {"turns-fp8", "turns-bf16"} & found.keys():
        found[name] = {
            client: [(_ours if client.startswith("llm_perf") else _theirs)(each) for each in rounds]
            for client, rounds in found[name].items()
        }
    files = sorted(out.glob("**/ledger.jsonl"))
    found["loads"] = [
        {"ledger": file.parent.name, **_kept(line)}
        for file in files
        for line in read_measurements(file.parent)
    ]
    return found


def _kept(line: Measurement) -> dict[str, Any]:
    said = {key: line["metrics"][key] for key in METRICS}
    metrics = {
        f"{key} {name}": round(value, 3)
        for key, metric in said.items()
        for name in ("avg", "p50", "p95")
        if isinstance(value := metric.get(name), float)
    }
    load, cell = line["load"], line["target"]["cell"]
    told = {"cell": cell, "isl": line["workload"]["isl_avg"], load["kind"]: load["value"]}
    told |= {"kind": line["kind"], "requests": line["requests_ok"], "s": line["duration_s"]}
    return {**told, **metrics, "prediction": line["prediction"]}


def _read(out: Path, name: str) -> Any:
    file = out / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from (f"| {' | '.join(head)} |", "|" + "---|" * len(head))
        yield from (f"| {' | '.join(row)} |" for row in rows)


def _machine(out: Path, _: Path) -> Iterator[str]:
    found = {**(_read(out, "machine") or {}), **(_read(out, "ceilings") or {})}
    yield ", ".join(f"{name} {value}" for name, value in found.items())
    if left := _read(out, "left_out"):
        yield f"\nLeft out or failed: {', '.join(each.splitlines()[0] for each in left)}"


def _sweep(out: Path, _: Path) -> Iterator[str]:
    """Measured, and by how many per cent the roofline is off."""
    found = {}
    for each in read_measurements(out):
        cell = each["target"]["cell"]
        if each["status"] == "ok" and each["kind"] == "load":
            key = (cell["isl"], cell["osl"], int(each["load"]["value"]), cell["precision"])
            found[key] = each
    head = ["in flight"]
    for precision in PRECISIONS:
        columns = "tokens/s/GPU", "tokens/s/user", "ITL ms", "TTFT p50 / p95 ms", "roofline"
        head += [f"{precision}: {columns[0]}", *columns[1:]]
    for isl, osl in LENGTHS:
        loads = sorted({key[2] for key in found if key[:2] == (isl, osl)})
        rows = []
        for n in loads:
            row = [str(n)]
            for precision in PRECISIONS:
                row += _point(found.get((isl, osl, n, precision)))
            rows.append(row)
        yield f"\nISL {isl}, OSL {osl}:\n"
        yield from _rows(head, rows)


def _point(line: Mapping[str, Any] | None) -> list[str]:
    if line is None:
        return ["-"] * 5
    metrics = line["metrics"]
    itl, ttft = metrics["inter_token_latency"], metrics["time_to_first_token"]
    rate = metrics["output_token_throughput"]["avg"]
    error = "-"
    if line["prediction"]:
        expected = line["prediction"]["metrics"]
        off_itl = expected["inter_token_latency"] / itl["avg"] - 1
        off_rate = expected["output_token_throughput"] / rate - 1
        error = f"ITL {off_itl:+.0%}, tokens/s {off_rate:+.0%}"
    user = metrics["output_token_throughput_per_user"]["p50"]
    times = f"{ttft['p50']:,.0f} / {ttft['p95']:,.0f}"
    return [f"{rate:,.0f}", f"{user:.1f}", f"{itl['avg']:.2f}", times, error]


def _turns(out: Path, _: Path) -> Iterator[str]:
    """Each client's mean over its rounds, and the least and most."""
    rows = []
    for precision in PRECISIONS:
        for name, rounds in (_read(out, f"turns-{precision}") or {}).items():
            client, n = name.split()
            read = _ours if client == "llm_perf" else _theirs
            columns = [list(column) for column in zip(*map(read, rounds), strict=True)]
            spread = [
                f"{mean(each):,.{digits}f} ({min(each):,.{digits}f} to {max(each):,.{digits}f})"
                for each, digits in zip(columns, (0, 0, 0, 2), strict=True)
            ]
            known = {"llm_perf": "llm_perf", "vllm": "vllm bench serve"}[client]
            rows.append([precision, n, known, str(len(rounds)), *spread])
    head = ("precision", "in flight", "command", "rounds", "tokens/s", "TTFT avg ms")
    rows.sort(key=lambda row: (row[0], int(row[1]), row[2]))
    yield from _rows((*head, "TTFT p50 ms", "TPOT avg ms"), rows)


def _ours(load: Mapping[str, Any]) -> tuple[float, ...]:
    ttft = load["time_to_first_token"]
    itl = load["inter_token_latency"]["avg"]
    return load["output_token_throughput"]["avg"], ttft["avg"], ttft["p50"], itl


def _theirs(load: Mapping[str, Any]) -> tuple[float, ...]:
    names = ("output_throughput", "mean_ttft_ms", "median_ttft_ms", "mean_tpot_ms")
    return tuple(load[name] for name in names)


def _memory(out: Path, file: Path) -> Iterator[str]:
    """The plan's sizes beside vLLM's own lines, with vLLM's share of the whole memory."""
    shape, card = read_shape(json.loads(file.read_text())), _read(out, "ceilings")
    rows = []
    for precision, algo in zip(PRECISIONS, (None, "FP8"), strict=True):
        told = _read(out, f"server-{precision}")
        if told is None or shape is None or card is None:
            continue
        weights = weight_bytes(shape, algo, 1, 1)
        per_token = kv_bytes_per_token(shape, 1, 1, None)
        working = activation_bytes(shape, 1, STEP_TOKENS, MOST)
        tokens = (card["memory"] * SHARE - weights - working) / per_token
        rows.append([precision, f"{weights / 2**30:.2f}", f"{told['weights_gib']:.2f}"])
        rows[-1] += [f"{tokens:,.0f}", f"{told['kv_cache_tokens']:,.0f}"]
        rows[-1] += [f"{tokens / told['kv_cache_tokens'] - 1:+.1%}", f"{told['ready_s']:.0f}"]
    head = ("precision", "weights GiB: plan", "vLLM", "KV tokens: plan", "vLLM", "plan is off")
    yield from _rows((*head, "ready after s"), rows)


def _agreement(out: Path, _: Path) -> Iterator[str]:
    rows = []
    for model, name in (("", "Qwen2-7B's shape, random"), ("words-", "number-words, trained")):
        both = [_read(out, f"top1-{model}{precision}") for precision in PRECISIONS]
        if None in both:
            continue
        pairs = [
            (a, b)
            for one, other in zip(*both, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        same = mean(a == b for a, b in pairs)
        scores = [_read(out, f"{model}{precision}") for precision in PRECISIONS]
        told = [f"{each['score']['value']:.1%}" if each else "-" for each in scores]
        rows.append([name, f"{same:.1%}", f"{len(pairs):,}", *told])
    yield from _rows(("model", "top-1 agreement", "positions", "exact: bf16", "fp8"), rows)


def _made(out: Path, _: Path) -> Iterator[str]:
    for name, made in (_read(out, "make") or {}).items():
        report = made.get("verify", {})
        told = f", {made['bytes'] / 2**30:.2f} GiB, top-1 {report['top1']:.1%}" if report else ""
        yield f"- {name}: {made['seconds']:.0f} s{told}"

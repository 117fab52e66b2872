"""A cell's measurements in the words of other tools: plan in, command, data and options out. Pure.

The prompts are those that ``run`` asks, in the tool's own form. What each tool takes is data
(tools.yaml).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_perf import api
from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.releases.release import release_number
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile

_URLS = {"grpc": "localhost:8001", "openai": "http://localhost:8000"}
_MODELS = {"llmapi": "tensorrt_llm"}
_KV_SHARE = 0.9  # TensorRT-LLM's own default


@dataclass(frozen=True, slots=True)
class Served:
    """Where the cell is served: ``url`` (default: on this machine), and its name there."""

    url: str | None = None
    model: str | None = None

    def protocol(self, server: str) -> str:
        """gRPC for Triton, unless a URL of HTTP says otherwise; else OpenAI's."""
        if self.url is not None:
            return "openai" if self.url.startswith(("http://", "https://")) else "grpc"
        return "grpc" if server == "triton" else "openai"


def tool_files(
    tool: str,
    plan: CellPlan,
    file: DeploymentFile,
    planned: Sequence[api.Planned],
    folders: Mapping[str, Path],
    served: Served,
) -> dict[str, str]:
    """What to write, by file name: ``run.sh``, the data, for trtllm-bench its options.

    ``planned`` are the cell's measurements with counted prompts, ``folders`` those of its
    artifacts by kind. Raises UserError: the tool can't do that.
    """
    known = load_data("study/tools.yaml")[tool]
    cell, workload = plan.cell, planned[0].workload
    server = planned[0].target.server or ""
    protocol = "" if "engines" in known else served.protocol(server)
    if protocol and protocol not in known:
        raise UserError(
            f"{tool} {known['version']} doesn't speak to {server}",
            fix="choose genai-perf or perf-analyzer"
            if protocol == "grpc"
            else "choose genai-perf, vllm-bench or aiperf",
        )
    assert workload.tokenizer is not None
    data = "prompts.json" if known["prompts"] == "tensors" else "prompts.jsonl"
    values: dict[str, Any] = {
        "url": served.url or _URLS.get(protocol, ""),
        "model": served.model or _MODELS.get(cell.backend, "ensemble"),
        "tokenizer": folders["fetch"],
        "prompts": data,
        "osl": (file.deployment.measure and file.deployment.measure.max_tokens) or cell.osl,
        "requests": planned[0].extent.requests or len(workload.prompts),
    }
    words, files = [*known["always"], *known.get(protocol, ())], {}
    if "engines" in known:
        more, options = _bench(plan, file, folders, known)
        values |= {**more, "eos": api.stop_ids(workload.tokenizer.path).get("end_id", -1)}
        words += known["engines"].get(cell.backend, known["engines"]["other"])
        files["options.yaml"] = yaml.safe_dump(options, sort_keys=False)
    files[data] = "".join(_prompts(known["prompts"], workload))
    notes = [*known["notes"], *filter(None, [known.get("said_of", {}).get(cell.backend)])]
    if len({each.workload.sha256 for each in planned}) > 1:
        notes.append("'run' deals the prompts out among its loads; here each asks the first part.")
    script = _script(tool, {**known, "notes": notes}, words, values, planned)
    return {"run.sh": script, **files}


def _script(
    tool: str,
    known: Mapping[str, Any],
    words: Sequence[str],
    values: Mapping[str, Any],
    planned: Sequence[api.Planned],
) -> str:
    lines = ["#!/bin/sh", f"# {tool} ({known['version']}) measures {planned[0].target.name}."]
    lines += [f"# {note}" for note in known["notes"]]
    lines += ["set -e", 'cd "$(dirname "$0")"']
    for load in dict.fromkeys(each.load for each in planned):
        kind, value = ("concurrency", load.n) if isinstance(load, api.Concurrency) else (
            "request_rate", getattr(load, "per_s", None)
        )  # fmt: skip
        if kind not in known:
            lines.append(f"# {tool} has no {kind.replace('_', ' ')} ({value:g}): left out")
            continue
        filled = {**values, "load": f"{value:g}", "out": f"{kind}{value:g}"}
        command = [word.format_map(filled) for word in (*words, *known[kind])]
        lines.append(shlex.join(command))
    return "\n".join(lines) + "\n"


def _prompts(form: str, workload: api.Workload) -> Iterator[str]:
    """The data set as the tool reads it, piece by piece."""
    prompts = workload.prompts
    if form == "tensors":
        data = [
            {"text_input": [each.text], "max_tokens": [each.max_tokens], "stream": [True]}
            for each in prompts
        ]
        yield json.dumps({"data": data}, ensure_ascii=False) + "\n"
        return
    tokenizer = workload.tokenizer
    assert tokenizer is not None
    for number, each in enumerate(prompts):
        line: dict[str, Any] = {"text": each.text}
        if form == "prompt":
            line = {"prompt": each.text, "output_tokens": each.max_tokens}
        elif form == "ids":
            ids = tokenizer.encode(each.text, special=True)
            line = {"task_id": number, "input_ids": ids, "output_tokens": each.max_tokens}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _bench(
    plan: CellPlan, file: DeploymentFile, folders: Mapping[str, Path], known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trtllm-bench takes beside the data, and its options file, for the file's release."""
    cell, release = plan.cell, file.deployment.release
    number = release_number(release)
    fitting = [each for each in known["options"] if release_number(each) <= number]
    if not fitting:
        raise UserError(
            f"trtllm-bench of TensorRT-LLM {release} has no --concurrency and --report_json",
            where=file.path,
            fix=f"take {min(known['options'], key=release_number)} or later",
        )
    keys = known["options"][max(fitting, key=release_number)]
    graphs, padding = keys["graphs"]
    triton = plan.repository.made_from["triton"]
    policy = triton.get("batch_scheduler_policy")
    cache = {
        "free_gpu_memory_fraction": triton.get("kv_cache_free_gpu_mem_fraction", _KV_SHARE),
        "enable_block_reuse": bool(triton.get("enable_kv_cache_reuse")),
        "max_tokens": triton.get("max_tokens_in_paged_kv_cache"),
    }
    options: dict[str, Any] = {
        "kv_cache_config": {name: value for name, value in cache.items() if value is not None},
        "enable_chunked_prefill": bool(triton.get("enable_chunked_context")),
    }
    if policy:
        options["scheduler_config"] = {"capacity_scheduler_policy": policy.upper()}
    if cell.backend != "tensorrt":
        if "block" in keys:
            options["kv_cache_config"][keys["block"]] = file.flag(cell, "tokens_per_block")
        options[graphs] = {padding: True, "max_batch_size": cell.max_batch_size}
    return _limits(cell, file, folders, cache["free_gpu_memory_fraction"]), options


def _limits(
    cell: Cell, file: DeploymentFile, folders: Mapping[str, Path], kv_share: Any
) -> dict[str, Any]:
    return {
        "name": file.deployment.models[cell.model].source,
        "checkpoint": folders[
            "checkpoint" if BACKENDS[cell.backend].checkpoint_kind == "hf" else "fetch"
        ],
        "engine": folders["engine"],
        "max_batch_size": cell.max_batch_size,
        "max_num_tokens": file.step_tokens(cell) or file.flag(cell, "max_num_tokens") or 8192,
        "max_seq_len": file.flag(cell, "max_seq_len"),
        "tp": cell.tp,
        "pp": cell.pp,
        "kv_share": kv_share,
        "options": "options.yaml",
    }

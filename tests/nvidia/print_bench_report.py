"""Prints the report that trtllm-bench's own code makes of requests.

    python print_bench_report.py TREE < REQUESTS

REQUESTS is a JSON list of [sent, first token, end, input tokens, output tokens], times in ns. The
tree's statistics.py and reporting.py are executed as they are; what else they import is made up,
for they only name it.
"""

import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class _Made(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"NONE": None})


def load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


BENCH = "tensorrt_llm.bench.dataclasses"
for made in (
    *("tensorrt_llm", "tensorrt_llm._torch", "tensorrt_llm._torch.pyexecutor"),
    *("tensorrt_llm._torch.pyexecutor.model_engine", "tensorrt_llm.bench", BENCH),
    *(f"{BENCH}.configuration", f"{BENCH}.general", "tensorrt_llm.llmapi", "tensorrt_llm.logger"),
    *("tensorrt_llm.models", "tensorrt_llm.models.modeling_utils"),
):
    sys.modules[made] = _Made(made)
folder = Path(sys.argv[1], "tensorrt_llm/bench/dataclasses")
load(f"{BENCH}.statistics", folder / "statistics.py")
reporting = load(f"{BENCH}.reporting", folder / "reporting.py")

keeper = reporting.StatsKeeper()
for number, (sent, first, end, read, written) in enumerate(json.load(sys.stdin)):
    known = {
        "start_timestamp": sent,
        "end_timestamp": end,
        "request_id": number,
        "num_input_tokens": read,
        "response_is_final": True,
        "error": False,
        "tokens": [1] * written,
        "decoding_iteration": written - 1,
        "time_on_first_token": first,
    }
    fields = reporting.PerfItemTuple._fields
    item = reporting.PerfItemTuple(**{name: known[name] for name in fields})
    keeper.register_request_perf_item(item)

with tempfile.TemporaryDirectory() as engine:
    config = {
        "build_config": {"max_input_len": 128, "max_seq_len": 256},
        "pretrained_config": {
            "dtype": "bfloat16",
            "quantization": {"kv_cache_quant_algo": "FP8", "quant_algo": "FP8"},
        },
    }
    Path(engine, "config.json").write_text(json.dumps(config))
    runtime = SimpleNamespace(
        model="meta-llama/Llama-3.1-8B",
        model_path=None,
        engine_dir=Path(engine),
        sw_version="1.0.0",
        backend="tensorrt",
        decoding_config=None,
        world_config=SimpleNamespace(tp_size=2, pp_size=1, ep_size=1, world_size=2),
        settings_config=SimpleNamespace(
            max_batch_size=3840,
            max_num_tokens=7680,
            scheduler_policy="Guaranteed No Evict",
            kv_cache_percent=0.9,
        ),
    )
    data = SimpleNamespace(model_dump=lambda **_: {"num_requests": len(keeper.requests)})
    report = reporting.ReportUtility(keeper, data, runtime, None, {}, streaming=True)
    print(json.dumps(report.get_statistics_dict()))

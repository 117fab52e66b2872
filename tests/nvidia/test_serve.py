"""trtllm-serve of source trees: its own list of options, its class of arguments, its requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.nvidia import release_data
from trtllm_deploy.backends.trtllm_serve.options import options
from trtllm_deploy.releases.release import read_release, release_names
from trtllm_deploy.spec.deployment_file import load_deployment

HERE = Path(__file__).parent
FILE: dict[str, Any] = {
    "models": {"words": {"source": str(HERE.parents[1] / "examples/number-words/model"), "tp": 2}},
    "backend": "trtllm-serve",
    "precisions": ["fp16"],
    "matrix": {"max_batch_size": [8, 512], "isl_osl": ["1024,64"]},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"build": {"max_num_tokens": 16384}},
    {
        "triton": {
            "enable_chunked_context": True,
            "enable_kv_cache_reuse": True,
            "kv_cache_free_gpu_mem_fraction": 0.8,
            "max_tokens_in_paged_kv_cache": 4096,
            "batch_scheduler_policy": "max_utilization",
            "kv_cache_host_memory_bytes": 1024,
            "max_attention_window_size": [512, 1024],
            "max_beam_width": 1,
        }
    },
    {"options": {"trtllm-serve": {"stream_interval": 4, "kv_cache_config": {"dtype": "fp8"}}}},
]


def has_serve(tree: Path | None) -> Path:
    assert tree is not None
    if tree.parent.name not in release_names() or not release_data.serve(tree):
        pytest.skip("its trtllm-serve takes no checkpoint of Hugging Face")
    return tree


def test_what_it_takes_is_in_the_release_data(tree: Path | None) -> None:
    tree = has_serve(tree)
    known = read_release(tree.parent.name)["serve"]
    told = release_data.serve(tree)
    assert told == {key: value for key, value in known.items() if key != "limits_too"}


def test_its_own_class_takes_the_file_of_every_cell(tree: Path | None, tmp_path: Path) -> None:
    tree = has_serve(tree)
    found: list[dict[str, Any]] = []
    for variant in VARIANTS:
        text = yaml.safe_dump({**FILE, "release": tree.parent.name, **variant})
        (tmp_path / "d.yaml").write_text(text)
        file = load_deployment(tmp_path / "d.yaml")
        found += [options(file, cell) for cell in file.cells()]
    bad = [{**found[0], "max_batch_sise": 1}, {**found[0], "kv_cache_config": {"dtipe": 1}}]
    listed = tmp_path / "settings.json"
    listed.write_text(json.dumps([*found, *bad]))
    command = [*judge(tree), str(listed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = json.loads(done.stdout.rpartition("\nsaid: ")[2])
    assert said[: len(found)] == [None] * len(found)
    assert "max_batch_sise" in said[-2] and "dtipe" in said[-1]


def judge(tree: Path) -> list[str]:
    return [
        sys.executable,
        *map(str, (HERE / "without_tensorrt.py", tree, HERE / "print_serve.py")),
    ]

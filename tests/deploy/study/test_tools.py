"""A cell's measurements in the words of other tools; where a tool is here, its parser judges."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from llm_perf.errors import UserError
from tests.deploy.matrix import MODEL
from tests.deploy.study.test_asked import given
from trtllm_deploy.cli.render import TOOLS
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.study.tools import Served, tool_files

OPENAI = Served("http://localhost:8000", "tiny")


def rendered(
    folder: Path, tool: str, served: Served | None = None, **measure: Any
) -> tuple[Mapping[str, str], list[list[str]]]:
    """The files, and the words of each command."""
    what, (plan, *_) = given(folder, **measure)
    copytree(MODEL, what.workspace.artifact(plan.fetch))
    folders = {stage.kind: what.workspace.artifact(stage) for stage in plan.stages}
    planned = what.of(plan, counted=True)
    files = tool_files(tool, plan, what.file, planned, folders, served or Served())
    lines = files["run.sh"].splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert lines[0] == "#!/bin/sh" and commands[0] == ["set", "-e"]
    return files, commands[2:]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_every_tool_is_offered() -> None:
    assert set(load_data("study/tools.yaml")) == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_each_load_is_a_command_with_the_prompts_of_run(tmp_path: Path, tool: str) -> None:
    served = OPENAI if tool in ("vllm-bench", "aiperf") else None
    files, commands = rendered(tmp_path, tool, served, concurrency=[1, 4], requests=20)
    flag = {"perf-analyzer": "--concurrency-range", "vllm-bench": "--max-concurrency"}
    levels = [value(words, flag.get(tool, "--concurrency")) for words in commands]
    assert levels == ["1", "4"]
    assert all("20" in words for words in commands)
    (data,) = [text for name, text in files.items() if name.startswith("prompts")]
    assert len({tuple(words) for words in commands}) == 2
    if tool == "perf-analyzer":
        lines = json.loads(data)["data"]
        assert lines[0] == {"text_input": ["prompt 0"], "max_tokens": [64], "stream": [True]}
    else:
        lines = [json.loads(line) for line in data.splitlines()]
    assert len(lines) == 12


def test_trtllm_bench_gets_the_cells_limits_and_ids(tmp_path: Path) -> None:
    triton = {"enable_kv_cache_reuse": True, "kv_cache_free_gpu_mem_fraction": 0.5}
    others = {"release": "1.2", "triton": {**triton, "batch_scheduler_policy": "max_utilization"}}
    files, (words,) = rendered(tmp_path, "trtllm-bench", concurrency=4, others=others)
    assert {flag: value(words, flag) for flag in ("--max_batch_size", "--tp", "--concurrency")} == {
        "--max_batch_size": "4", "--tp": "1", "--concurrency": "4"
    }  # fmt: skip
    assert value(words, "--kv_cache_free_gpu_mem_fraction") == "0.5"
    options = yaml.safe_load(files["options.yaml"])
    assert options["kv_cache_config"]["enable_block_reuse"] is True
    assert options["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert options["cuda_graph_config"] == {"enable_padding": True, "max_batch_size": 4}
    first = json.loads(files["prompts.jsonl"].splitlines()[0])
    assert first.keys() == {"task_id", "input_ids", "output_tokens"}
    assert first["task_id"] == 0 and first["output_tokens"] == 64
    assert all(isinstance(each, int) for each in first["input_ids"])


def test_engines_are_measured_as_they_were_built(tmp_path: Path) -> None:
    others = {"release": "1.2", "backend": "tensorrt"}
    files, (words,) = rendered(tmp_path, "trtllm-bench", concurrency=4, others=others)
    assert value(words, "--backend") == "tensorrt" and "--engine_dir" in words
    assert "--tp" not in words and "cuda_graph_config" not in yaml.safe_load(files["options.yaml"])


def test_the_release_says_how_the_graphs_are_named(tmp_path: Path) -> None:
    others = {"release": "0.21.0"}
    files, _ = rendered(tmp_path, "trtllm-bench", others=others)
    assert "padding_enabled" in yaml.safe_load(files["options.yaml"])["cuda_graph_config"]


def test_what_a_tool_cannot_do_is_said(tmp_path: Path) -> None:
    (one := tmp_path / "1").mkdir()
    with pytest.raises(UserError, match=r"vllm-bench 0.32.0 doesn't speak to triton"):
        rendered(one, "vllm-bench")
    (two := tmp_path / "2").mkdir()
    with pytest.raises(UserError, match=r"of TensorRT-LLM 0.16.0 has no --concurrency"):
        rendered(two, "trtllm-bench", others={"release": "0.16.0"})
    (three := tmp_path / "3").mkdir()
    files, commands = rendered(three, "trtllm-bench", request_rate=5, others={"release": "1.2"})
    assert commands == [] and "has no request rate (5): left out" in files["run.sh"]

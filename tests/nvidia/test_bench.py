"""What we render for trtllm-bench, on the click commands and classes of a release's own tree."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tests.deploy.study.test_tools import rendered
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.releases.release import release_number

PARSE = Path(__file__).with_name("parse_bench.py")
CLASSES = {
    "kv_cache_config": "KvCacheConfig",
    "scheduler_config": "SchedulerConfig",
    "cuda_graph_config": "CudaGraphConfig",
}


def known(tree: Path) -> bool:
    least = min(map(release_number, load_data("study/tools.yaml")["trtllm-bench"]["options"]))
    return release_number(tree.parent.name) >= least


def fields(tree: Path, *classes: str) -> set[str]:
    """The annotated names of classes in llm_args.py."""
    body = ast.parse((tree / "tensorrt_llm/llmapi/llm_args.py").read_text()).body
    return {
        node.target.id
        for each in body
        if isinstance(each, ast.ClassDef) and each.name in classes
        for node in each.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@pytest.mark.parametrize("way", ["tensorrt", "llmapi"])
def test_its_own_parser_takes_the_command(tree: Path, tmp_path: Path, way: str) -> None:
    pytest.importorskip("click_option_group", reason="trtllm-bench's parser needs it")
    if not known(tree):
        pytest.skip("a release without --concurrency and --report_json")
    others = {"release": "1.2", "backend": way}
    files, commands = rendered(tmp_path, "trtllm-bench", concurrency=[1, 4], others=others)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for words in commands:
        if "--engine_dir" in words:
            Path(words[words.index("--engine_dir") + 1]).mkdir(parents=True, exist_ok=True)
    wrong = [*commands[0], "--nonsense"]
    lines = tmp_path / "lines"
    lines.write_text("".join(json.dumps(words) + "\n" for words in [*commands, wrong]))
    done = subprocess.run(
        [sys.executable, PARSE, tree, lines], cwd=tmp_path, stdout=subprocess.PIPE, check=True
    )
    *said, refused = map(json.loads, done.stdout.splitlines())
    assert [each["concurrency"] for each in said] == [1, 4]
    assert [each["streaming"] for each in said] == [True, True]
    assert refused == {"refused": "No such option '--nonsense'."}


def test_its_options_file_has_keys_that_there_are(tree: Path, tmp_path: Path) -> None:
    if not known(tree):
        pytest.skip("a release without --concurrency and --report_json")
    triton = {"batch_scheduler_policy": "max_utilization", "max_tokens_in_paged_kv_cache": 4096}
    others = {"release": "1.2" if tree.parent.name > "1.2" else "1.0.0", "triton": triton}
    files, _ = rendered(tmp_path, "trtllm-bench", others=others)
    options = yaml.safe_load(files["options.yaml"])
    assert options.keys() <= fields(tree, "BaseLlmArgs", "TorchLlmArgs")
    for key, name in CLASSES.items():
        assert options[key].keys() <= fields(tree, name)


def test_its_own_class_reads_the_data(tree: Path, tmp_path: Path) -> None:
    if not known(tree):
        pytest.skip("a release without --concurrency and --report_json")
    file = tree / "tensorrt_llm/bench/dataclasses/general.py"
    found = [
        node
        for node in ast.parse(file.read_text()).body
        if (isinstance(node, ast.ImportFrom) and (node.module or "") in ("pydantic", "typing"))
        or (isinstance(node, ast.ClassDef) and node.name == "InferenceRequest")
    ]
    future = ast.parse("from __future__ import annotations").body
    names: dict[str, Any] = {"LoRARequest": dict, "__name__": "general"}
    exec(compile(ast.Module([*future, *found], []), str(file), "exec"), names)
    request = names["InferenceRequest"]
    assert issubclass(request, BaseModel)
    request.model_rebuild(_types_namespace=names)
    files, _ = rendered(tmp_path, "trtllm-bench", others={"release": "1.2"})
    read = [request(**json.loads(line)) for line in files["prompts.jsonl"].splitlines()]
    assert len(read) == 12 and all(each.input_ids and each.output_tokens == 64 for each in read)

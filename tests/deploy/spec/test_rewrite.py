"""A deployment file with other values: as a file of one cell, and as a patch that applies."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.spec.rewrite import of_values, patch

QUICKSTART = Path(__file__).parents[3] / "examples/quickstart.yaml"
KEY = ("tune", "settings")
VALUES: dict[str, Any] = {
    "precision": "fp8",
    "max_batch_size": 16,
    "max_num_tokens": 4096,
    "enable_kv_cache_reuse": False,
    "kv_cache_free_gpu_mem_fraction": 0.5,
    "batch_scheduler_policy": "max_utilization",
    "max_beam_width": 1,
    "tokens_per_block": 64,
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(QUICKSTART.parent / "number-words", folder / "number-words")
    return folder


SHAPES = (
    QUICKSTART.read_text(encoding="utf-8"),
    QUICKSTART.read_text(encoding="utf-8").replace("[fp16, fp8, int8_wo]", "\n  - fp16\n  - fp8"),
    QUICKSTART.read_text(encoding="utf-8").partition("\ntriton:")[0],  # no block, no end of line
    QUICKSTART.read_text(encoding="utf-8").partition("\ntriton:")[0] + "\ntriton: {}\n",
    QUICKSTART.read_text(encoding="utf-8").partition("\ntriton:")[0]
    + "\ntriton: {decoupled_mode: true}",
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.sets(st.sampled_from(sorted(VALUES)), min_size=1), shape=st.sampled_from(SHAPES))
def test_the_patch_applies_and_gives_the_file_these_values(
    example: Path, names: set[str], shape: str
) -> None:
    path = example / "file.yaml"
    path.write_text(shape, encoding="utf-8")
    file = load_deployment(path)
    chosen = {name: VALUES[name] for name in names}
    wanted = of_values(file, chosen, KEY)
    said = patch(file, chosen)
    subprocess.run(
        ["patch", "-p1", "--batch"],
        input=said,
        text=True,
        cwd=example,
        check=True,
        capture_output=True,
    )
    now = load_deployment(path)
    cell, asked = now.cells()[0], wanted.cells()[0]
    assert (cell.precision, cell.max_batch_size) == (asked.precision, asked.max_batch_size)
    assert now.given_flags(cell) == wanted.given_flags(asked)
    triton = {**now.deployment.triton.model_dump(), **dict(cell.triton)}
    assert triton == {**wanted.deployment.triton.model_dump(), **dict(asked.triton)}
    kept = [line for line in shape.splitlines() if "#" in line]
    assert all(line.partition("#")[2] in path.read_text(encoding="utf-8") for line in kept)
    assert patch(now, chosen) == ""


def test_the_file_of_one_cell_has_the_first_of_all_else() -> None:
    (cell,) = of_values(load_deployment(QUICKSTART), {"max_num_tokens": 16}, KEY).cells()
    assert (cell.precision, cell.max_batch_size, dict(cell.build)) == (
        "fp16",
        4,
        {"max_num_tokens": 16},
    )


def test_a_wrong_value_is_told_where_it_stands(example: Path) -> None:
    path = example / "wrong.yaml"
    text = QUICKSTART.read_text(encoding="utf-8")
    path.write_text(f"{text}\ntune:\n  settings:\n    max_num_tokens: [many]\n", encoding="utf-8")
    line = len(text.splitlines()) + 4
    with pytest.raises(UserError, match=rf"wrong\.yaml:{line}: matrix\.max_num_tokens"):
        of_values(load_deployment(path), {"max_num_tokens": "many"}, KEY)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("settings: {max_batch_size: 8}", "write a list of values, the baseline's first, or LOW"),
        ("settings: {max_batch_size: 8..4}", "LOW..HIGH to double"),
        ("settings: {max_batch_size: [8, 8]}", "8 is listed twice"),
        ("setings: {}", "unknown key 'setings'; did you mean 'settings'"),
    ],
)
def test_a_wrong_block_is_told(example: Path, block: str, said: str) -> None:
    path = example / "block.yaml"
    path.write_text(f"{QUICKSTART.read_text(encoding='utf-8')}\ntune:\n  {block}\n")
    with pytest.raises(UserError, match=said):
        load_deployment(path)

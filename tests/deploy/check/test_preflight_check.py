"""``trtllm-deploy check`` as a person uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from llm_perf.errors import UserError
from tests.deploy.check.planted import Site
from tests.deploy.matrix import Matrix
from trtllm_deploy.cli.findings import check

CELL = "model0_fp16_tp2_pp1_isl64_osl64_bs1"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, what was printed, and what on stderr."""
    result = CliRunner().invoke(check, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return cast(int, result.return_value), result.stdout, result.stderr


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site", "1.2")


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    """One cell for two of eight GPUs, built with stand-ins."""
    matrix = Matrix(tmp_path, models=1, precisions=("fp16",), batches=1)
    for name, value in matrix.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    matrix.run()
    return matrix


def test_a_folder_is_a_repository(site: Site) -> None:
    code, out, err = run(site.repository)
    assert code == 0
    assert "error" not in out
    assert "TensorRT-LLM isn't installed" in err
    site.write("enable_kv_cache_reuse", "enable")
    code, out, err = run(site.repository)
    assert code == 1
    text = site.config("tensorrt_llm").read_text()
    line = text[: text.index('"enable_kv_cache_reuse"')].count("\n") + 1
    assert f"error {site.config('tensorrt_llm')}:{line}: enable_kv_cache_reuse 'enable'" in out
    assert "  why: the backend logs a line and takes its default\n  fix: write true or false" in out


def test_warnings_alone_are_no_failure(site: Site) -> None:
    site.write("max_tokens_in_paged_kv_cache", "8560")
    code, out, _ = run(site.repository, "--json")
    found = [each for each in json.loads(out) if "8560" in each["what"]]
    assert code == 0
    assert [each["level"] for each in found] == ["warning"]
    assert set(found[0]) == {"level", "what", "where", "why", "fix"}


def test_a_window_that_the_model_has_is_no_finding(site: Site, tmp_path: Path) -> None:
    site.write("max_attention_window_size", "2048")
    assert "max_attention_window_size 2048 is less" in run(site.repository)[1]
    model = tmp_path / "model"
    model.mkdir()
    config = {"model_type": "mistral", "sliding_window": 2048, "num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps(config))
    site.write("tokenizer_dir", str(model), "preprocessing")
    assert "max_attention_window_size" not in run(site.repository)[1]


def test_the_processes_and_the_engine_can_be_said(site: Site) -> None:
    site.write("gpt_model_path", "/engines/in/a/container")
    assert run(site.repository)[0] == 1
    code, out, _ = run(site.repository, "--engine", site.engine)
    assert code == 0
    code, out, _ = run(site.repository, "--engine", site.engine, "--world-size", "2")
    assert code == 1
    assert "is for 1 processes, 2 are to be started" in out


def test_a_cell_is_checked_by_its_name_and_with_its_lengths(built: Matrix) -> None:
    where = ("--workspace", built.workspace)
    code, out, err = run(built.file, CELL, *where)
    assert code == 0, out
    assert "GPU" not in err
    assert run(CELL, *where)[0] == 0
    short = shutil.copytree(built.workspace / "engines" / CELL, built.root / "short")
    config = json.loads((short / "config.json").read_text())
    config["build_config"]["max_seq_len"] = 100
    (short / "config.json").write_text(json.dumps(config))
    code, out, _ = run(built.file, CELL, *where, "--engine", short)
    assert code == 1
    assert "ISL + OSL 128 is more than the engine's max_seq_len 100" in out


def test_what_is_neither_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor a cell"):
        run("absent", "--workspace", tmp_path)

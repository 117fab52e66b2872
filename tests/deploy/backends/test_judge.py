"""The installed TensorRT-LLM is asked; here a small package of its name stands for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from llm_perf.errors import UserError
from trtllm_deploy.backends.judge import Question, Verdict, ask, fix_of, refuse_unless_accepted
from trtllm_deploy.cli.main import command

BUILD = """
import argparse

def parse_arguments():
    parser = argparse.ArgumentParser("trtllm-build")
    parser.add_argument("--max_seq_len", type=int)
    return parser
"""
MODELS = """
from . import modeling_utils
MODEL_MAP = {}
"""
CONFIG = """
class PretrainedConfig:
    @classmethod
    def from_checkpoint(cls, folder):
        raise KeyError("no_such_architecture\\nsecond line")
"""
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts trtllm-build on PATH, and a tensorrt_llm whose __init__ is the text given."""

    def put(init: str) -> None:
        package = tmp_path / "site" / "tensorrt_llm"
        files = {
            "__init__.py": init,
            "commands/__init__.py": "",
            "commands/build.py": BUILD,
            "models/__init__.py": MODELS,
            "models/modeling_utils.py": CONFIG,
        }
        for name, text in files.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(text)
        tool = tmp_path / "bin" / "trtllm-build"
        tool.parent.mkdir()
        tool.write_text(f"#!{sys.executable}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent))
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return put


def test_a_command_that_it_takes_is_accepted(install: Install) -> None:
    install("print('[TensorRT-LLM] TensorRT-LLM version: 9.9')")
    assert ask([Question(("--max_seq_len", "8"))]) == [Verdict()]


def test_its_refusals_are_told_in_its_words_in_one_line(install: Install, tmp_path: Path) -> None:
    install("")
    flag, checkpoint = ask([Question(("--max_len", "8")), Question((), tmp_path)])
    assert flag.refused == "unrecognized arguments: --max_len 8"
    assert checkpoint.refused is not None and checkpoint.refused.startswith("KeyError: ")
    with pytest.raises(UserError) as told:
        refuse_unless_accepted(("--max_len", "8"), tmp_path, "9.9")
    assert "9.9 refuses it: unrecognized arguments: --max_len 8" in str(told.value)
    assert "remove --max_len 8 from 'build:'" in str(told.value)


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import os; print('half a word', flush=True); os._exit(7)", "exit code 7: half a word"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
    ],
)
def test_what_crashes_refuses_nothing_and_is_told(install: Install, init: str, why: str) -> None:
    install(init)
    (verdict,) = ask([Question(("--max_seq_len", "8"))])
    assert verdict.refused is None
    assert verdict.unasked is not None and why in verdict.unasked
    assert "\n" not in verdict.unasked


def test_what_never_answers_is_ended(install: Install, tmp_path: Path) -> None:
    install(f"import time; open({str(tmp_path / 'began')!r}, 'w'); time.sleep(600)")
    (verdict,) = ask([Question(("--max_seq_len", "8"))], limit_s=3)
    assert verdict.unasked == "it didn't answer within 3 s"


def test_no_secret_reaches_it(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen.json"
    install(f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w'))")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ask([Question(("--max_seq_len", "8"))])
    assert "hf_secret" not in json.loads(seen.read_text()).values()


def test_nothing_is_asked_where_none_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refuse_unless_accepted((), tmp_path, "9.9") == "there is no trtllm-build here"
    (verdict,) = ask([Question(("--x",))], python=[sys.executable])
    assert verdict == Verdict(unasked="this Python has no tensorrt_llm")


def test_a_missing_key_has_a_fix() -> None:
    fix = fix_of("AttributeError: 'QWenConfig' object has no attribute 'seq_length'")
    assert fix is not None and "seq_length" in fix


def test_check_asks_about_a_cell_as_its_build_would(install: Install, tmp_path: Path) -> None:
    install("print('[TensorRT-LLM] TensorRT-LLM version: 9.9')")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    spec = {
        "backend": "tensorrt",
        "models": {"m": {"source": "model"}},
        "precisions": ["fp16"],
        "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
    }
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(spec))
    words = ["check", str(tmp_path / "d.yaml"), "m_fp16_tp1_pp1_isl128_osl64_bs4"]
    done = CliRunner().invoke(command, [*words, "--workspace", str(tmp_path / "w"), "--json"])
    (refused,) = (each for each in json.loads(done.stdout) if "refuses it" in each["what"])
    assert refused["what"].startswith("TensorRT-LLM 1.2 refuses it: unrecognized arguments: --")
    assert refused["fix"].startswith("remove --")
    (tmp_path / "bin" / "trtllm-build").unlink()
    blind = CliRunner().invoke(command, [*words, "--workspace", str(tmp_path / "w")])
    assert "whether TensorRT-LLM takes the cell (there is no trtllm-build here)" in blind.stderr
    assert "refuses it" not in blind.output

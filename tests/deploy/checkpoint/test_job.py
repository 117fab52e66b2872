"""Calibration and verification see the token ids that serving sends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from llm_perf.errors import UserError
from tests.deploy.byte_level import byte_level
from trtllm_deploy.checkpoint.job import CheckpointJob

TEXT = "def add(a, b):\n    return a  +  b  # with spaces"


@pytest.fixture
def llama_3(tmp_path: Path) -> Path:
    """A byte-level tokenizer.json whose config names Llama's class, as Llama 3's once did."""
    own = byte_level([TEXT] * 4, 400, ["<s>", "</s>"])
    own.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def job(folder: Path) -> CheckpointJob:
    return CheckpointJob(folder, folder / "out", "fp16")


def test_no_space_is_lost_whatever_class_the_config_names(llama_3: Path) -> None:
    own = Tokenizer.from_file(str(llama_3 / "tokenizer.json"))
    ids = job(llama_3).encoder()(TEXT, 100)
    assert own.decode(ids) == TEXT
    assert ids == own.encode(TEXT).ids


def test_serving_encodes_to_the_same_ids(llama_3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(__file__).parents[3] / "templates" / "shared"
    monkeypatch.syspath_prepend(str(shared))
    monkeypatch.delitem(sys.modules, "tokenizer", raising=False)
    from tokenizer import Tokenizer as Served  # type: ignore[import-not-found]

    assert job(llama_3).encoder()(TEXT, 100) == Served(llama_3).encode(TEXT, True)


def test_a_text_is_cut_to_so_many_tokens(llama_3: Path) -> None:
    encode = job(llama_3).encoder()
    assert encode(TEXT, 3) == encode(TEXT, 100)[:3]


def test_a_tokenizer_that_does_not_load_is_one_line(llama_3: Path) -> None:
    (llama_3 / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer doesn't load"):
        job(llama_3).encoder()

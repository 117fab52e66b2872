"""Tokenizers as models come with them: counts are those of the makers' own code."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from tokenizers import Tokenizer as Encoder
from transformers import AutoTokenizer

from llm_perf.errors import UserError
from llm_perf.workload.synthetic import Lengths
from llm_perf.workload.tokens import load_tokenizer, stop_ids
from llm_perf.workload.workload import synthetic_workload

EXAMPLE = Path(__file__).parents[3] / "examples/number-words/model"
TEXTS = ["one two three", " 4711 in words:", "四千七百一十一", "a\n\nb  c", "é", ""]
MARKED = ["<|extra|>hello<|extra|>", "a<tool>b", "<|extra|>", "plain"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spm")
    lines = [f"{n} apples and {n * 7} pears in {n % 5} baskets, 苹果和梨" for n in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize("begins", [None, True, False])
def test_a_sentencepiece_model_counts_as_its_own_library(
    model_file: Path, tmp_path: Path, begins: bool | None
) -> None:
    shutil.copy(model_file, tmp_path)
    if begins is not None:
        config = json.dumps({"add_bos_token": begins, "add_eos_token": True})
        (tmp_path / "tokenizer_config.json").write_text(config)
    own = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    tokenizer = load_tokenizer(tmp_path)
    around = {None: 1, True: 2, False: 1}[begins]
    for text in TEXTS:
        assert tokenizer.count([text], special=False) == [len(own.encode(text))]
        assert tokenizer.count([text], special=True) == [len(own.encode(text)) + around]


def test_tokens_beside_a_sentencepiece_model_are_one_token_each(
    model_file: Path, tmp_path: Path
) -> None:
    shutil.copy(model_file, tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|extra|>": 420}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<|extra|>", special=False) == [420]
    assert tokenizer.token(420) == "<|extra|>"
    assert (
        tokenizer.count(["<|extra|>a"], special=False)[0]
        == 1 + tokenizer.count(["a"], special=False)[0]
    )


@pytest.fixture(scope="module")
def tekken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [b"th", b"the", b" a", b" an", b" and"]
    tokens = [*(bytes([each]) for each in range(256)), *words, b"beyond the vocabulary"]
    vocab = [
        {"rank": n, "token_bytes": base64.b64encode(each).decode(), "token_str": None}
        for n, each in enumerate(tokens)
    ]
    special = [
        {"rank": n, "token_str": text, "is_control": True}
        for n, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    config = {
        "pattern": r" ?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+",
        "num_vocab_tokens": 262,
        "default_vocab_size": 266,
        "default_num_special_tokens": 5,
        "version": "v3",
    }
    file = tmp_path_factory.mktemp("tekken") / "tekken.json"
    document = {"config": config, "vocab": vocab, "special_tokens": special}
    file.write_text(json.dumps(document))
    return file


def test_tekken_counts_as_tiktoken_does_which_it_is_made_for(tekken_file: Path) -> None:
    tokenizer = load_tokenizer(tekken_file.parent)
    # bytes 0 to 255 come after the 5 special ids, " and" is the last
    assert tokenizer.encode("the and <s>", special=True)[:3] == [1, 5 + 257, 5 + 260]
    assert tokenizer.count(["the and", "<s>", "é"], special=False) == [2, 3, 2]
    document = json.loads(tekken_file.read_text())
    ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in document["vocab"][:261]}
    own = tiktoken.Encoding(
        "own", pat_str=document["config"]["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    assert tokenizer.count(TEXTS, special=False) == [len(own.encode(text)) for text in TEXTS]


def test_prompts_of_exact_lengths_are_made_of_either(model_file: Path, tekken_file: Path) -> None:
    for file in (model_file, tekken_file):
        made = synthetic_workload(file, Lengths(20), Lengths(3), 3)
        assert [prompt.input_tokens for prompt in made.prompts] == [20, 20, 20]


def lacking(folder: Path) -> dict[str, object]:
    """The example's tokenizer, with two tokens that its tokenizer.json doesn't name."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(EXAMPLE / name, folder)
    return json.loads((folder / "tokenizer_config.json").read_text())


def test_tokens_that_only_the_config_names_are_known_as_transformers_knows_them(
    tmp_path: Path,
) -> None:
    config = lacking(tmp_path)
    size = Encoder.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    added = {
        str(size): {"content": "<|extra|>", "special": True, "normalized": False},
        str(size + 1): {"content": "<tool>", "special": False, "lstrip": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "added_tokens_decoder": added})
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ours = load_tokenizer(tmp_path)
    for text in MARKED:
        assert ours.count([text], special=True) == [len(theirs(text).input_ids)], text
    assert ours.count(["<|extra|>"], special=False) == [1]


def test_an_end_that_only_the_config_names_is_the_one_of_several(tmp_path: Path) -> None:
    added = {"11": {"content": "<|end|>"}, "12": {"content": "<|im_end|>"}}
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [11, 12]}))
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_text("{}")
        assert stop_ids(tmp_path / name)["end_id"] == 12


def test_so_are_those_of_added_tokens_json(tmp_path: Path) -> None:
    lacking(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|extra|>": 9999, "bad": "x"}))
    assert load_tokenizer(tmp_path).count(["<|extra|>"], special=False) == [1]


def test_a_hugging_face_id_is_looked_up_in_the_cache(tmp_path: Path) -> None:
    model = tmp_path / "hub/models--we--words"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("1" * 40)
    shutil.copytree(EXAMPLE, model / "snapshots" / ("1" * 40))
    code = (
        "from llm_perf.workload.tokens import load_tokenizer\n"
        "print(load_tokenizer('we/words').count(['one two'], special=False))\n"
        "load_tokenizer('we/nothing')"
    )
    known = load_tokenizer(EXAMPLE).count(["one two"], special=False)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{known}\n", done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError: we/nothing: is no file or folder, and not to be had" in last


@pytest.mark.parametrize(
    ("name", "data"),
    [("tokenizer.model", b"IQ== 0\nIg== 1\n"), ("tekken.json", b"[]"), ("tekken.json", b"{")],
)
def test_what_does_not_load_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: the tokenizer does not load"):
        load_tokenizer(tmp_path)


def test_a_library_that_is_not_there_is_named(tmp_path: Path, model_file: Path) -> None:
    code = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "from llm_perf.workload.tokens import load_tokenizer\n"
        f"load_tokenizer({str(model_file)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "takes the package sentencepiece; pip install 'trtllm-deploy[tokenizers]'" in done.stderr

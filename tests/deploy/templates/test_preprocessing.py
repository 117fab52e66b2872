"""What preprocessing reads from a tokenizer folder, against transformers."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trtllm_deploy.backends.repository import templates

MODEL = Path(__file__).parents[3] / "examples/number-words/model"
CHATML = """{%- if tools %}{{ raise_exception("no tools") }}{% endif %}
{% for message in messages %}
{% if message.role == "system" and not loop.first %}{{ raise_exception("system comes first") }}
{%- endif %}
<|{{ message["role"] }}|>{{ message["content"] | trim }}{% generation %}{{ eos_token }}
{%- endgeneration %}

{% if message.sources is defined %}{{ message.sources | tojson(indent=1) }}{% break %}{% endif %}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}
"""
CHAT = [
    {"role": "user", "content": " 十 in\nwords: "},
    {"role": "assistant", "content": "ten", "sources": {"a": ["é"]}},
]


def module(name: str) -> Any:
    [file] = templates().glob(f"*/**/{name}.py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


spellings, tokenizer, chat = module("spellings"), module("tokenizer"), module("chat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example's tokenizer, to change."""
    for file in MODEL.glob("*.json"):
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def configure(folder: Path, name: str = "tokenizer_config.json", **values: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")
    return folder


def test_the_end_is_the_tokenizer_s_and_each_other_that_the_model_names(folder: Path) -> None:
    assert tokenizer.Tokenizer(folder).end_ids == [0]
    configure(folder, "generation_config.json", eos_token_id=[7, 0, 9])
    assert tokenizer.Tokenizer(folder).end_ids == [0, 7, 9]
    configure(folder, eos_token=None)
    assert tokenizer.Tokenizer(folder).end_ids == [7, 0, 9]
    configure(folder, eos_token={"content": "<|endoftext|>"})
    (folder / "generation_config.json").unlink()
    configure(folder, "config.json", eos_token_id=8)
    assert tokenizer.Tokenizer(folder).end_ids == [0, 8]


def test_where_there_is_no_padding_token_the_end_token_pads(folder: Path) -> None:
    configure(folder, "generation_config.json", pad_token_id=5)
    configure(folder, pad_token=None)
    assert tokenizer.Tokenizer(folder).pad_id == 5
    configure(folder, "generation_config.json", pad_token_id=None)
    assert tokenizer.Tokenizer(folder).pad_id == 0


def test_the_vocabulary_is_as_wide_as_the_model_s(folder: Path) -> None:
    assert tokenizer.Tokenizer(folder).vocabulary == 320
    (folder / "config.json").unlink()
    assert tokenizer.Tokenizer(folder).vocabulary == 317


def test_without_tokenizer_json_transformers_makes_the_same_ids(folder: Path) -> None:
    fast = tokenizer.Tokenizer(folder)
    slow_folder = folder / "slow"
    slow_folder.mkdir()
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [" ".join(pair) for pair in vocabulary["merges"]]
    (slow_folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"] | {"<|end|>": 317}))
    (slow_folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}
    (slow_folder / "tokenizer_config.json").write_text(json.dumps(config))
    slow = tokenizer.Tokenizer(slow_folder)
    assert slow.encode("seven 七", False) == fast.encode("seven 七", False)
    assert (slow.end_ids, slow.pad_id, slow.vocabulary) == ([317], 317, 318)


@pytest.mark.parametrize("source", ["file", "string", "list"])
def test_a_chat_template_makes_the_prompt_that_transformers_makes(
    folder: Path, source: str
) -> None:
    if source == "file":
        (folder / "chat_template.jinja").write_text(CHATML, "utf-8")
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": CHATML}]
    configure(folder, chat_template=named if source == "list" else CHATML, bos_token="<s>")
    theirs = AutoTokenizer.from_pretrained(str(folder))
    prompt = chat.chat_template(folder, tokenizer.Tokenizer(folder).config)
    for text, messages in (
        (json.dumps(CHAT), CHAT),
        ("6 in words:", [{"role": "user", "content": "6 in words:"}]),
        ("[1, 2] in words:", [{"role": "user", "content": "[1, 2] in words:"}]),
        ("[1, 2]", [{"role": "user", "content": "[1, 2]"}]),
    ):
        whole = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt(text) == whole
        assert "<|user|>" in whole


def test_what_a_chat_template_refuses_is_said(folder: Path) -> None:
    config = configure(folder, chat_template=CHATML)
    prompt = chat.chat_template(config, tokenizer.Tokenizer(config).config)
    with pytest.raises(Exception, match="system comes first"):
        prompt(json.dumps([*CHAT[:1], {"role": "system", "content": "be brief"}]))
    with pytest.raises(ValueError, match="message 2 of text_input has no role"):
        prompt(json.dumps([*CHAT[:1], {"content": "be brief"}]))


def test_a_folder_without_a_chat_template_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        chat.chat_template(folder, tokenizer.Tokenizer(folder).config)


def test_a_chat_template_reaches_nothing_outside(folder: Path) -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        prompt = chat.chat_template(folder, {"chat_template": source})
        with pytest.raises(Exception, match=r"unsafe|undefined"):
            prompt("a")


def test_a_missing_jinja2_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="apply_chat_template needs jinja2: pip install jinja2"):
        chat.chat_template(folder, {"chat_template": CHATML})

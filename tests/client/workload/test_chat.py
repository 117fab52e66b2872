from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llm_perf.errors import UserError
from llm_perf.workload.chat import load_chat_template
from llm_perf.workload.workload import load_workload

# the shape of Qwen2's
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASK = [{"role": "user", "content": "<&> 四"}]


def configure(folder: Path, **settings: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "template",
    [
        CHATML + "{{ messages | tojson }}{{ eos_token }}\n{% if true %}\n  x\n{% endif %}",
        "{{ messages | tojson(indent=2) }}",
        "{% if tools is not none %}tools{% endif %}{% if documents is none %}none{% endif %}",
        "{% set x = 'a' %}{% generation %}{% set x = 'b' %}{{ x }}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "{{ bos_token is defined }} {{ sep_token }} {{ cls_token is defined }}",
        "{{ strftime_now('%Y') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    ],
)
def test_the_template_is_rendered_as_transformers_renders_it(tmp_path: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    configure(
        tmp_path,
        chat_template=template,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token={"__type": "AddedToken", "content": "</s>"},
        sep_token="<sep>",
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        ASK, tokenize=False, add_generation_prompt=True
    )
    assert load_chat_template(tmp_path)(ASK) == theirs


def test_a_file_of_its_own_and_the_default_of_several_are_found(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    configure(tmp_path, chat_template=several)
    assert load_chat_template(tmp_path)(ASK) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_chat_template(tmp_path / "tokenizer.json")(ASK) == "file"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (None, "has no chat template"),
        ("{% if %}", "template is wrong"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 + 'a' }}", "template failed"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_user_error(
    tmp_path: Path, template: str | None, what: str
) -> None:
    with pytest.raises(UserError, match=what):
        load_chat_template(configure(tmp_path, chat_template=template))(ASK)


def test_a_templates_bos_is_not_sent_twice(
    tmp_path: Path, write_prompts: Callable[..., Path]
) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, chat_template="{{ bos_token }}{{ messages[0].content }}", bos_token="<s>")
    (prompt,) = load_workload(write_prompts("a a"), tmp_path, chat_template=True).prompts
    assert (prompt.text, prompt.input_tokens) == ("a a", 3)
    assert prompt.messages == ({"role": "user", "content": "a a"},)

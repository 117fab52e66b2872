"""The model's chat template: messages in, the prompt's text out, as its makers wrote it.

Templates are programs of strangers: they run in Jinja's sandbox. Names and filters are those that
transformers gives templates (huggingface.co/docs/transformers, "Chat templates").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_perf.errors import UserError

Messages: TypeAlias = Sequence[Mapping[str, str]]
Render: TypeAlias = Callable[[Messages], str]
_TOKENS: Final = tuple(
    f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
)
_ABSENT: Final[dict[str, None]] = {"tools": None, "documents": None}  # as transformers gives them


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; they render as they are."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body).set_lineno(line)]  # what is set inside stays inside


def load_chat_template(tokenizer_path: str | Path) -> Render:
    """Read ``chat_template.jinja``, else the ``chat_template`` in ``tokenizer_config.json``.

    Raises ``UserError`` when the model's folder has neither or the template is wrong; so does the
    function it gives, for messages that the template refuses.
    """
    path = Path(tokenizer_path)
    folder = path if path.is_dir() else path.parent
    settings = _settings(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else _named(settings)
    if source is None:
        raise UserError(
            "the model has no chat template (chat_template.jinja, or tokenizer_config.json)",
            where=folder,
            fix="leave --chat-template out, or give the folder of a chat model",
        )
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # not made for HTML
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    settings = _settings(folder / "special_tokens_map.json") | settings
    named = {name: _token(settings, name) for name in _TOKENS}
    known = {
        name: token for name, token in named.items() if token
    }  # templates ask if it is defined
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise UserError(f"the chat template is wrong: {error}", where=folder) from error

    def render(messages: Messages) -> str:
        try:
            return template.render(
                messages=messages, add_generation_prompt=True, **_ABSENT, **known
            )
        except (TemplateError, TypeError) as error:
            raise UserError(f"the chat template failed: {error}", where=folder) from error

    return render


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=file) from error
    return settings if isinstance(settings, dict) else {}


def _named(settings: Mapping[str, Any]) -> str | None:
    """The template; where there are several, the one named ``default``."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _token(settings: Mapping[str, Any], name: str) -> str:
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)

"""Messages in, the prompt that a chat model was trained on out, as transformers makes it.

Needs ``jinja2``. Knows nothing of token ids.
"""

import json
import re
from datetime import datetime

_GENERATION = re.compile(r"({%[-+]?\s*)(end)?generation(\s*[-+]?%})")  # marks text for training


def chat_template(folder, config):
    """A function of a text, the user's message or a JSON list of messages, to the prompt.

    ``config`` is the folder's tokenizer_config.json. Raises ValueError when there is no template,
    ImportError when jinja2 is missing.
    """
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {each["name"]: each["template"] for each in source}.get("default")
    if not source:
        raise ValueError(f"apply_chat_template is set, but {folder} has no chat template")
    template = _compiled(source)
    special = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, str | dict)
    }

    given = {**special, "add_generation_prompt": True, "tools": None, "documents": None}
    return lambda text: template.render(given, messages=messages(text))


def messages(text):
    """The messages of a text. Raises ValueError for one without a role."""
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        found = None
    if not found or not all(isinstance(each, dict) for each in found):
        return [{"role": "user", "content": text}]
    for number, message in enumerate(found, start=1):
        if "role" not in message:
            raise ValueError(f"message {number} of text_input has no role")
    return found


def _compiled(source):
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError("apply_chat_template needs jinja2: pip install jinja2") from error

    def refuse(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment.from_string(_GENERATION.sub(_as_if, source))


def _as_if(tag):
    return f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}"

"""Reads request bodies from stdin with trtllm-serve's own classes; prints what each is refused for.

    python read_requests.py TREE < BODIES

BODIES is a JSON list of [class, body]. The tree's openai_protocol.py is executed as it is; what it
imports of TensorRT-LLM and openai is made up, for the classes only keep it or name its types.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

from pydantic import ValidationError


class _Made(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return dict  # openai's are typed dictionaries


for each in ("tensorrt_llm", ".llmapi", ".executor", ".executor.request", ".sampling_params"):
    name = each if not each.startswith(".") else f"tensorrt_llm{each}"
    sys.modules[name] = _Made(name)
for name in ("openai", "openai.types", "openai.types.chat", "openai.types.responses"):
    sys.modules.setdefault(name, _Made(name))

file = Path(sys.argv[1], "tensorrt_llm/serve/openai_protocol.py")
spec = importlib.util.spec_from_file_location("protocol", file)
assert spec is not None and spec.loader is not None
protocol = importlib.util.module_from_spec(spec)
sys.modules["protocol"] = protocol
spec.loader.exec_module(protocol)

told = []
for kind, body in json.load(sys.stdin):
    try:
        read = getattr(protocol, kind).model_validate(body)
        said = {key: getattr(read, key, None) for key in ("max_tokens", "max_completion_tokens")}
        told.append({key: value for key, value in said.items() if value is not None})
    except ValidationError as error:
        told.append("; ".join(f"{each['loc']}: {each['msg']}" for each in error.errors()))
print(json.dumps(told))

"""The YAML files of this package: facts and texts that are no code."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def load_data(name: str) -> Any:
    """The content of one, by its path in the package; shared, so not to be changed."""
    text = (resources.files("trtllm_deploy") / name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

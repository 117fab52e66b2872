"""What comes with this package and is no code: YAML files, templates, examples."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


@cache
def load_data(name: str) -> Any:
    """The content of one, by its path in the package; shared, so not to be changed."""
    text = (resources.files("trtllm_deploy") / name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def packaged(folder: str) -> Path:
    """``templates`` or ``examples``: inside the package when installed, else in the checkout."""
    inside = Path(__file__).parents[1] / folder
    return inside if inside.is_dir() else Path(__file__).parents[3] / folder

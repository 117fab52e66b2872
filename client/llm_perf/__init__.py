"""Measure a server of large language models: load, clock, records, metrics, scores.

What :mod:`llm_perf.api` names is public, the rest isn't; it can be imported from here too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_perf.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: ``--help`` needs none of them."""
    api = import_module("llm_perf.api")
    if name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)

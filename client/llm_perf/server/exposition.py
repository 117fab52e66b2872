"""Prometheus' text format: a page in, series and their types out; which of them are a server's."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

from llm_perf.server.occupancy import Series

KEPT: Final = re.compile(
    r"nv_(gpu|energy|inference|trt_llm)_\w+|DCGM_FI_DEV_\w+|vllm:\w+|trtllm_\w+"
)
_SAMPLE: Final = re.compile(
    r"([A-Za-z_:][\w:]*)(?:\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?\s*",
    re.ASCII,
)
_LABEL: Final = re.compile(r"([A-Za-z_]\w*)\s*=\s*\"((?:[^\"\\]|\\.)*)\"", re.ASCII)
_ESCAPED: Final = re.compile(r"\\(.)")
_ESCAPES: Final = {"n": "\n", '"': '"', "\\": "\\"}


def parse_metrics(text: str) -> tuple[dict[Series, float], dict[str, str]]:
    """Read Prometheus' text format: the value of each series, and the type of each family.

    Lines that don't follow it are skipped: one bad exporter must not hide the others.
    """
    values: dict[Series, float] = {}
    types: dict[str, str] = {}
    for line in text.split("\n"):
        words = line.split()
        if words[:2] == ["#", "TYPE"] and len(words) == 4:
            types[words[2]] = words[3]
        elif match := _SAMPLE.fullmatch(line):
            labels = tuple(
                (key, _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[0]), value))
                for key, value in _LABEL.findall(match[2] or "")
            )
            with suppress(ValueError):
                values[match[1], labels] = float(match[3])
    return values, types


def named(series: Series) -> dict[str, Any]:
    """A series as JSON."""
    return {"name": series[0], "labels": dict(series[1])}

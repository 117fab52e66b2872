"""NVIDIA's own code as the judge: source trees of TensorRT-LLM, never part of this repository.

TRTLLM_SOURCES is a folder with ``<release>/TensorRT-LLM`` for each release that is to judge.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def trees() -> list[tuple[str, Path]]:
    """Each release and its source tree."""
    root = os.environ.get("TRTLLM_SOURCES", "")
    found = Path(root).glob("*/TensorRT-LLM/tensorrt_llm/builder.py") if root else ()
    return sorted((file.parents[2].name, file.parents[1]) for file in found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tree" in metafunc.fixturenames:
        why = pytest.mark.skip(reason="TRTLLM_SOURCES names no TensorRT-LLM source trees")
        none = [pytest.param(None, marks=why, id="no tree")]
        each = [pytest.param(path, id=release) for release, path in trees()]
        metafunc.parametrize("tree", each or none)

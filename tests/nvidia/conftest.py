"""NVIDIA's own code as the judge: source trees of TensorRT-LLM, never part of this repository.

TRTLLM_SOURCES is a folder with ``<release>/TensorRT-LLM`` for each release that is to judge, and
``<release>/tensorrtllm_backend`` (from 1.0 on its files are TensorRT-LLM's triton_backend).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trtllm_deploy.releases.release import release_names


def trees() -> list[tuple[str, Path]]:
    """Each release and its source tree."""
    root = os.environ.get("TRTLLM_SOURCES", "")
    found = Path(root).glob("*/TensorRT-LLM/tensorrt_llm/builder.py") if root else ()
    return sorted((file.parents[2].name, file.parents[1]) for file in found)


def backends() -> list[tuple[str, Path]]:
    """Each release that there is data for, and the tree with its Triton templates."""
    root = os.environ.get("TRTLLM_SOURCES", "")
    found = []
    for release in release_names() if root else ():
        places = ("tensorrtllm_backend", "TensorRT-LLM/triton_backend")
        trees = (Path(root, release, place) for place in places)
        found += [(release, tree) for tree in trees if (tree / "all_models").is_dir()]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tree" in metafunc.fixturenames:
        why = pytest.mark.skip(reason="TRTLLM_SOURCES names no TensorRT-LLM source trees")
        none = [pytest.param(None, marks=why, id="no tree")]
        each = [pytest.param(path, id=release) for release, path in trees()]
        metafunc.parametrize("tree", each or none)
    if "backend" in metafunc.fixturenames:
        why = pytest.mark.skip(reason="TRTLLM_SOURCES names no tensorrtllm_backend trees")
        none = [pytest.param(None, marks=why, id="no tree")]
        each = [pytest.param(found, id=found[0]) for found in backends()]
        metafunc.parametrize("backend", each or none)

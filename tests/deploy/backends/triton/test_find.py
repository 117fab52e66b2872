import importlib.util
import shutil
from pathlib import Path

import pytest

from llm_perf.errors import UserError
from trtllm_deploy.backends.triton import find as triton


def test_a_machine_without_triton_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(triton, "_CONTAINER_TRITON", tmp_path / "none")
    with pytest.raises(UserError, match=r"pip install 'trtllm-deploy\[local\]'"):
        triton.find_triton(tmp_path)


def test_a_container_s_own_triton_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = triton.find_triton(tmp_path / "cache")
    assert (found.binary, found.flags) == (binary, ())
    assert not (tmp_path / "cache").exists()

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.standins import install
from trtllm_deploy.machine.gpu import Gpu, gpus, read_listing


def test_gpus_are_those_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in install(tmp_path, "1.2", gpus=2).items():
        monkeypatch.setenv(name, value)
    h100 = "NVIDIA H100 80GB HBM3"
    assert gpus() == (Gpu(0, h100, 81559 * 2**20, "9.0"), Gpu(1, h100, 81559 * 2**20, "9.0"))
    assert gpus()[0].sm == 90


def test_a_driver_that_does_not_answer_means_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in install(tmp_path, "1.2", gpus=0).items():
        monkeypatch.setenv(name, value)
    assert gpus() == ()


def test_no_nvidia_smi_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()


def test_a_device_that_reports_no_memory_is_left_out() -> None:
    text = '0, NVIDIA L4, 23034, 8.9\n1, "Odd, one", [N/A], 8.6\n2, NVIDIA L4, 23034, [N/A]\n'
    assert [gpu.index for gpu in read_listing(text)] == [0]


@example("0, NVIDIA L4\0, 23034, 8.9")
@given(st.text())
def test_any_listing_is_read(text: str) -> None:
    for gpu in read_listing(text):
        assert gpu.sm >= 0 or "-" in gpu.capability

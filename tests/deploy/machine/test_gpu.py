from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from tests.standins import install
from trtllm_deploy.check.preflight import here
from trtllm_deploy.machine.gpu import Gpu, devices, gpus, pick, read_listing, visible

H100 = "NVIDIA H100 80GB HBM3"
A, B = "GPU-0aaaaaaa-1111-2222-3333-444444444444", "GPU-0bbbbbbb-1111-2222-3333-444444444444"
SMALL, LARGE = "MIG-c7c7c7c7-5a1e-4cbd", "MIG-d8d8d8d8-5a1e-4cbd"
PLAIN = f"0, {H100}, 81559, 9.0, {A}, Disabled\n1, {H100}, 81559, 9.0, {B}, Disabled"
CUT = f"0, {H100}, 81559, 9.0, {A}, Enabled\n1, {H100}, 81559, 9.0, {B}, Disabled"
INSTANCES = f"""\
GPU 0: {H100} (UUID: {A})
  MIG 1g.10gb     Device  0: (UUID: {SMALL})
  MIG 3g.40gb     Device  1: (UUID: {LARGE})
GPU 1: {H100} (UUID: {B})
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs."""
    for name, value in install(tmp_path, "1.2", gpus=2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TRT_STANDIN_GPUS", PLAIN)
    return monkeypatch


@pytest.fixture
def cut(machine: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same with the first one cut into two MIG instances."""
    machine.setenv("TRT_STANDIN_GPUS", CUT)
    machine.setenv("TRT_STANDIN_MIG", INSTANCES)
    return machine


def test_gpus_are_those_that_nvidia_smi_lists(machine: pytest.MonkeyPatch) -> None:
    memory = 81559 * 2**20
    assert gpus() == (Gpu(0, H100, memory, "9.0", A), Gpu(1, H100, memory, "9.0", B))
    assert gpus()[0].sm == 90


# What CUDA made of them on a machine with two H100: cuDeviceGetCount and cuDeviceGetPCIBusId.
@pytest.mark.parametrize(
    ("names", "indices"),
    [
        ("0,1", [0, 1]),
        ("1,0", [1, 0]),
        (" 0", [0]),
        ("0 , 9", [0]),
        ("01", [1]),
        ("0,1x", [0, 1]),
        ("0,-1", [0]),
        ("0,,1", [0]),
        ("0;1", [0]),
        ("1,9,0", [1]),
        ("0,0", []),
        ("1,0,1", []),
        ("", []),
        (",0", []),
        ("-1,0", []),
        ("a", []),
        (B, [1]),
        (f"{B},{A}", [1, 0]),
        (f"{A}, {B}", [0]),
        (f"{A},{B},{A}", []),
        (f"{A},{A[:8]}", []),
        ("GPU-0b", [1]),
        ("GPU-0b,GPU-0a", [1, 0]),
        ("GPU-", []),
        (f"{A},GPU-", [0]),
        (f"0,{B}", [0]),
        (f"{B},0", [1]),
        (f"0,1,{A}", [0, 1]),
        ("GPU-absent,0", []),
        (f"{A},GPU-absent,{B}", [0]),
        (A.lower(), []),
        ("MIG-absent", []),
    ],
)
def test_visible_gpus_are_named_as_cuda_reads_them(
    machine: pytest.MonkeyPatch, names: str, indices: list[int]
) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", names)
    assert [gpu.index for gpu in visible(gpus())] == indices
    assert [gpu.index for gpu in here().gpus] == indices


def test_mig_instances_stand_in_the_place_of_their_gpu(cut: pytest.MonkeyPatch) -> None:
    small, large, whole = gpus()
    assert (small.name, small.memory) == (f"{H100} MIG 1g.10gb", 10 * 2**30)
    assert (large.memory, large.capability) == (40 * 2**30, "9.0")
    assert devices(gpus()) == (SMALL, LARGE, B)
    assert pick(gpus(), devices(gpus())) == gpus()
    assert pick(gpus(), [LARGE]) == (large,)
    assert pick(gpus(), ["0", "1"]) == pick(gpus(), [A[:9], B]) == (small, whole)
    cut.setenv("CUDA_VISIBLE_DEVICES", LARGE)
    assert here().gpus == (large,)


@pytest.mark.parametrize("said", ["[N/A]", "[Insufficient Permissions]", "[Not Supported]"])
def test_a_gpu_that_does_not_tell_its_memory_is_a_gpu(
    machine: pytest.MonkeyPatch, said: str
) -> None:
    machine.setenv("TRT_STANDIN_GPUS", PLAIN.replace("81559", said))
    assert [(gpu.index, gpu.memory, gpu.sm) for gpu in gpus()] == [(0, None, 90), (1, None, 90)]


def test_a_device_without_a_capability_is_left_out() -> None:
    text = '0, NVIDIA L4, 23034, 8.9\n1, "Odd, one", [N/A], 8.6\n2, NVIDIA L4, 23034, [N/A]\n'
    assert [gpu.index for gpu in read_listing(text)] == [0, 1]


def test_a_driver_that_is_not_there_means_no_gpus(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("TRT_STANDIN_GPUS", "")
    assert gpus() == gpus(must_answer=True) == ()


def test_a_gpu_that_is_lost_is_not_taken_for_none(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("TRT_STANDIN_COMPLAINT", "Unable to determine the device handle: GPU is lost.")
    machine.setenv("TRT_STANDIN_CODE", "15")
    assert gpus() == ()
    with pytest.raises(UserError, match=r"nvidia-smi fails: Unable .* GPU is lost"):
        gpus(must_answer=True)


def test_the_gpus_beside_a_lost_one_are_known(machine: pytest.MonkeyPatch) -> None:
    lost = f"0, [GPU is lost], [GPU is lost], [GPU is lost], {A}, [GPU is lost]"
    machine.setenv("TRT_STANDIN_COMPLAINT", f"{lost}\n{PLAIN.splitlines()[1]}")
    machine.setenv("TRT_STANDIN_CODE", "15")
    assert [gpu.index for gpu in gpus(must_answer=True)] == [1]


def test_no_nvidia_smi_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == gpus(must_answer=True) == ()


@example("0, NVIDIA L4\0, 23034, 8.9", "")
@given(st.text(), st.text() | st.just(INSTANCES))
def test_any_listing_is_read(text: str, instances: str) -> None:
    for gpu in read_listing(text, instances):
        assert gpu.sm >= 0 or "-" in gpu.capability
    found = read_listing(CUT, instances)
    assert pick(found, devices(found)) == found

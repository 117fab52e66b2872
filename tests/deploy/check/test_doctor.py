from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.standins import install
from trtllm_deploy.check.doctor import check, examine, lines
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import Gpu, read_report, read_topology
from trtllm_deploy.releases.release import release_names

REPORT = (Path(__file__).parents[2] / "standins/smi.xml").read_text(encoding="utf-8")
RULES: dict[str, Any] = load_data("check/doctor.yaml")
H200 = "NVIDIA H200, 143771, 9.0"
FIT = {
    "shared memory": "24106 MiB",
    "memory lock": "no limit",
    "disk free": "512.0 GiB",
    "tritonserver": "/opt/tritonserver/bin/tritonserver",
    "mpirun": "/usr/bin/mpirun",
    "numpy": "2.3.0",
    "workspace": "/data",
}
GPUS = {"driver": "580.159.04", "GPUs": "2"}


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two H200 and nothing wrong about them."""
    for name, value in install(tmp_path, "1.2", gpus=2, gpu=H200).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def _named(findings: list[Finding]) -> list[str]:
    """The rules that findings come from; no two have the same reason."""
    rules = {**RULES["gpu_rules"], **RULES["machine_rules"]}
    names = {rule["why"]: name for name, rule in rules.items()}
    assert len(names) == len(rules)
    return [names[each.why] for each in findings]


def test_what_nvidia_smi_reports_of_gpus_is_told(standins: Path) -> None:
    machine, gpus = examine(standins)
    assert machine["driver"] == "580.159.04"
    assert machine["CUDA up to"] == "13.0"
    assert machine["GPUs"] == "2"
    assert "without NVLink" not in machine
    assert gpus[1] == {
        "name": "NVIDIA H200",
        "memory": "143771 MiB",
        "capability": "9.0",
        "used": "0 MiB",
        "processes": "nobody who can be seen from here",
        "clock": "345 MHz",
        "clock_max": "1980 MHz",
        "power_limit": "700.00 W",
        "power_default": "700.00 W",
        "persistence": "Enabled",
        "ecc": "Enabled",
        "ecc_errors": "0",
        "mig": "Disabled",
        "fabric": "Completed",
        "links": "NV18 to 0",
    }
    shown = list(lines(machine, gpus))
    assert ("GPU 0", "NVIDIA H200, 143771 MiB, compute capability 9.0") in shown
    assert all(len(value) <= 64 for label, value in shown if label.startswith("GPU "))


def test_gpus_in_order_have_no_findings(standins: Path) -> None:
    machine, gpus = examine(standins)
    assert check({**FIT, **machine, "memory lock": "no limit", "disk free": "99 GiB"}, gpus) == []


@pytest.mark.parametrize(
    ("rule", "path", "text", "said"),
    [
        ("persistence_off", "persistence_mode", "Disabled", "persistence mode is off"),
        ("ecc_off", "ecc_mode/current_ecc", "Disabled", "ECC is off"),
        ("ecc_errors", "ecc_errors/volatile/dram_uncorrectable", "3", "3 uncorrectable"),
        ("mig", "mig_mode/current_mig", "Enabled", "MIG is on"),
        ("in_use", "fb_memory_usage/used", "40960 MiB", "40960 MiB of its memory"),
        ("power_capped", "gpu_power_readings/current_power_limit", "350.00 W", "350.00 W"),
        ("recovery", "gpu_recovery_action", "Reset", "Reset"),
        ("fabric", "fabric/state", "In Progress", "In Progress"),
        (
            "throttled",
            "clocks_event_reasons/clocks_event_reason_hw_thermal_slowdown",
            "Active",
            "hw thermal slowdown",
        ),
    ],
)
def test_what_is_wrong_with_a_gpu_is_found(
    rule: str, path: str, text: str, said: str, standins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_STANDIN_REPORT", json.dumps({path: text}))
    _, gpus = examine(standins)
    found = check(FIT, gpus)
    assert _named(found) == [rule, rule]
    assert [each.where for each in found] == ["GPU 0", "GPU 1"]
    assert said in found[0].what


@pytest.mark.parametrize(
    ("rule", "facts", "said"),
    [
        ("driver_before_cuda_12", {"driver": "470.82.01", "release": "0.11.0"}, "470.82.01"),
        ("driver_before_cuda_13", {"driver": "550.90.07"}, "TensorRT-LLM 1.1"),
        ("no_nvlink", {"without NVLink": "0 and 1 (PHB)"}, "0 and 1 (PHB)"),
        ("no_mpirun", {"GPUs": "2", "mpirun": None}, "there is none"),
        ("memory_lock", {"GPUs": "2", "memory lock": "8.0 MiB"}, "8.0 MiB"),
        ("shared_memory", {"shared memory": "64 MiB"}, "64 MiB"),
        ("disk", {"disk free": "3.5 GiB"}, "3.5 GiB"),
        ("no_triton", {"tritonserver": None}, "no tritonserver"),
        ("numpy_2", {"tritonserver": None, "nvidia-pytriton": "0.7.0"}, "numpy 2.3.0"),
        ("release_unknown", {"tensorrt-llm": "0.19.0"}, "0.19.0"),
    ],
)
def test_what_is_wrong_with_a_machine_is_found(
    rule: str, facts: dict[str, str | None], said: str
) -> None:
    machine = {name: value for name, value in {**FIT, **facts}.items() if value is not None}
    found = check(machine, ())
    assert _named(found) == [rule]
    assert said in found[0].what
    assert "unknown" not in found[0].what + found[0].where


@pytest.mark.parametrize(
    "facts",
    [
        {"driver": "550.90.07", "release": "0.11.0", "tensorrt-llm": "0.11.0"},
        {"driver": "580.65.06"},
        {"GPUs": "1", "memory lock": "8.0 MiB"},
        {"numpy": "1.26.4", "nvidia-pytriton": "0.7.0"},
        {"tensorrt-llm": "1.2.1", "release": "1.2"},
    ],
)
def test_what_is_no_trouble_is_not_told(facts: dict[str, str]) -> None:
    assert check({**FIT, **facts}, ()) == []


def test_both_drivers_and_all_releases_have_a_rule() -> None:
    rules = [each for each in RULES["machine_rules"].values() if "too old for" in each["what"]]
    for name in release_names():
        assert len([each for each in rules if re.match(each["if"]["release"], name)]) == 1, name


def test_gpus_without_nvlink_are_named(standins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_STANDIN_LINK", "SYS")
    machine, gpus = examine(standins)
    assert machine["without NVLink"] == "0 and 1 (SYS)"
    assert gpus[0]["links"] == "SYS to 1"


def test_an_older_driver_writes_other_names() -> None:
    report = REPORT.replace("gpu_power_readings", "power_readings")
    report = report.replace("current_power_limit", "power_limit")
    report = report.replace("clocks_event_reason", "clocks_throttle_reason")
    slow = "<clocks_throttle_reason_sw_power_cap>"
    report = report.replace(f"{slow}Not Active", f"{slow}Active")
    _, (gpu,) = read_report(report, "", (), RULES["gpu_facts"])
    assert gpu["power_limit"] == gpu["power_default"] == "700.00 W"
    assert gpu["held_down"] == "sw power cap"


def test_who_keeps_memory_is_named() -> None:
    used = "<process_info><pid>{}</pid><type>C</type><process_name>{}</process_name></process_info>"
    both = used.format(71, "/usr/bin/python3") + used.format(72, "tritonserver")
    report = REPORT.replace("<used>0 MiB", "<used>2048 MiB")
    report = report.replace("<processes>", f"<processes>{both}")
    _, (gpu,) = read_report(report, "", (), RULES["gpu_facts"])
    (found,) = check(FIT, (gpu,))
    assert "by /usr/bin/python3 (pid 71), tritonserver (pid 72)" in found.what


def test_a_device_that_reports_nothing_is_told_as_unknown() -> None:
    report = "<nvidia_smi_log><gpu><product_name>N/A</product_name></gpu></nvidia_smi_log>"
    machine, gpus = read_report(report, "", [Gpu(0, "x", 0, "8.6")], RULES["gpu_facts"])
    shown = [value for label, value in lines(machine, gpus) if label == "GPU 0"]
    assert shown[0] == "unknown, unknown, compute capability 8.6"
    assert check(FIT, gpus) == []


def test_nics_are_left_out_of_the_topology() -> None:
    text = "\tGPU0\tGPU1\tNIC0\nGPU0\t X \tNV4\tPXB\nGPU1\tNV4\t X \tSYS\nNIC0\tPXB\tSYS\t X \n"
    assert read_topology(text) == {0: {1: "NV4"}, 1: {0: "NV4"}}


@given(st.text(alphabet="GPU01X \t\n²"))
def test_any_topology_is_read(text: str) -> None:
    read_topology(text)


def _doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trtllm_deploy.cli.main", "doctor", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_a_machine_without_gpu_is_told_honestly(tmp_path: Path) -> None:
    answer = _doctor("--workspace", str(tmp_path), PATH=str(tmp_path))
    assert "no GPU here     there is no nvidia-smi" in answer.stdout
    assert "the reference backend" in answer.stdout
    assert "Traceback" not in answer.stderr
    told = json.loads(_doctor("--json", PATH=str(tmp_path)).stdout)
    assert told["gpus"] == []
    errors = [each for each in told["findings"] if each["level"] == "error"]
    assert answer.returncode == bool(errors)


def test_a_driver_that_does_not_answer_is_told_in_its_own_words(
    standins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_STANDIN_GPUS", "")
    machine, gpus = examine(standins)
    assert machine["nvidia-smi fails"].startswith("NVIDIA-SMI has failed because it couldn't")
    assert gpus == ()
    (found,) = [each for each in check(machine, gpus) if each.where == "nvidia-smi"]
    assert found.level == "error"
    assert "couldn't communicate with the NVIDIA driver" in found.what


def test_an_error_is_exit_code_1(standins: Path) -> None:
    fault = json.dumps({"gpu_recovery_action": "Reboot"})
    answer = _doctor("--workspace", str(standins), TRT_STANDIN_REPORT=fault)
    assert answer.returncode == 1
    assert "error GPU 0: the driver asks for a recovery action: Reboot" in answer.stdout


def test_a_token_is_told_without_its_value(tmp_path: Path) -> None:
    token = "hf_0123456789abcdef"
    answer = _doctor("--json", HF_TOKEN=token)
    assert json.loads(answer.stdout)["machine"]["HF token"] == "present"
    assert token not in answer.stdout
    none = _doctor("--json", HF_TOKEN="", HF_HOME=str(tmp_path))
    assert json.loads(none.stdout)["machine"]["HF token"].startswith("none")


def test_the_container_s_packages_are_those_beside_trtllm_build(standins: Path) -> None:
    info = standins / "lib/python3.10/dist-packages/tensorrt_llm-1.2.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n")
    machine, _ = examine(standins)
    assert machine["tensorrt-llm"] == "1.2.1"
    assert machine["release"] == "1.2"

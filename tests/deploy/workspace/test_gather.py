"""What is asked of the hub before weights are moved, counted by a hub on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.hub import Hub, serving

NUMBER_WORDS = Path(__file__).parents[3] / "examples" / "number-words" / "model"
CONFIG = json.loads((NUMBER_WORDS / "config.json").read_text())
TP_3 = {"tiny": {"source": "acme/tiny", "tp": 3}}
AWQ = {"quant_method": "awq", "bits": 4}


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in NUMBER_WORDS.iterdir()}
    with serving(files) as hub:
        yield hub


def command(
    hub: Hub, root: Path, name: str, *, offline: str = "0", **changed: object
) -> subprocess.CompletedProcess[str]:
    spec = {
        "models": {"tiny": {"source": "acme/tiny"}},
        "precisions": ["fp16"],
        "verify": {"prompts": 1},
        "matrix": {"max_batch_size": [2], "isl_osl": ["16,16"]},
        **changed,
    }
    (root / "d.yaml").write_text(yaml.safe_dump(spec))
    words = [sys.executable, "-m", "trtllm_deploy", name, "d.yaml", "--workspace", "w"]
    environment = hub.environment(root, HF_HUB_OFFLINE=offline, OMP_NUM_THREADS="1")
    return subprocess.run(
        words, cwd=root, env=environment, capture_output=True, text=True, timeout=200
    )


def weights_asked(hub: Hub) -> int:
    return sum(count for name, count in hub.asked.items() if name.endswith(".safetensors"))


@pytest.mark.parametrize("name", ["plan", "build"])
@pytest.mark.parametrize(
    ("files", "changed", "says"),
    [
        ({"config.json": {**CONFIG, "quantization_config": AWQ}}, {}, "quantized already (awq"),
        ({"hf_quant_config.json": {"producer": {}}}, {}, "quantized already (modelopt)"),
        ({"quantize_config.json": {"bits": 4}}, {}, "quantized already (gptq, 4 bits)"),
        ({"config.json": {**CONFIG, "architectures": ["XForY"]}}, {}, "'XForY' isn't supported"),
        ({}, {"models": TP_3}, "tp 3 doesn't divide"),
        (
            {"config.json": {**CONFIG, "rope_scaling": {"type": "longrope"}}},
            {"backend": "tensorrt"},
            "rotary scaling 'longrope'",
        ),
    ],
    ids=["awq", "modelopt", "gptq", "architecture", "tp", "rope"],
)
def test_a_model_that_cannot_be_used_is_refused_before_its_weights_move(
    hub: Hub, tmp_path: Path, name: str, files: dict[str, object], changed: dict[str, object], says: str
) -> None:
    hub.files |= {file: json.dumps(content).encode() for file, content in files.items()}
    done = command(hub, tmp_path, name, **changed)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert weights_asked(hub) == 0


def test_a_plan_asks_for_small_files_once_and_never_again(hub: Hub, tmp_path: Path) -> None:
    assert command(hub, tmp_path, "plan").returncode == 0
    first = dict(hub.asked)
    assert first["config.json"] == 2  # HEAD and GET
    assert set(first) <= {"api", "config.json", *SIDE}
    again = command(hub, tmp_path, "plan")
    assert again.returncode == 0
    assert hub.asked["config.json"] == 2


SIDE = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


FETCH = """
from pathlib import Path
from trtllm_deploy.builds.make import StageMaker
from trtllm_deploy.cli.options import planned
asked = planned(Path("d.yaml"), Path("w"))
StageMaker(asked.file, asked.facts, asked.workspace)(asked.plans[0].fetch, print)
"""


def test_a_fetched_model_is_planned_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    command(hub, tmp_path, "plan")
    child = [sys.executable, "-c", FETCH]
    done = subprocess.run(child, cwd=tmp_path, env=hub.environment(tmp_path), timeout=100)
    assert done.returncode == 0
    assert weights_asked(hub) > 0
    shutil.rmtree(tmp_path / "hf")  # what is in the workspace is enough
    gone = Hub(url="http://127.0.0.1:9")
    for offline in ("0", "1"):
        again = command(gone, tmp_path, "plan", offline=offline)
        assert again.returncode == 0, again.stderr
        assert "fetch 0 of 1, checkpoint 1 of 1" in again.stdout
        tp = command(gone, tmp_path, "plan", offline=offline, models=TP_3)
        assert "tp 3 doesn't divide" in tp.stderr

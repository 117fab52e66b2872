"""The container's scripts, as stand-ins that take exactly the flags of their release."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_perf.errors import UserError
from tests.standins import install
from tests.standins.contract import parser
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.checkpoint.calibration import built_in_prompts
from trtllm_deploy.checkpoint.container_scripts import script_command
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob
from trtllm_deploy.checkpoint.quantize import run_checkpoint
from trtllm_deploy.checkpoint.trtllm_format import check_checkpoint
from trtllm_deploy.releases.release import release_names, release_number
from trtllm_deploy.spec.precision import PRECISIONS

EXAMPLE = Path(__file__).parents[3] / "examples" / "number-words"
CALIBRATION = Calibration(EXAMPLE / "calibration.jsonl", samples=6, max_length=48)
RELEASES = ("0.11.0", "1.2")

Standins = Callable[[str], Path]


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standins:
    """Puts a release's stand-ins where they are looked for; returns the file of their calls."""

    def put(release: str, **more: str) -> Path:
        calls = tmp_path / "calls.jsonl"
        environment = install(tmp_path / "container", release) | {"TRT_STANDIN_CALLS": str(calls)}
        for name, value in {**environment, "OMP_NUM_THREADS": "1", **more}.items():
            monkeypatch.setenv(name, value)
        return calls

    return put


def job(tmp_path: Path, precision: str, release: str, **more: Any) -> CheckpointJob:
    made = CheckpointJob(
        EXAMPLE / "model", tmp_path / "out", precision, calibration=CALIBRATION, release=release
    )
    return replace(made, **more)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kv", [None, "fp8", "int8"])
def test_every_command_line_parses_against_its_release(
    tmp_path: Path, precision: str, release: str, kv: str | None
) -> None:
    asked = job(tmp_path, precision, release, tp=2, pp=2, kv_cache_dtype=kv)
    python, script, *flags = script_command(asked, tmp_path / "data", "Qwen2ForCausalLM")
    convert = script.endswith("convert_checkpoint.py")
    assert python == "python3"
    assert convert == (PRECISIONS[precision].quant_algo is None and kv is None)
    parsed = parser("convert_checkpoint-qwen" if convert else "quantize", release).parse_args(flags)
    assert (parsed.tp_size, parsed.pp_size) == (2, 2)
    assert parsed.dtype == PRECISIONS[precision].dtype
    if not convert:
        assert parsed.calib_size == 6
        assert parsed.kv_cache_dtype == kv


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_its_script(tmp_path: Path, name: str) -> None:
    releases = [r for r in release_names() if release_number(r) >= ARCHITECTURES[name].since]
    for release in releases:
        asked = job(tmp_path, "bf16", release, tp=2)
        _, script, *flags = script_command(asked, tmp_path / "data", name)
        said = dict(zip(flags[::2], flags[1::2], strict=True))
        gemma = Path(script).parent.name == "gemma"
        assert said["--world-size" if gemma else "--tp_size"] == "2"
        assert said["--dtype"] == "bfloat16" and ("--ckpt-type" in said) == gemma
    with pytest.raises(UserError, match="has no flag pp_size"):
        script_command(job(tmp_path, "fp16", "1.2", pp=2), tmp_path, "Gemma2ForCausalLM")


def test_a_release_without_a_script_says_so(tmp_path: Path) -> None:
    asked = job(tmp_path, "fp16", "1.2")
    with pytest.raises(UserError, match="there is no data for TensorRT-LLM 9"):
        script_command(replace(asked, release="9"), tmp_path, "Qwen2ForCausalLM")


@pytest.mark.parametrize(
    ("release", "precision", "tp", "pp", "kv"),
    [
        ("0.11.0", "fp16", 2, 2, None),
        ("0.11.0", "int8_wo", 2, 1, None),
        ("1.2", "fp8", 2, 1, None),
        ("0.11.0", "fp8", 1, 1, "fp8"),
    ],
)
def test_what_a_script_makes_is_completed_and_verified(
    standins: Standins, tmp_path: Path, release: str, precision: str, tp: int, pp: int, kv: Any
) -> None:
    calls = standins(release)
    asked = job(tmp_path, precision, release, tp=tp, pp=pp, kv_cache_dtype=kv)
    run_checkpoint(asked, tmp_path / "log")
    config = check_checkpoint(asked.output_dir)
    assert config["mapping"]["world_size"] == tp * pp
    report = json.loads((asked.output_dir / "verify.json").read_text())
    assert report["top1"] >= report["min_top1"]
    assert len(calls.read_text().splitlines()) == 1
    assert "Total time of converting" in (tmp_path / "log").read_text()
    assert not (tmp_path / "log.calibration").exists()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("die", "went wrong half-way"),
        ("oom", "out of memory"),
        ("kill", "was killed"),
        ("lose_rank", r"rank1\.safetensors"),
    ],
)
def test_a_script_that_fails_is_one_line(
    standins: Any, tmp_path: Path, fault: str, says: str
) -> None:
    standins("0.11.0", TRT_STANDIN_FAULT=fault)
    asked = job(tmp_path, "fp16", "0.11.0", tp=2)
    with pytest.raises(UserError, match=says):
        run_checkpoint(asked, tmp_path / "log")
    assert not (asked.output_dir / "verify.json").exists()


def test_a_script_that_writes_a_wrong_rotary_base_is_found_out(
    standins: Standins, tmp_path: Path
) -> None:
    standins("1.2")
    script = next((tmp_path / "container" / "examples").rglob("qwen/convert_checkpoint.py"))
    spoil = (
        "import tests.standins.checkpoint as standin\n"
        "right = standin._config\n"
        "standin._config = lambda *a: {**right(*a), 'rotary_base': 10000.0}\n"
    )
    start = "from tests.standins.checkpoint"
    script.write_text(script.read_text().replace(start, spoil + start))
    with pytest.raises(UserError, match=r"rotary_base is 10000\.0, the model has 1000000\.0"):
        run_checkpoint(job(tmp_path, "fp16", "1.2"), tmp_path / "log")


def test_a_folder_of_prompts_reaches_the_script(standins: Standins, tmp_path: Path) -> None:
    standins("1.2")
    data = tmp_path / "data"
    data.mkdir()
    rows = (json.dumps({"text": text}) for text in built_in_prompts())
    (data / "texts.jsonl").write_text("\n".join(rows))
    asked = job(tmp_path, "fp8", "1.2", calibration=Calibration(data, 4, 32))
    run_checkpoint(asked, tmp_path / "log")
    assert json.loads((asked.output_dir / "verify.json").read_text())["prompts"] == 4

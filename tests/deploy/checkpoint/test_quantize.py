"""Checkpoint jobs: what is refused before the start, and the child process that does the work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from llm_perf.errors import UserError
from tests.processes import command_line, lives
from trtllm_deploy.checkpoint.calibration import read_prompts
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob, Verification, check_job
from trtllm_deploy.checkpoint.quantize import main, run_checkpoint
from trtllm_deploy.checkpoint.trtllm_format import check_checkpoint
from trtllm_deploy.spec.precision import PRECISIONS, find_precision

EXAMPLE = Path(__file__).parents[3] / "examples" / "number-words"
CALIBRATION = Calibration(EXAMPLE / "calibration.jsonl", samples=4, max_length=32)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the child's; its model is small


@pytest.fixture
def job(tmp_path: Path) -> CheckpointJob:
    return CheckpointJob(EXAMPLE / "model", tmp_path / "out", "fp16", calibration=CALIBRATION)


def edited_model(folder: Path, **change: Any) -> Path:
    """A copy of the example model with other values in its config.json; None removes a key."""
    shutil.copytree(EXAMPLE / "model", folder)
    config = json.loads((folder / "config.json").read_text()) | change
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def test_planning_a_checkpoint_needs_no_torch() -> None:
    code = (
        "import sys, trtllm_deploy.checkpoint.quantize, trtllm_deploy.checkpoint.trtllm_format;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_a_job_survives_json(job: CheckpointJob, calibration: Calibration | None) -> None:
    job = replace(job, calibration=calibration, tp=2, trust_remote_code=True)
    assert CheckpointJob.from_json(job.to_json()) == job


def test_an_unknown_precision_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"int3.*one of: fp16, bf16, fp8, int8_wo"):
        find_precision("int3")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_example_model_can_have_every_precision(job: CheckpointJob, precision: str) -> None:
    check_job(replace(job, precision=precision))


def test_a_folder_without_a_config_is_no_model(job: CheckpointJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        check_job(replace(job, model_dir=tmp_path))


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"architectures": ["BloomForCausalLM"]}, {}, "BloomForCausalLM.*one of: Qwen2ForCausalLM"),
        ({"architectures": None}, {}, "'architectures' is missing"),
        ({"num_attention_heads": None}, {}, "num_attention_heads.*missing"),
        ({}, {"tp": 3}, "tp 3 doesn't divide num_attention_heads 4"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, {"tp": 2}, "num_key_value_heads 3"),
        ({"intermediate_size": 514}, {"tp": 4}, "intermediate_size 514"),
        ({}, {"pp": 3}, "pp 3 doesn't divide num_hidden_layers 4"),
        ({}, {"tp": 2, "precision": "int4_awq"}, "int4_awq needs hidden_size 128 divisible"),
        ({}, {"tp": 4, "precision": "int8_sq"}, "int8_sq can't repeat key-value heads"),
    ],
)
def test_what_cannot_be_split_or_quantized_is_refused_before_the_start(
    job: CheckpointJob,
    tmp_path: Path,
    change: dict[str, Any],
    split: dict[str, Any],
    message: str,
) -> None:
    job = replace(job, model_dir=edited_model(tmp_path / "model", **change), **split)
    with pytest.raises(UserError, match=message):
        run_checkpoint(job, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_calibrated_precision_asks_for_prompts(job: CheckpointJob) -> None:
    with pytest.raises(UserError, match="'fp8' needs calibration prompts"):
        check_job(replace(job, precision="fp8", calibration=None))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", "not JSON"),
        ("[1]", "no text"),
        ('{"prompt": "a"}', "no text in 'text_input' or 'text'"),
        ('{"text_input": 3}', "no text"),
    ],
)
def test_a_bad_calibration_line_is_named(
    job: CheckpointJob, tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text_input": "a"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=rf"prompts\.jsonl:3: {message}"):
        check_job(replace(job, precision="fp8", calibration=Calibration(file)))


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_calibration_data_without_prompts_is_refused(
    job: CheckpointJob, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"prompts\.jsonl"):
        check_job(replace(job, precision="fp8", calibration=Calibration(file)))


@given(texts=st.lists(st.tuples(st.sampled_from(["text", "text_input"]), st.text(min_size=1))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_prompts_come_out_as_they_were_written(
    tmp_path: Path, texts: list[tuple[str, str]]
) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [json.dumps({field: text}, ensure_ascii=False) for field, text in texts]
    file.write_text("\n".join(rows), encoding="utf-8")
    assert list(read_prompts(file)) == [text for _, text in texts]


def test_the_child_makes_a_complete_checkpoint_and_says_how_far_it_is(
    job: CheckpointJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_seen")
    said: list[str] = []
    run_checkpoint(replace(job, precision="fp8", tp=2, pp=2), tmp_path / "log", said.append)
    config = check_checkpoint(job.output_dir)
    assert config["rotary_base"] == 1000000.0  # modelopt leaves it out with transformers 5
    assert config["qwen_type"] == "qwen2"
    assert config["mapping"] == {"world_size": 4, "tp_size": 2, "pp_size": 2}
    assert config["quantization"]["quant_algo"] == "FP8"
    assert sorted(file.name for file in job.output_dir.iterdir()) == [
        "config.json",
        *(f"rank{rank}.safetensors" for rank in range(4)),
        "verify.json",
    ]
    assert json.loads((job.output_dir / "verify.json").read_text())["top1"] > 0.95
    with safe_open(job.output_dir / "rank2.safetensors", framework="pt") as second_stage:
        names = set(second_stage.keys())
    assert "transformer.layers.0.attention.qkv.weight" in names  # numbered from 0 on each stage
    assert "lm_head.weight" in names
    percents = [int(text.split("%")[0]) for text in said]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert any("calibrate on 4 prompts" in text for text in said)
    logged = [file.read_text() for file in tmp_path.glob("log*")]
    assert not any("hf_not_to_be_seen" in text for text in logged)


def test_a_folder_that_holds_a_checkpoint_is_not_written_over(
    job: CheckpointJob, tmp_path: Path
) -> None:
    job.output_dir.mkdir()
    (job.output_dir / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a checkpoint"):
        run_checkpoint(job, tmp_path / "log")
    assert (job.output_dir / "config.json").read_text() == "{}"


def test_a_broken_tokenizer_is_one_line(job: CheckpointJob, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer doesn't load"):
        run_checkpoint(replace(job, model_dir=model, precision="fp8"), tmp_path / "log")


def test_what_nobody_foresaw_is_one_line_and_a_traceback_in_the_log(
    job: CheckpointJob, tmp_path: Path
) -> None:
    model = edited_model(tmp_path / "model", hidden_act="no such function")
    log = tmp_path / "log"
    with pytest.raises(UserError, match="quantization to fp16 failed: KeyError") as caught:
        run_checkpoint(replace(job, model_dir=model), log)
    assert str(log) in str(caught.value)
    assert "Traceback" in log.read_text()


def test_a_killed_child_leaves_no_checkpoint(job: CheckpointJob, tmp_path: Path) -> None:
    def kill(text: str) -> None:
        if "export" in text:
            for child in psutil.Process().children():  # not multiprocessing's own: others need it
                if "trtllm_deploy.checkpoint.quantize" in command_line(child):
                    child.kill()

    with pytest.raises(UserError, match="was killed"):
        run_checkpoint(job, tmp_path / "log", kill)
    with pytest.raises(UserError, match=r"config\.json"):
        check_checkpoint(job.output_dir)


def test_the_child_ends_with_a_killed_parent(job: CheckpointJob, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(job.to_json())
    code = (
        "import sys, pathlib; from trtllm_deploy.checkpoint.quantize import *;"
        "job = CheckpointJob.from_json(pathlib.Path(sys.argv[1]).read_text());"
        "run_checkpoint(job, pathlib.Path(sys.argv[2]), lambda text: print(text, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(tmp_path / "log")], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0% load model\n"
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
    psutil.wait_procs([child], timeout=60)
    assert not lives(child.pid)
    assert not (job.output_dir / "config.json").exists()


def test_a_truncated_shard_is_one_line_before_the_start(job: CheckpointJob, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"model\.safetensors: has \d+ bytes of .*truncated"):
        run_checkpoint(replace(job, model_dir=model), tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_checkpoint_that_fails_verification_is_one_line_with_figures_and_cause(
    job: CheckpointJob, tmp_path: Path
) -> None:
    strict = replace(job, precision="int4_awq", verification=Verification(min_top1=1.0))
    with pytest.raises(UserError, match=r"top tokens agree at .* 100\.0% are asked for; likely"):
        run_checkpoint(strict, tmp_path / "log")
    assert not (job.output_dir / "verify.json").exists()


def test_a_job_that_is_not_calibrated_is_verified_on_built_in_texts(
    job: CheckpointJob, tmp_path: Path
) -> None:
    run_checkpoint(replace(job, kind="hf", calibration=None), tmp_path / "log")
    report = json.loads((job.output_dir / "verify.json").read_text())
    assert (report["top1"], report["prompts"]) == (1.0, 16)
    assert (job.output_dir / "tokenizer.json").is_file()


def test_the_llm_api_takes_only_some_precisions(job: CheckpointJob) -> None:
    with pytest.raises(UserError, match="takes no int8_sq checkpoint; use fp16, bf16, fp8"):
        check_job(replace(job, kind="hf", precision="int8_sq"))


def test_a_full_disk_is_one_line(
    job: CheckpointJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "rank0.safetensors")

    monkeypatch.setattr("trtllm_deploy.checkpoint.modelopt_export.export_checkpoint", full)
    file = tmp_path / "job.json"
    file.write_text(job.to_json())
    assert main([str(file)]) == 2
    assert "error: " in (said := capsys.readouterr().out)
    assert "can't be written: [Errno 28] No space left on device" in said

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_perf.errors import UserError
from tests.standins import install
from tests.standins.contract import parser
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import EngineJob
from trtllm_deploy.backends.tensorrt import TensorrtBackend, check_engine, timing_cache_name
from trtllm_deploy.machine.child import CommandFailedError
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment

BACKEND = TensorrtBackend()
SPEC: dict[str, Any] = {
    "backend": "tensorrt",
    "models": {"tiny": {"source": "model", "tp": 2}},
    "precisions": ["fp16"],
    "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def load(folder: Path, **changed: object) -> DeploymentFile:
    file = folder / "d.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **changed}, sort_keys=False))
    return load_deployment(file)


def check(folder: Path, gpus: tuple[Gpu, ...] = (), **changed: object) -> None:
    file = load(folder, **changed)
    BACKENDS[file.deployment.backend[0]].check(file, file.cells(), gpus, {})


def engine_job(folder: Path, release: str = "1.2", **changed: object) -> EngineJob:
    """A job whose checkpoint is for two GPUs, its weights one empty tensor file each."""
    file = load(folder, release=release, **changed)
    checkpoint, target = folder / "checkpoint", folder / "engine"
    checkpoint.mkdir()
    target.mkdir()
    config = {
        **{"architecture": "Qwen2ForCausalLM", "dtype": "float16", "hidden_size": 8},
        **{"num_hidden_layers": 2, "vocab_size": 16},
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    for rank in range(2):
        shard = len(header).to_bytes(8, "little") + header + bytes([rank])
        (checkpoint / f"rank{rank}.safetensors").write_bytes(shard)
    return EngineJob(
        checkpoint, target, release, BACKEND.build_config(file, file.cells()[0]), workers=2
    )


def make(folder: Path, job: EngineJob, **environment: str) -> list[str]:
    """Build with the stand-in of the job's release."""
    lines: list[str] = []
    job = replace(job, environment={**install(folder / "container", job.release), **environment})
    BACKEND.make_engine(job, folder / "log", lines.append)
    return lines


@pytest.mark.parametrize("release", ["0.11.0", "1.2"])
def test_the_command_says_what_the_file_and_the_cell_say_and_no_more(
    folder: Path, release: str
) -> None:
    job = engine_job(folder, release, build={"gemm_plugin": "auto", "max_seq_len": 256})
    command = BACKEND.command(job)
    assert command is not None
    assert command[0] == "trtllm-build"
    given = [word for word in command if word.startswith("--")]
    assert given == [
        *("--checkpoint_dir", "--output_dir", "--max_batch_size", "--max_input_len"),
        *("--max_seq_len", "--gemm_plugin", "--workers"),
    ]
    parsed = parser("trtllm-build", release).parse_args(command[1:])
    assert (parsed.max_batch_size, parsed.max_input_len, parsed.max_seq_len) == (4, 128, 256)
    assert (parsed.workers, parsed.gemm_plugin) == (2, "auto")


def test_a_switch_is_said_when_it_is_on(folder: Path) -> None:
    command = BACKEND.command(engine_job(folder, build={"fast_build": True, "strip_plan": False}))
    assert command is not None
    assert "--fast_build" in command
    assert "--strip_plan" not in command


@pytest.mark.parametrize("release", ["0.11.0", "1.2"])
def test_a_build_makes_a_whole_engine(folder: Path, release: str) -> None:
    job = engine_job(folder, release, build={"max_num_tokens": 512})
    lines = make(folder, job)
    assert {file.name for file in job.target.iterdir()} == {
        "config.json",
        "rank0.engine",
        "rank1.engine",
    }
    built = json.loads((job.target / "config.json").read_text())["build_config"]
    assert (built["max_num_tokens"], built["max_seq_len"]) == (512, 192)
    assert any("Total time" in line for line in lines)
    assert "Total time" in (folder / "log").read_text()


def test_a_step_of_more_tokens_than_a_batch_has_is_asked_for_as_trtllm_build_clips_it(
    folder: Path,
) -> None:
    job = engine_job(folder, build={"max_num_tokens": 8192})
    command = BACKEND.command(job)
    assert command is not None
    assert command[command.index("--max_num_tokens") + 1] == str(4 * 192)
    make(folder, job)


def test_limits_that_trtllm_build_sets_itself_are_no_failure(folder: Path) -> None:
    job = engine_job(folder, build={"max_num_tokens": 512})
    make(folder, job)
    config = json.loads((job.target / "config.json").read_text())
    for tokens, fine in ((4 * 192, True), (500, False)):
        config["build_config"]["max_num_tokens"] = tokens
        (job.target / "config.json").write_text(json.dumps(config))
        if fine:
            check_engine(job)
        else:
            with pytest.raises(UserError, match="max_num_tokens 500, 512 was asked for"):
                check_engine(job)


def test_a_timing_cache_is_made_by_the_first_build_and_read_by_the_next(folder: Path) -> None:
    cache = folder / "timing" / "x.cache"
    job = replace(engine_job(folder), timing_cache=cache)
    first = BACKEND.command(job)
    make(folder, job)
    second = BACKEND.command(job)
    assert first is not None and second is not None
    assert "--input_timing_cache" not in first
    assert "--input_timing_cache" in second
    assert cache.is_file()


def test_a_timing_cache_is_for_one_release_and_one_kind_of_gpu() -> None:
    h100 = Gpu(0, "NVIDIA H100 80GB HBM3", 1, "9.0")
    assert timing_cache_name("1.2", h100) == "1.2-sm90-NVIDIA-H100-80GB-HBM3.cache"
    other = Gpu(3, "NVIDIA H200", 1, "9.0")
    assert len({timing_cache_name(*each) for each in (("1.2", h100), ("1.2", other))}) == 2


def test_lack_of_memory_comes_with_smaller_settings_to_try(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(folder, engine_job(folder), TRT_STANDIN_FAULT="oom")
    text = str(caught.value)
    assert "trtllm-build ran out of memory" in text
    assert (
        "try max_num_tokens 4096, max_batch_size 2, shorter lengths than 128,64, a larger tp"
        in text
    )


def test_a_build_that_dies_half_way_is_no_engine(folder: Path) -> None:
    job = engine_job(folder)
    with pytest.raises(CommandFailedError, match="something went wrong half-way"):
        make(folder, job, TRT_STANDIN_FAULT="die")
    with pytest.raises(UserError, match=r"rank1\.engine of 2 ranks is missing"):
        check_engine(job)


def test_a_build_that_loses_a_rank_without_a_word_is_no_engine(folder: Path) -> None:
    with pytest.raises(UserError, match=r"rank1\.engine of 2 ranks is missing or empty"):
        make(folder, engine_job(folder), TRT_STANDIN_FAULT="lose_rank")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda config: config.update(version="1.1.0"), "was built by TensorRT-LLM 1.1.0"),
        (lambda config: config.update(version="1.20.0"), "was built by TensorRT-LLM 1.20.0"),
        (lambda config: config["build_config"].update(max_batch_size=2), "max_batch_size 2, 4"),
        (lambda config: config.pop("build_config"), "isn't an engine's config.json"),
        (
            lambda config: config["pretrained_config"]["mapping"].update(world_size=1),
            "is for 1 GPUs, its checkpoint for 2",
        ),
    ],
)
def test_an_engine_that_is_another_than_asked_for_is_refused(
    folder: Path, spoil: Any, says: str
) -> None:
    job = engine_job(folder)
    make(folder, job)
    check_engine(job)
    config = json.loads((job.target / "config.json").read_text())
    spoil(config)
    (job.target / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        check_engine(job)


def test_an_empty_rank_is_no_engine(folder: Path) -> None:
    job = engine_job(folder)
    make(folder, job)
    (job.target / "rank0.engine").write_bytes(b"")
    with pytest.raises(UserError, match=r"rank0\.engine of 2 ranks is missing or empty"):
        check_engine(job)


AMPERE, HOPPER = Gpu(0, "NVIDIA A100", 1, "8.0"), Gpu(1, "NVIDIA H100", 1, "9.0")
REUSE = {"enable_kv_cache_reuse": True}
CHUNKED = {"enable_chunked_context": True}
OFF, ON = {"use_paged_context_fmha": "disable"}, {"use_paged_context_fmha": "enable"}
LONG = {"max_batch_size": [4], "isl_osl": ["9000,64"]}
INT8 = {"kv_cache_dtype": {"fp16": "int8"}}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"triton": REUSE, "build": OFF}, "kv_cache_reuse: needs use_paged_context_fmha, which"),
        ({"triton": REUSE, "release": "0.11.0"}, "which is off by default in 0.11.0; write"),
        ({"triton": CHUNKED, "build": OFF}, "enable_chunked_context: needs use_paged_context_fmha"),
        ({"matrix": LONG}, "a prompt of 9000 tokens doesn't fit a step of max_num_tokens 8192"),
        ({"matrix": {**SPEC["matrix"], "max_num_tokens": [512, 64]}}, "write max_num_tokens: 128"),
        (
            {"triton": REUSE, "build": ON, "release": "0.11.0", **INT8},
            "0.11.0 can't reuse an int8 KV cache",
        ),
        ({"build": {"max_batch_size": 2}}, "build.max_batch_size: 2 is less than the 4 of"),
        ({"build": {"max_seq_len": 128}}, "build.max_seq_len: 128 is less than the 192 of"),
    ],
)
def test_what_would_fail_late_is_refused_with_its_line_and_the_fix(
    folder: Path, changed: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        check(folder, **changed)
    text = str(caught.value)
    assert says in text
    assert text.startswith(f"{folder / 'd.yaml'}:")
    key = next(
        word for word in text.split() if "." in word and word.endswith(":") and "/" not in word
    )
    line = int(text.removeprefix(f"{folder / 'd.yaml'}:").split(":")[0])
    written = (folder / "d.yaml").read_text().splitlines()[line - 1]
    assert written.strip().startswith(key.split(".")[-1])


@pytest.mark.parametrize(
    "changed",
    [
        {"triton": REUSE},
        {"triton": REUSE, "build": ON, "release": "0.11.0"},
        {"triton": CHUNKED, "matrix": LONG},
        {"matrix": LONG, "build": {"max_num_tokens": 9000}},
        {"triton": REUSE, **INT8},
        {"release": "0.11.0", **INT8},
        {"build": {"max_batch_size": 64}},
    ],
)
def test_what_works_is_not_refused(folder: Path, changed: dict[str, object]) -> None:
    check(folder, **changed)


def test_fp8_is_refused_on_a_gpu_that_has_none_by_name(folder: Path) -> None:
    check(folder, (HOPPER,), precisions=["fp8"])
    check(folder, (), precisions=["fp8"])
    with pytest.raises(
        UserError, match=r"fp8 needs .* 8\.9 or more, NVIDIA A100 has 8\.0; .*fallback"
    ):
        check(folder, (AMPERE,), precisions=["fp8"])
    with pytest.raises(UserError, match=r"NVIDIA A100 has 8\.0"):
        check(folder, (AMPERE,), kv_cache_dtype={"fp16": "fp8"})


def test_bf16_is_refused_on_a_gpu_that_has_none_by_name(folder: Path) -> None:
    check(folder, (AMPERE,), precisions=["bf16"])
    turing = replace(AMPERE, name="Tesla T4", capability="7.5")
    with pytest.raises(UserError, match=r"bf16 needs .* 8\.0 or more, Tesla T4 has 7\.5"):
        check(folder, (turing,), precisions=["bf16"])
    check(folder, (turing,), precisions=["fp16"])


def test_a_rotary_scaling_of_a_downloaded_model_is_refused_before_its_build(folder: Path) -> None:
    job = engine_job(folder)
    file = job.checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "rotary_scaling": {"type": "longrope"}}))
    with pytest.raises(UserError, match="longrope"):
        BACKEND.make_engine(job, folder / "log", print)
    assert not (folder / "log").exists()


def test_gpus_of_different_kinds_are_not_mixed(folder: Path) -> None:
    with pytest.raises(UserError, match="different kinds: NVIDIA A100, NVIDIA H100"):
        check(folder, (AMPERE, HOPPER))

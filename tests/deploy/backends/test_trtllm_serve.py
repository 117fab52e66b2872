"""trtllm-serve: its file for each release, its command, and a stand-in of it driven end to end."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llm_perf.errors import UserError
from trtllm_deploy.backends.server import Chosen, Launch
from trtllm_deploy.backends.trtllm_serve.backend import TrtllmServeBackend
from trtllm_deploy.backends.trtllm_serve.options import TABLE, mistakes, options
from trtllm_deploy.backends.trtllm_serve.server import CONFIG, judge, trtllm_serve
from trtllm_deploy.cli.main import command as deploy
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.ports import Ports
from trtllm_deploy.releases.release import load_release, release_names
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/number-words"
RELEASES = [name for name in release_names() if "trtllm-serve" in load_release(name).backends]
SPEC: dict[str, Any] = {
    "models": {"words": {"source": str(EXAMPLE / "model")}},
    "backend": "trtllm-serve",
    "precisions": ["fp16"],
    "matrix": {"max_batch_size": [256], "isl_osl": ["64,32"]},
}


def load(folder: Path, **more: Any) -> DeploymentFile:
    file = folder / "d.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **more}))
    return load_deployment(file)


def said(folder: Path, **more: Any) -> dict[str, Any]:
    file = load(folder, **more)
    TrtllmServeBackend().check(file, file.cells(), (), {})
    return options(file, file.cells()[0])


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_takes_every_name_in_its_file(tmp_path: Path, release: str) -> None:
    triton = {
        "enable_chunked_context": True,
        "enable_kv_cache_reuse": False,
        "kv_cache_free_gpu_mem_fraction": 0.5,
        "max_tokens_in_paged_kv_cache": 4096,
        "batch_scheduler_policy": "max_utilization",
        "max_attention_window_size": [64, 128],
    }
    found = said(tmp_path, release=release, triton=triton, build={"max_num_tokens": 16384})
    assert not list(mistakes(load_release(release), found))
    # a graph for each batch: those of its default end at 128
    assert found["cuda_graph_config"] == {"max_batch_size": 256, "enable_padding": True}
    assert found["kv_cache_config"]["max_attention_window"] == [64, 128]
    assert found["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert found["enable_chunked_prefill"] is True and found["enable_iter_perf_stats"] is True
    newer = release == "1.2"
    assert ("return_perf_metrics" in found) == ("tokens_per_block" in found["kv_cache_config"])
    assert ("return_perf_metrics" in found) == newer
    # the command line's BuildConfig, 8192 tokens by default, would refuse more
    assert found.get("build_config", {}).get("max_num_tokens") == (None if newer else 16384)


def test_options_come_last_and_one_by_one(tmp_path: Path) -> None:
    own = {"kv_cache_config": {"dtype": "fp8"}, "stream_interval": 2}
    found = said(
        tmp_path,
        options={"trtllm-serve": own},
        triton={"max_tokens_in_paged_kv_cache": 64},
    )
    assert found["kv_cache_config"] == {"tokens_per_block": 32, "max_tokens": 64, "dtype": "fp8"}
    assert found["stream_interval"] == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"options": {"trtllm-serve": {"cuda_graph_config": {"padding_enabled": True}}}},
            r"d\.yaml:\d+: options\.trtllm-serve.*has no cuda_graph_config\.padding_enabled"
            r".*write enable_padding",
        ),
        ({"options": {"trtllm-serve": {"max_batch_sise": 2}}}, "did you mean 'max_batch_size'"),
        ({"options": {"trtllm-serve": {"backend": "x"}}}, "trtllm-deploy sets it"),
        (
            {"release": "1.0.0", "options": {"trtllm-serve": {"return_perf_metrics": True}}},
            r"TensorRT-LLM 1\.0\.0 has no return_perf_metrics",
        ),
        ({"triton": {"decoding_mode": "lookahead"}}, "has no decoding_mode lookahead"),
        ({"release": "0.16.0"}, r"0\.16\.0 has no trtllm-serve"),
        ({"checkpoint_with": "scripts"}, "trtllm-serve doesn't load"),
        ({"precisions": ["int8_sq"]}, "trtllm-serve can't load int8_sq"),
    ],
)
def test_what_it_would_refuse_late_is_refused_first(
    tmp_path: Path, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        said(tmp_path, **more)


def test_the_table_names_settings_that_there_are(tmp_path: Path) -> None:
    fields = type(load(tmp_path).deployment.triton).model_fields
    assert not {*TABLE["mapped"], *TABLE["refused"]} - set(fields)


def folder_of(tmp_path: Path, ranks: int = 1, **settings: Any) -> Path:
    folder = tmp_path / "served"
    (folder / "words").mkdir(parents=True)
    (folder / "words/config.json").write_text("{}")
    about = {"server": "trtllm-serve", "release": "1.2", "model": "words", "world_size": ranks}
    (folder / "server.json").write_text(json.dumps(about))
    (folder / CONFIG).write_text(yaml.safe_dump({"max_batch_size": 8, **settings}))
    return folder


def server_of(tmp_path: Path, ranks: int, **chosen: Any) -> Any:
    program = tmp_path / "trtllm-serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return trtllm_serve(
        Launch(
            folder=folder_of(tmp_path, ranks),
            ports=Ports(grpc=1, http=8123, metrics=3),
            address="127.0.0.1",
            name="a",
            rank_logs=tmp_path,
            cache=tmp_path,
            exit_seconds=1,
            chosen=Chosen(executable=str(program), gpus=("0", "1"), **chosen),
        )
    )


def test_the_command_line_has_the_place_and_the_file_only(tmp_path: Path) -> None:
    server = server_of(tmp_path, 1, oversubscribe=True)
    program, model, *words = server.command
    assert program.endswith("/trtllm-serve") and model.endswith("served/words")
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags.keys() == {"--host", "--port", "--backend", "--extra_llm_api_options"}
    for release in RELEASES:
        known = load_release(release).serve["flags"].split()
        assert not {each.removeprefix("--") for each in flags} - set(known)
    assert (server.protocol, server.model, server.ready) == ("openai", "words", "/health")
    assert server.metrics_path == "/prometheus/metrics"
    assert server.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert [flag for flag, _ in server.idle] == ["--oversubscribe"]
    assert server.drains


def test_ranks_go_through_mpirun_and_the_launcher_unless_it_shall_spawn_them(
    tmp_path: Path,
) -> None:
    server = server_of(tmp_path, 2, oversubscribe=True)
    words = server.command
    assert not server.drains  # mpirun kills ranks a second after it is told to stop
    assert words[:5] == ("mpirun", "--allow-run-as-root", "-n", "2", "--oversubscribe")
    assert words[5] == "trtllm-llmapi-launch" and words[6].endswith("/trtllm-serve")
    (tmp_path / "more").mkdir()
    assert server_of(tmp_path / "more", 2, no_mpi=True).command[0].endswith("/trtllm-serve")


def test_a_folder_is_judged(tmp_path: Path) -> None:
    gpu = Gpu(0, "GPU", 2**30, "9.0")
    assert not list(judge(folder_of(tmp_path), (gpu,)))
    (tmp_path / "bad").mkdir()
    folder = folder_of(tmp_path / "bad", 2, kv_cache_config={"dtipe": "auto"})
    (folder / "words/config.json").unlink()
    told = [each.what for each in judge(folder, (gpu,))]
    assert "there is no checkpoint" in told[0] and "2 ranks, and 1 GPUs" in told[1]
    assert told[2:] == ["trtllm-serve of TensorRT-LLM 1.2 has no kv_cache_config.dtipe"]


def test_a_stand_in_is_built_for_served_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = "1.2"
    program = tmp_path / "trtllm-serve"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.standins.trtllm_serve "$@"\n')
    program.chmod(0o755)
    for name, value in {"TRT_STANDIN": tmp_path, "TRT_STANDIN_RELEASE": release}.items():
        monkeypatch.setenv(name, str(value))
    # a 16-bit checkpoint for it is the model as it is
    monkeypatch.setattr(
        "trtllm_deploy.builds.make.run_checkpoint",
        lambda job, *_: shutil.copytree(job.model_dir, job.output_dir, dirs_exist_ok=True),
    )
    environment = {"PYTHONPATH": str(ROOT), "TRT_STANDIN": str(tmp_path)}
    load(
        tmp_path,
        release=release,
        executable={"trtllm-serve": str(program)},
        env={**environment, "TRT_STANDIN_RELEASE": release},
        matrix={"max_batch_size": [8], "isl_osl": ["16,8"]},
        build={"max_num_tokens": 9000},
        measure={"concurrency": [2], "requests": 6, "data": str(EXAMPLE / "prompts.jsonl")},
    )
    words = [str(tmp_path / "d.yaml"), "--workspace", str(tmp_path / "ws")]
    shown = CliRunner().invoke(deploy, ["run", *words])
    assert shown.exit_code == 0, shown.output
    [result] = (tmp_path / "ws/results").glob("words*/concurrency2-*.json")
    found = json.loads(result.read_text())
    assert found["server_metrics"]["engine"]["columns"][0] == "scheduled"
    assert max(row[0] for row in found["server_metrics"]["engine"]["rows"]) <= 2
    assert found["server_metrics"]["url"].endswith("/prometheus/metrics")
    asked = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert all(each["model"] == "words" and each["temperature"] == 0 for each in asked)
    cell = "words_fp16_tp1_pp1_isl16_osl8_bs8"
    rendered = CliRunner().invoke(deploy, ["render", "trtllm-serve", words[0], cell, *words[1:]])
    assert rendered.exit_code == 0, rendered.output
    line, _, text = rendered.output.partition("\n# its file:\n")
    assert line.startswith("# trtllm-serve ")
    started = json.loads((tmp_path / "started0.json").read_text())
    assert yaml.safe_load(text) == started["options"]

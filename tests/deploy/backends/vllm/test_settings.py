"""What a cell's settings are for vLLM, and what of them it can't do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.server import Chosen, Launch
from trtllm_deploy.backends.servers import KINDS, kind_of
from trtllm_deploy.check.preflight import here, judge
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.ports import Ports
from trtllm_deploy.plan.notes import notes
from trtllm_deploy.plan.plan import CellPlan, Facts, plan
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment
from trtllm_deploy.spec.schema import BACKEND_NAMES
from trtllm_deploy.spec.settings import TritonSettings

TABLE = load_data("backends/vllm/settings.yaml")
OPTIONS = load_data("backends/vllm/options.yaml")
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 80 * 2**30, "9.0")


def load(folder: Path, **changed: Any) -> DeploymentFile:
    spec = {
        "backend": "vllm",
        "models": {"m": {"source": "acme/tiny", "tp": 2}},
        "precisions": ["fp8"],
        "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
        **changed,
    }
    (folder / "d.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return load_deployment(folder / "d.yaml")


def facts(folder: Path, *gpus: Gpu) -> Facts:
    source = Source({"repo": "acme/tiny", "commit": "c"})
    return Facts({"m": source}, None, {}, "", folder, gpus=gpus, configs={"m": CONFIG})


def planned(folder: Path, *gpus: Gpu, **changed: Any) -> list[CellPlan]:
    return plan(load(folder, **changed), facts(folder, *gpus))


def options(folder: Path, *gpus: Gpu, **changed: Any) -> dict[str, Any]:
    (cell,) = planned(folder, *gpus, **changed)
    found: dict[str, Any] = cell.repository.made_from["serving"]["options"]
    return found


def test_every_setting_stands_in_one_list_and_every_option_is_vllm_s() -> None:
    lists = [TABLE[name] for name in ("mapped", "triton", "left_out", "refused")]
    told = [name for each in lists for name in each]
    assert sorted(told) == sorted(TritonSettings.model_fields)
    known = {*OPTIONS["flags"], *OPTIONS["values"]}
    mapped = [each["option"] for each in TABLE["mapped"].values()]
    assert {*TABLE["limits"].values(), *mapped, *TABLE["ours"]} <= known


def test_names_of_backends_are_those_that_there_are() -> None:
    assert list(BACKEND_NAMES) == list(BACKENDS)
    assert {each.server.name for each in BACKENDS.values()} == {*KINDS}


def test_a_cell_s_settings_are_options(tmp_path: Path) -> None:
    triton = {
        "enable_kv_cache_reuse": False,
        "enable_chunked_context": True,
        "max_tokens_in_paged_kv_cache": 8192,
    }
    build = {"max_num_tokens": 2048, "tokens_per_block": 32}
    more = {"vllm": {"dtype": "float32", "enforce-eager": True, "block-size": 64}}
    assert options(tmp_path, triton=triton, build=build, options=more) == {
        "max-num-seqs": 4,
        "max-model-len": 192,
        "max-num-batched-tokens": 2048,
        "block-size": 64,
        "tensor-parallel-size": 2,
        "pipeline-parallel-size": 1,
        "no-enable-prefix-caching": True,
        "enable-chunked-prefill": True,
        "num-gpu-blocks-override": 256,
        "dtype": "float32",
        "enforce-eager": True,
    }


def test_a_share_of_memory_becomes_as_many_tokens_as_tensorrt_llm_would_have(
    tmp_path: Path,
) -> None:
    share = {"kv_cache_free_gpu_mem_fraction": 0.5}
    half = options(tmp_path, H100, triton=share)["num-gpu-blocks-override"]
    whole = options(tmp_path, H100, triton={"kv_cache_free_gpu_mem_fraction": 1.0})
    assert half == pytest.approx(whole["num-gpu-blocks-override"] / 2, rel=0.01)
    assert "num-gpu-blocks-override" not in options(tmp_path, triton=share)  # no GPU is known
    assert "num-gpu-blocks-override" not in options(tmp_path, H100)  # its own default
    alone, compared = planned(tmp_path, H100, backend=["llmapi", "vllm"])
    assert "max_tokens_in_paged_kv_cache" not in alone.repository.made_from["triton"]
    assert "num-gpu-blocks-override" in compared.repository.made_from["serving"]["options"]
    file = load(tmp_path, triton=share)
    said = "\n".join(notes(file, file.cells(), facts(tmp_path, H100)))
    assert "as many as TensorRT-LLM's would have here" in said
    assert "vLLM has no counterpart of kv_cache_free_gpu_mem_fraction" in said


def test_a_plan_says_what_is_lost_and_what_differs(tmp_path: Path) -> None:
    build, triton = {"gemm_plugin": "auto"}, {"max_queue_size": 8}
    file = load(tmp_path, backend=["tensorrt", "vllm"], build=build, triton=triton)
    said = "\n".join(notes(file, file.cells(), facts(tmp_path)))
    assert "vLLM has no counterpart of the build flags gemm_plugin" in said
    assert "vLLM has no counterpart of max_queue_size" in said
    assert "enable_chunked_context isn't set: it is off in TensorRT-LLM 1.2 and on in vLLM" in said
    assert "write max_tokens_in_paged_kv_cache" in said


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"precisions": ["int4_awq"]}, "vllm loads no W4A16_AWQ that modelopt wrote"),
        ({"precisions": ["int8_wo"]}, "vllm can't load int8_wo"),
        ({"kv_cache_dtype": {"fp8": "int8"}}, "vllm has no KV cache of int8"),
        ({"triton": {"max_beam_width": 4}}, "vllm has no max_beam_width 4"),
        ({"triton": {"apply_chat_template": True}}, "vllm has no apply_chat_template True"),
        (
            {"options": {"vllm": {"port": 1}}},
            r"d\.yaml:\d+: options\.vllm\.port: trtllm-dep",
        ),
        ({"options": {"llmapi": {"a": 1}}}, "llmapi's server takes none"),
        ({"checkpoint_with": "scripts"}, "which vllm doesn't load"),
    ],
)
def test_what_it_would_answer_otherwise_or_not_load_is_refused(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        planned(tmp_path, **changed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a server is started on."""
    from trtllm_deploy.backends.jobs import RepositoryJob

    serving = {"model": "m", "world_size": 2, "options": {"dtype": "auto"}, "left_out": []}
    made = tmp_path / "made"
    made.mkdir()
    (tmp_path / "engine/checkpoint").mkdir(parents=True)
    (tmp_path / "engine/checkpoint/config.json").write_text("{}")
    paths = (made, "1.2", tmp_path / "engine", tmp_path / "tokenizer", 4, TritonSettings())
    BACKENDS["vllm"].make_repository(RepositoryJob(*paths, serving))
    return made


def launched(folder: Path, **chosen: Any) -> Launch:
    return Launch(folder, Ports(), "127.0.0.1", "n", folder, folder, 4, Chosen(**chosen))


def test_a_server_passes_on_its_own_variables_and_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    launch = launched(folder, executable="/bin/true", gpus=("3",), variables={"A": "b"})
    server = kind_of(folder).server(launch)
    assert server.command[0] == "/bin/true"
    assert (server.model, server.protocol, server.listens) == ("m", "openai", ("http",))
    said = dict(server.environment)
    assert said["VLLM_CPU_KVCACHE_SPACE"] == "1" and "VLLM_API_KEY" not in said
    assert (said["CUDA_VISIBLE_DEVICES"], said["A"]) == ("3", "b")
    assert said["VLLM_NO_USAGE_STATS"] == "1"


def test_requests_in_flight_get_the_time_that_is_told(folder: Path) -> None:
    server = kind_of(folder).server(launched(folder, executable="/bin/true"))
    assert server.drains
    assert server.command[-2:] == ("--shutdown-timeout", "4")  # by itself it gives them none


def test_where_there_is_none_it_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError, match=r"no vllm on this machine; pip install .*\[vllm\]"):
        kind_of(folder).server(launched(folder))
    with pytest.raises(UserError, match="nowhere: is no program"):
        kind_of(folder).server(launched(folder, executable="nowhere"))


def test_check_finds_what_is_missing_unknown_and_left_out(folder: Path) -> None:
    assert judge(folder, here()) == []
    (folder / "vllm.yaml").write_text("enforce-eagre: true\nno-enable-prefix-caching: true\n")
    said = json.loads((folder / "server.json").read_text())
    gone = {**said, "checkpoint": "/gone", "left_out": ["max_queue_size"]}
    (folder / "server.json").write_text(json.dumps(gone))
    kind = kind_of(folder)
    assert kind.judge is not None
    found = {each.what: each.level for each in kind.judge(folder, (H100,))}
    assert found == {
        "there is no checkpoint /gone": "error",
        "it has 2 ranks, and 1 GPUs are visible": "error",
        "vLLM has no counterpart of max_queue_size": "warning",
        "vLLM 0.32 has no option enforce-eagre": "warning",
    }


def test_a_server_that_there_is_none_of_is_named(folder: Path) -> None:
    (folder / "server.json").write_text('{"server": "sglang"}')
    with pytest.raises(UserError, match="there is no server 'sglang'"):
        kind_of(folder)


ASK = """
import json
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
names = {True: set(), False: set()}
for action in make_arg_parser(FlexibleArgumentParser())._actions:
    long = {each[2:] for each in action.option_strings if each.startswith("--")}
    names[action.nargs == 0] |= {each for each in long if not each.startswith("no-")}
print(json.dumps([sorted(names[True] - {"help"}), sorted(names[False])]))
"""


@pytest.mark.skipif("VLLM_EXECUTABLE" not in os.environ, reason="VLLM_EXECUTABLE names no vllm")
def test_the_options_are_those_of_vllm_s_own_parser() -> None:
    program = Path(os.environ["VLLM_EXECUTABLE"])
    done = subprocess.run(
        [program.with_name("python"), "-c", ASK], capture_output=True, text=True, check=True
    )
    flags, values = json.loads(done.stdout.splitlines()[-1])
    assert (sorted(OPTIONS["flags"]), sorted(OPTIONS["values"])) == (flags, values)

"""``set`` on a cell that real Triton serves: the setting is in effect and answers still come."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.running import Running, running
from trtllm_deploy.workspace.folder import Workspace

EXAMPLE = Path(__file__).parents[2] / "examples/number-words"
COMMAND = Path(sys.executable).parent / "trtllm-deploy"
CELL = "words_fp16_tp1_pp1_isl128_osl64_bs8"
NOWHERE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}  # not for servers here
ENVIRONMENT = {**os.environ, **NOWHERE, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

Command = Callable[..., str]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run a command on one deployment file and workspace; its standard output."""
    folder = tmp_path_factory.mktemp("set")
    file = folder / "deployment.yaml"
    spec = {
        "models": {"words": {"source": str(EXAMPLE / "model")}},
        "precisions": "fp16",
        "verify": {"prompts": 2},
        "matrix": {"max_batch_size": 8, "isl_osl": "128,64"},
    }
    file.write_text(yaml.safe_dump(spec))

    def run(name: str, *rest: str, takes_file: bool = True) -> str:
        arguments = [name, *([str(file)] if takes_file else []), *rest]
        done = subprocess.run(
            [str(COMMAND), *arguments, "--workspace", str(folder / "workspace")],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout

    run.workspace = Workspace(folder / "workspace")  # type: ignore[attr-defined]
    run("build")
    return run


@pytest.fixture(scope="module")
def served(command: Command) -> Iterator[Running]:
    ports = free_ports()
    numbers = ("grpc", "http", "metrics")
    flags = [f"--{name}-port={getattr(ports, name)}" for name in numbers]
    command("serve", CELL, *flags, "--detach")
    [found] = running(command.workspace)  # type: ignore[attr-defined]
    yield found
    command("stop", CELL, takes_file=False)


def get(served: Running, path: str, body: dict[str, Any] | None = None) -> Any:
    url = f"http://127.0.0.1:{served.ports.http}/v2/{path}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as response:
        return json.loads(response.read())


def answer(served: Running) -> str:
    asked = {"text_input": "17 in words:", "max_tokens": 20, "stream": False}
    return str(get(served, "models/ensemble/generate", asked)["text_output"])


def config(served: Running, model: str) -> Any:
    return get(served, f"models/{model}/config")


def test_a_running_server_starts_anew_with_its_settings(command: Command, served: Running) -> None:
    before = answer(served)
    assert "seventeen" in before
    said = command("set", CELL, "enable_kv_cache_reuse=false", "preprocessing_instance_count=2")
    assert 'parameters.enable_kv_cache_reuse.string_value: "true" → "false"' in said
    assert "instance_group[0].count: 1 → 2" in said
    assert re.search(r"started anew, ready after [\d.]+ s", said)
    parameters = config(served, "tensorrt_llm")["parameters"]
    assert parameters["enable_kv_cache_reuse"] == {"string_value": "false"}
    assert config(served, "preprocessing")["instance_group"][0]["count"] == 2
    assert answer(served) == before
    [now] = running(command.workspace)  # type: ignore[attr-defined]
    assert (now.pid, now.state, now.starts) == (served.pid, "ready", served.starts + 1)


def test_decoupling_goes_to_the_ensemble_too_and_back(command: Command, served: Running) -> None:
    before = answer(served)
    assert config(served, "ensemble")["model_transaction_policy"] == {"decoupled": True}
    command("set", CELL, "decoupled_mode=false", "postprocessing_instance_count=2")
    assert config(served, "ensemble")["model_transaction_policy"] == {"decoupled": False}
    assert config(served, "postprocessing")["instance_group"][0]["count"] == 2
    assert answer(served) == before
    command("set", CELL, "decoupled_mode=", "postprocessing_instance_count=")
    assert config(served, "ensemble")["model_transaction_policy"] == {"decoupled": True}
    assert answer(served) == before


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["tensorrt_llm_model_name=nobody"], "nothing was set: .*'nobody'"),
        (["apply_chat_template=true"], "has no chat template"),
    ],
)
def test_what_does_not_work_is_not_kept(
    command: Command, served: Running, wrong: list[str], why: str
) -> None:
    space: Workspace = command.workspace  # type: ignore[attr-defined]
    before, kept = config(served, "preprocessing"), space.overrides
    rendered = (Path(served.repository) / "preprocessing/config.pbtxt").read_text()
    with pytest.raises(subprocess.CalledProcessError) as failure:
        command("set", CELL, *wrong)
    assert failure.value.returncode == 2
    assert re.search(why, failure.value.stderr)
    assert space.overrides == kept
    assert (Path(served.repository) / "preprocessing/config.pbtxt").read_text() == rendered
    assert config(served, "preprocessing") == before
    assert "seventeen" in answer(served)


def test_an_ensemble_that_changes_brings_its_models_along(
    command: Command, served: Running
) -> None:
    def outputs(model: str) -> set[str]:
        return {each["name"] for each in config(served, model)["output"]}

    assert "output_ids" in outputs("ensemble") & outputs("tensorrt_llm_bls")
    said = command("set", CELL, "extra_tensors=false")
    assert 'output[output_ids].name: "output_ids" → not set' in said
    assert "output_ids" not in outputs("ensemble") | outputs("tensorrt_llm_bls")
    assert "seventeen" in answer(served)
    command("set", CELL, "extra_tensors=")
    assert "output_ids" in outputs("ensemble") & outputs("tensorrt_llm_bls")


def test_nothing_is_started_for_nothing(command: Command, served: Running) -> None:
    assert command("set", CELL, "max_queue_delay_microseconds=0") == "nothing changed\n"

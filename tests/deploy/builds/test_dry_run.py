from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llm_perf.errors import UserError
from tests.deploy.hub import COMMIT, serving
from tests.standins import install
from tests.standins.contract import parser
from trtllm_deploy.builds.dry_run import dry_run_script, main
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.cli.main import command
from trtllm_deploy.plan.plan import Facts, distinct, plan
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment
from trtllm_deploy.workspace.folder import Workspace

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL = EXAMPLES / "number-words" / "model"
COMMANDS = {"quantize.py": "quantize", "convert_checkpoint.py": "convert_checkpoint-qwen"}


def config_of(file: DeploymentFile, name: str) -> dict[str, Any]:
    """config.json of a local model, or of its shape; empty where there is neither."""
    model = file.deployment.models[name]
    places = (file.resolve(model.source) / "config.json", file.resolve(model.shape or "nothing"))
    found = next((each for each in places if each.is_file()), None)
    return json.loads(found.read_text()) if found else {}


def script(file: Path, workspace: Path, **changed: Any) -> tuple[str, int]:
    """The script of a deployment file with some values changed, and how many stages it has."""
    spec = {**yaml.safe_load(file.read_text()), **changed}
    copy = file.parent / f".{workspace.name}-{os.getpid()}.yaml"
    copy.write_text(yaml.safe_dump(spec, sort_keys=False))
    try:
        deployment = load_deployment(copy)
    finally:
        copy.unlink()
    facts = Facts(
        sources={
            name: Source({"files": {}}, deployment.resolve(model.source))
            if deployment.resolve(model.source).is_dir()
            else Source({"repo": model.source, "commit": "0" * 40})
            for name, model in deployment.deployment.models.items()
        },
        calibration_digest="data",
        tools={},
        templates_digest="templates",
        workspace=workspace,
        configs={name: config_of(deployment, name) for name in deployment.deployment.models},
    )
    plans = plan(deployment, facts)
    return dry_run_script(deployment, plans, facts, Workspace(workspace)), len(distinct(plans))


def commands(text: str) -> list[list[str]]:
    """The words of each command; what stands in a here-document is no command."""
    found, inside = [], False
    for line in text.splitlines():
        if inside or line.startswith("#"):
            inside = inside and line != "JSON"
        elif line:
            found.append(shlex.split(line))
            inside = line.endswith("<<'JSON'")
    return found


@pytest.mark.parametrize("release", ["0.11.0", "1.2"])
@pytest.mark.parametrize("checkpoint_with", ["modelopt", "scripts"])
def test_every_command_of_the_example_is_one_that_its_release_takes(
    tmp_path: Path, release: str, checkpoint_with: str
) -> None:
    text, _ = script(
        EXAMPLES / "qwen2.yaml", tmp_path, release=release, checkpoint_with=checkpoint_with
    )
    seen: dict[str, int] = {}
    for words in commands(text):
        name = words[0]
        if name == "python3" and words[1].endswith(".py"):
            name, words = COMMANDS[Path(words[1]).name], words[1:]
        seen[name] = seen.get(name, 0) + 1
        if name == "trtllm-build" or name in COMMANDS.values():
            parsed = parser(name, release).parse_args(words[1:])
            assert parsed.output_dir.startswith(str(tmp_path))
    assert seen["trtllm-build"] == 96
    assert seen["hf"] == 2
    by_script = {"quantize": 8, "convert_checkpoint-qwen": 4}
    found = {name: seen.get(name, 0) for name in by_script}
    assert found == (by_script if checkpoint_with == "scripts" else dict.fromkeys(by_script, 0))


def test_the_script_makes_what_the_build_makes(tmp_path: Path) -> None:
    spec = {
        "backend": "tensorrt",
        "models": {"words": {"source": str(MODEL), "tp": 2}},
        "precisions": ["fp16"],
        "checkpoint_with": "scripts",
        "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
        "verify": {"prompts": 2},
    }
    file = tmp_path / "d.yaml"
    file.write_text(yaml.safe_dump(spec))
    environment = {**os.environ, **install(tmp_path / "container", "1.2")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    dry_run = ["build", str(file), "--dry-run", "--workspace", str(tmp_path / "w")]
    text = subprocess.run(
        [sys.executable, "-m", "trtllm_deploy.cli.main", *dry_run],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not (tmp_path / "w" / "store" / "engine").exists()
    done = subprocess.run(
        ["sh"], input=text, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "w" / "by-hand"
    name = "words_fp16_tp2_pp1_isl128_osl64_bs4"
    built = json.loads((out / "engines" / name / "config.json").read_text())
    assert built["build_config"]["max_batch_size"] == 4
    assert (out / "engines" / name / "rank1.engine").is_file()
    config = (out / "ensemble_models" / name / "tensorrt_llm" / "config.pbtxt").read_text()
    assert str(out / "engines" / name) in config


def test_what_no_command_of_tensorrt_llm_does_is_a_step_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = {
        "models": {"words": {"source": str(MODEL)}},
        "precisions": ["int8_sq"],
        "calibration": {"data": str(data), "samples": 1},
        "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
    }
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(spec))
    text, stages = script(tmp_path / "d.yaml", tmp_path / "w")
    kept = tmp_path / f".w-{os.getpid()}.yaml"  # the file that the script names
    kept.write_text((tmp_path / "d.yaml").read_text())
    steps = {
        words[3]: words[4:]
        for words in commands(text)
        if words[2:3] == ["trtllm_deploy.builds.dry_run"]
    }
    assert stages == 4
    assert list(steps) == ["prompts", "engine", "repository"]

    assert main(["prompts", *steps["prompts"]]) == 0
    prompts = Path(steps["prompts"][-1]).read_text()
    assert [json.loads(line) for line in prompts.splitlines()] == [{"text": "one"}]

    checkpoint, engine = (Path(path) for path in steps["engine"][-2:])
    for folder in (checkpoint, engine):
        folder.mkdir(parents=True)
    (checkpoint / "config.json").write_text('{"architecture": "Qwen2ForCausalLM"}')
    assert main(["engine", *steps["engine"]]) == 0
    built = json.loads((engine / "config.json").read_text())
    assert (built["build_config"]["max_seq_len"], built["version"]) == (192, "1.2")

    assert main(["repository", *steps["repository"]]) == 0
    assert (Path(steps["repository"][-1]) / "ensemble" / "config.pbtxt").is_file()


def test_a_step_that_fails_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.yaml")
    assert main(["engine", "reference", missing, "{}", "checkpoint", "engine"]) == 2
    assert (
        capsys.readouterr().err
        == f"trtllm_deploy.builds.dry_run: {missing}: can't be read: No such file or directory\n"
    )


def test_the_hubs_own_command_brings_what_is_read_and_no_weights_twice(tmp_path: Path) -> None:
    spec = {
        "models": {"m": {"source": "acme/tiny"}},
        "precisions": ["fp16"],
        "matrix": {"max_batch_size": [4], "isl_osl": ["16,16"]},
    }
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(spec))
    text, _ = script(tmp_path / "d.yaml", tmp_path / "w")
    (words,) = (each for each in commands(text) if each[:2] == ["hf", "download"])
    words[words.index("--revision") + 1] = COMMIT
    twice = ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin")
    needed = {path.name: path.read_bytes() for path in MODEL.iterdir()}
    with serving({**needed, **dict.fromkeys(twice, b"not needed")}) as hub:
        hf = str(Path(sys.executable).with_name("hf"))
        environment = hub.environment(tmp_path)
        subprocess.run([hf, *words[1:]], env=environment, check=True, capture_output=True)
    assert not hub.asked.keys() & {*twice}
    folder = Path(words[words.index("--local-dir") + 1])
    assert needed.keys() <= {path.name for path in folder.iterdir()}


def test_a_model_that_is_not_known_cannot_be_scripted(tmp_path: Path) -> None:
    spec = {
        "backend": "tensorrt",
        "models": {"m": {"source": "model"}},
        "precisions": ["fp16"],
        "checkpoint_with": "scripts",
        "matrix": {"max_batch_size": [4], "isl_osl": ["128,64"]},
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(UserError, match=r"models\.m: its config\.json isn't known"):
        script(tmp_path / "d.yaml", tmp_path / "w")


@pytest.mark.parametrize(
    "name", ["a\ntouch owned #", "$(touch owned)", "`touch owned`", "a'b", "-e"]
)
def test_no_file_name_becomes_a_command_of_the_script(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / "number-words", folder / "number-words")
    shutil.copyfile(EXAMPLES / "quickstart.yaml", folder / "quickstart.yaml")
    words = ["build", str(folder / "quickstart.yaml"), "--dry-run", "--workspace", str(tmp_path)]
    script = CliRunner().invoke(command, words).output
    assert "trtllm_deploy.checkpoint.quantize" in script
    tools = "python3() { :; }; hf() { :; }; mkdir() { :; }; ln() { :; }; cat() { :; }\n"
    safe = re.sub(r"^cat > ", "cat ", script, flags=re.MULTILINE)
    done = subprocess.run(["sh", "-c", tools + safe], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("owned"))

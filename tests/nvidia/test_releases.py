"""Release data and rendered repositories against NVIDIA's own parsers, templates and filler."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tests.deploy.configs import ordered
from tests.nvidia import release_data
from trtllm_deploy.backends.repository import render_config, with_additions
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.checkpoint.container_scripts import script_command
from trtllm_deploy.checkpoint.job import CheckpointJob
from trtllm_deploy.cli.main import command as deploy
from trtllm_deploy.releases.release import load_release, read_release, release_names, release_number

VALUES = {
    "decoupled_mode": "true",
    "triton_backend": "tensorrtllm",
    "logits_datatype": "TYPE_BF16",
    "encoder_input_features_data_type": "TYPE_FP32",
    "prompt_embedding_table_data_type": "TYPE_BF16",
}


def value(setting: str) -> str:
    numbers = ("_count", "_batch_size", "_microseconds", "max_queue_size")
    return VALUES.get(setting, "7" if setting.endswith(numbers) else f"a {setting}")


@pytest.mark.parametrize("name", release_data.MODELS)
def test_a_rendered_config_is_nvidias_filled_template(
    backend: tuple[str, Path], name: str, tmp_path: Path
) -> None:
    release, tree = backend
    model = with_additions(load_release(release), extra_tensors=False)[name]
    ours = text_format.Parse(
        render_config(model, {each: value(each) for each in settings(release, name)}), ModelConfig()
    )
    template = tree / "all_models/inflight_batcher_llm" / name / "config.pbtxt"
    given = ",".join(f"{each}:{value(each)}" for each in sorted(settings(release, name)))
    command = [sys.executable, tree / "tools/fill_template.py", template, given]
    filled = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    theirs = text_format.Parse(filled, ModelConfig())
    once = {each.name: each for each in theirs.output}  # 1.x lists one output of the ensemble twice
    del theirs.output[:]
    theirs.output.extend(once.values())
    assert ordered(ours) == ordered(theirs)


def settings(release: str, name: str) -> set[str]:
    model = load_release(release).models[name]
    return {*model.settings, *model.parameters.values()}


def test_a_releases_flags_are_those_of_its_commands(tree: Path | None) -> None:
    assert tree is not None
    release = tree.parent.name
    if release not in release_names():
        pytest.skip(f"no data for {release}")
    triton = tree.parent / "tensorrtllm_backend"
    found = release_data.commands(tree, triton if triton.is_dir() else tree / "triton_backend")
    known = read_release(release)["commands"]
    for command, facts in found.items():
        assert facts["flags"] == known[command]["flags"], command
        assert facts.get("script") == known[command].get("script")


EXAMPLE = Path(__file__).parents[2] / "examples/qwen2.yaml"


@pytest.mark.parametrize("checkpoint_with", ["modelopt", "scripts"])
def test_every_command_of_the_example_is_taken(
    tree: Path | None, checkpoint_with: str, tmp_path: Path
) -> None:
    assert tree is not None
    release = tree.parent.name
    if release not in release_names():
        pytest.skip(f"no data for {release}")
    file = tmp_path / "deployment.yaml"
    text = EXAMPLE.read_text().replace("shapes/", f"{EXAMPLE.parent}/shapes/")
    text = re.sub(r"(?m)^release: .*$", f'release: "{release}"', text)
    file.write_text(f"checkpoint_with: {checkpoint_with}\n{text}")
    words = ["build", str(file), "--dry-run", "--workspace", str(tmp_path)]
    shown = CliRunner().invoke(deploy, words)
    assert shown.exit_code == 0, shown.output
    seen = set()
    for program, lines in by_program(shown.output, release).items():
        place = program if "." in program and "/" not in program else str(tree / program)
        listed = tmp_path / "lines.json"
        listed.write_text(json.dumps(lines))
        assert release_data.ask(tree, place, str(listed))["refused"] == []
        seen.add(program)
    scripts = {"examples/quantization/quantize.py"} if checkpoint_with == "scripts" else set()
    assert {"tensorrt_llm.commands.build", *scripts} <= seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architectures_script_takes_its_command(
    tree: Path | None, name: str, tmp_path: Path
) -> None:
    assert tree is not None
    release, ours = tree.parent.name, ARCHITECTURES[name]
    if release_number(release) < ours.since:
        pytest.skip(f"{release} has no {name}")
    job = CheckpointJob(tmp_path / "model", tmp_path / "made", "bf16", tp=2, release=release)
    _, script, *flags = script_command(job, tmp_path, name)
    program = script.replace(load_release(release).examples, str((tree / "examples").resolve()))
    listed = tmp_path / "lines.json"
    listed.write_text(json.dumps([flags, [*flags, "--no-such-flag"]]))
    assert release_data.ask(tree, program, str(listed))["refused"] == [[*flags, "--no-such-flag"]]


def by_program(script: str, release: str) -> dict[str, list[list[str]]]:
    """The commands of TensorRT-LLM in a printed script: program in the tree → command lines."""
    found: dict[str, list[list[str]]] = {}
    examples = load_release(release).examples
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line) if re.match(r"trtllm-build |python3 /", line) else []
        if words[:1] == ["trtllm-build"]:
            found.setdefault("tensorrt_llm.commands.build", []).append(words[1:])
        elif words and words[1].startswith(examples):
            program = words[1].replace(examples, "examples", 1)
            found.setdefault(program, []).append(words[2:])
    return found

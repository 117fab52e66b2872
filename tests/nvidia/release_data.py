"""Writes a release file from source trees: the commands' own parsers, the templates as protobuf.

    python -m tests.nvidia.release_data SOURCE BACKEND RELEASE [AS]

SOURCE is a TensorRT-LLM tree (- where there is none), BACKEND a tensorrtllm_backend tree (- for
SOURCE/triton_backend). With AS only what differs from that release is written. What is kept by
hand (image, backends, cannot, instead, required, notes) stays as the file has it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput

from trtllm_deploy.releases.release import GONE, read_release, release_files

HERE = Path(__file__).parent
MODELS = ("ensemble", "preprocessing", "postprocessing", "tensorrt_llm", "tensorrt_llm_bls")
_HOLE = re.compile(r"\$\{(\w+)\}")
# no template has these types: they stand for what a release leaves to a setting
_TYPES = {
    "logits_datatype": "TYPE_FP64",
    "encoder_input_features_data_type": "TYPE_INT8",
    "prompt_embedding_table_data_type": "TYPE_UINT16",
}


def ask(tree: Path, program: str, *lines: str) -> dict[str, Any]:
    """What print_flags says of a tree's command. Raises RuntimeError: the tree's code failed."""
    command = [sys.executable, HERE / "without_tensorrt.py", tree, HERE / "print_flags.py", program]
    environment = {**os.environ, "TREES": str(tree.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, *lines],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    found = re.search(r"^(flags|refused): (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{program}: {done.stderr[-800:]}")
    return {found[1]: json.loads(found[2])}


def flags(tree: Path, program: str) -> dict[str, str]:
    """What a command's own parser accepts. Raises RuntimeError: the tree's code failed."""
    return dict(ask(tree, program)["flags"])


def commands(tree: Path | None, backend: Path) -> dict[str, Any]:
    """Each command's flags, and where its script is."""
    launch = (backend / "scripts/launch_triton_server.py").resolve()
    launcher = {"launch_triton_server": {"flags": flags(backend, str(launch))}}
    if tree is None:
        return launcher
    made: dict[str, Any] = {"trtllm-build": {"flags": flags(tree, "tensorrt_llm.commands.build")}}
    examples = (tree / "examples").resolve()
    scripts = {"quantize": "quantization/quantize.py"}
    for model in ("qwen", "llama", "phi", "gemma"):
        core = f"models/core/{model}" if (examples / "models/core" / model).is_dir() else model
        scripts[f"convert_checkpoint-{model}"] = f"{core}/convert_checkpoint.py"
    for name, script in scripts.items():
        made[name] = {"script": script, "flags": flags(tree, str(examples / script))}
    return {**made, **launcher}


def serve(tree: Path) -> dict[str, Any] | None:
    """What the tree's trtllm-serve takes; None: it has none on a checkpoint of Hugging Face."""
    if "class TorchLlmArgs" not in read(tree / "tensorrt_llm/llmapi/llm_args.py"):
        return None
    command = [sys.executable, HERE / "without_tensorrt.py", tree, HERE / "print_serve.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r"^serve: (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"trtllm-serve: {done.stderr[-800:]}")
    return dict(json.loads(found[1]))


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _tensor(each: Any) -> str:
    dtype = DataType.Name(each.data_type)
    names = {stand_in: setting for setting, stand_in in _TYPES.items()}
    shown = f"${{{names[dtype]}}}" if dtype in names else dtype
    marks = ["optional"] * (isinstance(each, ModelInput) and each.optional)
    marks += ["reshape"] * each.HasField("reshape")
    marks += ["ragged"] * (isinstance(each, ModelInput) and each.allow_ragged_batch)
    return " ".join([f"{shown}[{', '.join(map(str, each.dims))}]", *marks])


def _names(pairs: Mapping[str, str]) -> dict[str, str | None]:
    return {key: None if key == value else value for key, value in pairs.items()}


def _filled(match: re.Match[str]) -> str:
    return _TYPES.get(match[1], "true" if match[1] == "decoupled_mode" else "1")


def model(text: str) -> dict[str, Any]:
    """One template as a release file writes it."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    bare = "\n".join(lines)
    strings = re.split(r'("[^"\n]*")', bare)  # a placeholder in quotes is a string already
    whole = "".join(part if at % 2 else _HOLE.sub(_filled, part) for at, part in enumerate(strings))
    config = text_format.Parse(whole, ModelConfig())
    written = {}  # in the template's order; protobuf keeps none
    for key in re.findall(r'key:\s*"([^"]+)"', bare):
        if key in config.parameters:
            written[key] = config.parameters[key].string_value
    holes = {key: hole[1] for key, value in written.items() if (hole := _HOLE.fullmatch(value))}
    made: dict[str, Any] = {
        "parameters": _names(holes),
        "constants": {key: value for key, value in written.items() if key not in holes},
        "settings": sorted(set(_HOLE.findall(bare)) - set(holes.values())),
        "dynamic_batching": config.HasField("dynamic_batching")
        and not config.dynamic_batching.ListFields(),
        "inputs": {each.name: _tensor(each) for each in config.input},
        "outputs": {each.name: _tensor(each) for each in config.output},
        "steps": {
            step.model_name: {
                "input_map": _names(dict(sorted(step.input_map.items()))),
                "output_map": _names(dict(sorted(step.output_map.items()))),
            }
            for step in config.ensemble_scheduling.step
        },
    }
    return {key: value for key, value in made.items() if value or key in ("inputs", "settings")}


def main(source: str, backend: str, release: str, base: str = "") -> None:
    """Write the file; what it keeps by hand is taken from it, if it is there."""
    tree = None if source == "-" else Path(source)
    triton = Path(source, "triton_backend") if backend == "-" else Path(backend)
    templates = triton / "all_models/inflight_batcher_llm"
    data: dict[str, Any] = {
        "model_repository": {
            name: model((templates / name / "config.pbtxt").read_text()) for name in MODELS
        },
        "commands": commands(tree, triton),
    }
    if tree is not None and (told := serve(tree)):
        data["serve"] = told
    file = release_files() / f"{release}.yaml"
    kept = yaml.safe_load(file.read_text()) if file.exists() else {}
    if base:
        known = read_release(base)
        if tree is None:  # its commands are the other's
            data["commands"] = {**known["commands"], **data["commands"]}
        data = {part: differing(facts, known.get(part, {})) for part, facts in data.items()}
    if too := kept.get("serve", {}).get("limits_too"):
        data.setdefault("serve", {})["limits_too"] = too
    for part in ("model_repository", "commands"):
        for name, facts in kept.get(part, {}).items():
            if by_hand := {key: value for key, value in facts.items() if key in _BY_HAND}:
                data[part].setdefault(name, {}).update(by_hand)
    said = {"name": release, **({"as": base} if base else {})}
    hands = {key: value for key, value in kept.items() if key not in (*said, *data)}
    text = yaml.safe_dump({**said, **hands, **data}, sort_keys=False, width=100)
    file.write_text(f"# made by make release-data\n{text}", encoding="utf-8")


_BY_HAND = {"required", "instead", "called", "always"}


def differing(facts: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that differ, and ``gone`` for those that aren't there any more."""
    changed = {key: GONE for key in known if key not in facts and key not in _BY_HAND}
    for key, value in facts.items():
        if isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
            if inside := differing(value, known[key]):
                changed[key] = inside
        elif key not in known or value != known[key]:
            changed[key] = value
    return changed


if __name__ == "__main__":
    main(*sys.argv[1:])

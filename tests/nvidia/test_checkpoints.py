"""TensorRT-LLM's own config and model classes take our checkpoints; its own parser our commands.

Run with ``-s`` it prints the table of counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.tiny_models import save_tiny
from trtllm_deploy.backends.judge import Question, ask
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES, former_names
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.releases.release import release_number
from trtllm_deploy.spec.precision import find_precision

HERE = Path(__file__).parent
PRECISIONS = {
    **{"fp16": None, "bf16": None, "fp8": "fp8"},
    **{"int8_sq": "int8", "int8_wo": None, "int4_awq": None},
    **{"fp8_bf16": "fp8", "int8_wo_bf16": None, "int4_awq_bf16": None},
}
SPLITS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}
# besides what they are called now, what releases before renamed_in call them
NAMES = {"": False, ", former names": True}
Name = tuple[str, str, str]


def asked_of(tree: Path) -> list[str]:
    return [sys.executable, str(HERE / "without_tensorrt.py"), str(tree)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A small random model of each architecture, large enough for a group of int4_awq a rank."""
    return {name: save_tiny(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def has(tree: Path, name: str, split: str = "") -> bool:
    """Whether our data say that the tree's release has the architecture, under these names."""
    release = release_number(tree.parent.name)
    former = bool(former_names(name, release))
    fits = not ARCHITECTURES[name].formerly or former == split.endswith("former names")
    return release >= ARCHITECTURES[name].since and (fits or not split)


@pytest.fixture(scope="session")
def checkpoints(
    models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Name, Path]:
    """Architecture, precision and split → what we make of it, with the real modelopt."""
    from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name, folder in models.items():
        for precision, kv in PRECISIONS.items():
            if find_precision(precision).quant_algo in ARCHITECTURES[name].without:
                continue
            for (split, (tp, pp)), (called, former) in product(SPLITS.items(), NAMES.items()):
                ours = ARCHITECTURES[name]
                if (pp > 1 and not ours.pp) or (former and not ours.formerly):
                    continue
                split = split + called
                target = root / f"{name}-{precision}-{split}"
                calibration = Calibration(folder / "prompts.jsonl", 2, 32)
                job = CheckpointJob(
                    *(folder, target, precision, tp, pp, calibration),
                    kv_cache_dtype=kv,
                    names=ours.formerly if former else {},
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # modelopt's
                    export_checkpoint(job, lambda _: None)
                found[name, precision, split] = target
    return found


def test_the_real_classes_take_every_checkpoint_of_what_they_have_and_no_other(
    tree: Path, checkpoints: Mapping[Name, Path]
) -> None:
    verdicts = ask([Question(checkpoint=each) for each in checkpoints.values()], asked_of(tree))
    wrong = []
    for name, verdict in zip(checkpoints, verdicts, strict=True):
        counts = {each: number for each, number in verdict.counts.items() if each != "parameters"}
        said = verdict.refused or verdict.unasked or counts
        print(tree.parent.name, *name, said)
        if has(tree, name[0], name[2]) != (bool(counts) and not any(counts.values())):
            wrong.append((name, said))
    assert not wrong


def test_the_real_classes_notice_what_is_wrong(
    tree: Path, checkpoints: Mapping[Name, Path], tmp_path: Path
) -> None:
    """A judge that accepts everything would be none."""
    good = checkpoints["LlamaForCausalLM", "fp16", "tp1"]
    config = json.loads((good / CONFIG).read_text())
    changes: list[dict[str, Any]] = [
        {"intermediate_size": 640},
        {"num_hidden_layers": 3},
        {"architecture": "NoSuchForCausalLM"},
    ]
    bad = []
    for number, change in enumerate(changes):
        bad.append(tmp_path / str(number))
        bad[-1].mkdir()
        (bad[-1] / CONFIG).write_text(json.dumps({**config, **change}))
        (bad[-1] / "rank0.safetensors").symlink_to(good / "rank0.safetensors")
    verdicts = ask([Question(checkpoint=each) for each in bad], asked_of(tree))
    assert all(verdict.refused for verdict in verdicts), verdicts


def test_the_real_parser_refuses_a_flag_it_lacks(tree: Path) -> None:
    good, bad = ask(
        [Question(("--max_seq_len", "64")), Question(("--max_seq_lenn", "64"))], asked_of(tree)
    )
    assert good.refused is None and good.unasked is None
    assert bad.refused is not None and "--max_seq_lenn" in bad.refused


def test_the_config_has_every_key_that_the_converter_writes(
    tree: Path, models: Mapping[str, Path], checkpoints: Mapping[Name, Path]
) -> None:
    for name, folder in models.items():
        if not has(tree, name):
            continue
        ours = checkpoints[name, "fp16", "tp1"]
        command = [*asked_of(tree), str(HERE / "print_config.py"), str(folder), str(ours)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-1000:]
        converter, loaded = json.loads(done.stdout.strip().splitlines()[-1])
        if converter is None:  # this release's converter has no such function
            continue
        assert not set(converter) - set(loaded)
        # modelopt splits the embedding, and writes logits in the model's own type; how experts are
        # chosen is nobody's business where there are none
        free = {"architecture", "logits_dtype", "use_parallel_embedding", "mapping", "quantization"}
        experts = [(each.get("moe") or {}).get("num_experts", 0) for each in (converter, loaded)]
        assert experts[0] == experts[1]
        free |= set() if experts[0] else {"moe"}
        differ = {
            key: (value, loaded[key])
            for key, value in converter.items()
            if key not in free and loaded[key] != value
        }
        assert not differ

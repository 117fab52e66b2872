"""Verification: what passes, and which planted fault is named as what."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_perf.errors import UserError
from tests.deploy.agreement import compare_logits
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob
from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint
from trtllm_deploy.checkpoint.readback import load_model
from trtllm_deploy.checkpoint.verify import Task, verify_checkpoint
from trtllm_deploy.spec.precision import find_precision

EXAMPLE = Path(__file__).parents[3] / "examples" / "number-words"
CALIBRATION = Calibration(EXAMPLE / "calibration.jsonl", samples=8, max_length=48)

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., Task]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "model")
    lines = (EXAMPLE / "calibration.jsonl").read_text().splitlines()
    return [tokenizer(json.loads(line)["text_input"])["input_ids"][:48] for line in lines[:16]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]) -> Make:
    """Tasks for checkpoints of the example model, each made once by modelopt."""
    made: dict[tuple[Any, ...], Task] = {}

    def task(
        precision: str, tp: int = 1, pp: int = 1, kind: Any = "trtllm", kv: Any = None
    ) -> Task:
        key = (precision, tp, pp, kind, kv)
        if key not in made:
            output = tmp_path_factory.mktemp("checkpoint")
            job = CheckpointJob(EXAMPLE / "model", output, precision, tp, pp, CALIBRATION)
            job = replace(job, kind=kind, kv_cache_dtype=kv)
            found = find_precision(precision)
            made[key] = Task(
                model_dir=EXAMPLE / "model",
                checkpoint_dir=output,
                precision=found,
                prompts=prompts,
                min_top1=min(found.min_top1, 0.97),
                measured=export_checkpoint(job, lambda _: None),
                kv_cache_dtype=kv,
                as_hf=kind == "hf",
            )
        return made[key]

    return task


@pytest.fixture
def planted(make: Make, tmp_path: Path) -> Make:
    """A task with its own copy of the checkpoint, to plant a fault in."""

    def copy(*arguments: Any) -> Task:
        task = make(*arguments)
        copied = shutil.copytree(task.checkpoint_dir, tmp_path / "planted")
        return replace(task, checkpoint_dir=Path(copied))

    return copy


def edit_config(task: Task, **change: Any) -> None:
    """Other values in the checkpoint's config; None removes a field."""
    file = task.checkpoint_dir / "config.json"
    config = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def scale(task: Task, tensor: str, factor: float, rank: int = 0, part: Any = ...) -> None:
    file = task.checkpoint_dir / f"rank{rank}.safetensors"
    tensors = load_file(file)
    tensors[tensor][part] *= factor
    save_file(tensors, file)


def swap(task: Task, one: int, other: int) -> None:
    first, second = (task.checkpoint_dir / f"rank{rank}.safetensors" for rank in (one, other))
    first.rename(task.checkpoint_dir / "aside")
    second.rename(first)
    (task.checkpoint_dir / "aside").rename(second)


@pytest.mark.parametrize(
    "arguments",
    [
        ("fp16",),
        ("fp16", 4, 1),
        ("bf16",),
        ("fp8",),
        ("fp8", 2, 2),
        ("int8_wo", 2, 1),
        ("int8_sq", 1, 2),
        ("int4_awq",),
        ("w4a8_awq",),
        ("fp8", 1, 1, "trtllm", "fp8"),
        ("fp16", 1, 1, "trtllm", "int8"),
        ("fp16", 1, 1, "hf"),
        ("fp8", 1, 1, "hf", "fp8"),
    ],
)
def test_what_modelopt_makes_passes(make: Make, arguments: tuple[Any, ...]) -> None:
    report = verify_checkpoint(make(*arguments))
    assert report["top1"] >= report["min_top1"]
    assert report["positions"] == sum(map(len, make(*arguments).prompts))


def test_fp16_is_the_original_to_the_last_bit(make: Make) -> None:
    report = verify_checkpoint(make("fp16"))
    assert (report["top1"], report["max_abs_err"]) == (1.0, 0.0)
    assert report["perplexity"]["original"] == report["perplexity"]["checkpoint"]


def test_the_figures_are_those_of_both_models_run_whole(
    make: Make, prompts: list[list[int]]
) -> None:
    task = make("fp8")
    original = AutoModelForCausalLM.from_pretrained(EXAMPLE / "model", dtype=torch.float32).eval()
    models = (original, load_model(task.checkpoint_dir))
    with torch.inference_mode():
        logits = [[model(torch.tensor([ids])).logits[0] for ids in prompts] for model in models]
    expected = compare_logits(torch.cat(logits[0]), torch.cat(logits[1]))
    losses = [
        torch.cat([-row[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]] for row, ids in pairs])
        for pairs in (zip(each, prompts, strict=True) for each in logits)
    ]
    report = verify_checkpoint(task)
    assert report["top1"] == pytest.approx(expected.top1)
    assert report["mean_abs_err"] == pytest.approx(expected.mean_abs_err, rel=1e-3)
    assert report["max_abs_err"] == pytest.approx(expected.max_abs_err, rel=1e-3)
    for loss, name in zip(losses, ("original", "checkpoint"), strict=True):
        assert report["perplexity"][name] == pytest.approx(math.exp(loss.mean()), rel=1e-3)


@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_a_quantized_kv_cache_shows(make: Make, kv: str) -> None:
    plain = verify_checkpoint(make("fp16"))
    assert verify_checkpoint(make("fp16", 1, 1, "trtllm", kv))["mean_abs_err"] > 0.001
    assert plain["mean_abs_err"] == 0


def test_a_missing_rotary_base_is_the_cause(planted: Make) -> None:
    task = planted("fp16")
    edit_config(task, rotary_base=None)
    with pytest.raises(
        UserError, match=r"rotary_base is missing \(.*10000\), the model has 1000000"
    ):
        verify_checkpoint(task)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rotary_base", 10000.0, r"rotary_base is 10000\.0, the model has 1000000\.0"),
        ("norm_epsilon", 1e-5, "norm_epsilon is 1e-05, the model has 1e-06"),
        ("num_key_value_heads", 4, "num_key_value_heads is 4, the model has 2"),
        ("attn_bias", False, "attn_bias is False, the model has True"),
        ("rotary_scaling", {"type": "linear", "factor": 2.0}, "rotary_scaling"),
    ],
)
def test_a_wrong_config_field_is_the_cause(
    planted: Make, field: str, value: Any, says: str
) -> None:
    task = planted("fp16")
    edit_config(task, **{field: value})
    with pytest.raises(UserError, match=says):
        verify_checkpoint(task)


@pytest.mark.parametrize(
    ("arguments", "ranks"),
    [
        (("fp16", 2, 1), (0, 1)),
        (("fp16", 2, 2), (2, 3)),
        (("fp16", 4, 1), (1, 2)),
        (("fp8", 2, 2), (0, 1)),
        (("int8_sq", 2, 1), (0, 1)),
    ],
)
def test_swapped_ranks_are_the_cause(
    planted: Make, arguments: tuple[Any, ...], ranks: tuple[int, int]
) -> None:
    task = planted(*arguments)
    swap(task, *ranks)
    one, other = ranks
    with pytest.raises(
        UserError,
        match=rf"cause: rank{one}\.safetensors and rank{other}\.safetensors hold .*are swapped",
    ):
        verify_checkpoint(task)


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize(
    ("arguments", "rank", "tensor", "part", "linear"),
    [
        (("fp8",), 0, "3.mlp.proj", ..., "3.mlp.down_proj"),
        (("fp8", 2, 2), 3, "1.attention.dense", ..., "3.self_attn.o_proj"),
        (("int8_sq",), 0, "2.mlp.fc", 77, "2.mlp.gate_proj"),
        (("int4_awq",), 0, "0.mlp.proj", (5, 2), "0.mlp.down_proj"),
    ],
)
def test_a_weight_scale_off_by_two_is_the_cause(
    planted: Make,
    arguments: tuple[Any, ...],
    rank: int,
    tensor: str,
    part: Any,
    linear: str,
    factor: float,
) -> None:
    task = planted(*arguments)
    scale(task, f"transformer.layers.{tensor}.weights_scaling_factor", factor, rank, part)
    cause = rf"layers\.{linear}\.weight in rank{rank}\.safetensors: .* off by a factor of"
    with pytest.raises(UserError, match=cause) as caught:
        verify_checkpoint(task)
    assert float(str(caught.value).split("factor of ")[1].split(";")[0]) == pytest.approx(
        factor, rel=0.1
    )


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("precision", ["fp8", "int8_sq", "w4a8_awq"])
def test_an_activation_scale_off_by_two_is_the_cause(
    planted: Make, precision: str, factor: float
) -> None:
    task = planted(precision)
    scale(task, "transformer.layers.1.attention.qkv.activation_scaling_factor", factor)
    cause = f"the activation scale is off by a factor of {factor:g};"
    with pytest.raises(UserError, match=rf"layers\.1\.self_attn\.q_proj and .*: {cause}"):
        verify_checkpoint(task)


def test_without_calibration_figures_a_clipping_activation_scale_is_the_cause(
    planted: Make,
) -> None:
    task = replace(planted("fp8"), measured={})
    assert verify_checkpoint(task)["top1"] > 0.95
    scale(task, "transformer.layers.1.mlp.fc.activation_scaling_factor", 0.5)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.gate_proj.*inputs reach .* its range"):
        verify_checkpoint(task)


def test_a_model_that_suffers_too_much_is_refused_with_the_figures(make: Make) -> None:
    task = replace(make("int4_awq"), min_top1=1.0)
    with pytest.raises(UserError, match=r"agree at 9\d\.\d% of .* 100\.0% are .* too coarse"):
        verify_checkpoint(task)


def test_weights_of_another_model_are_refused(planted: Make) -> None:
    task = planted("fp16")
    file = task.checkpoint_dir / "rank0.safetensors"
    tensors = load_file(file)
    for name in ("transformer.layers.2.mlp.proj.weight", "transformer.layers.1.mlp.fc.weight"):
        tensors[name] = torch.randn(tensors[name].shape).half() * 0.05
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"largest error of a weight: .*mlp\.(down|gate)_proj"):
        verify_checkpoint(task)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("model.layers.1.mlp.up_proj.weight", r"layers\.1\.mlp\.up_proj.* holds NaN or Inf"),
        ("model.norm.weight", r"model\.norm\.weight of the original holds NaN"),
    ],
)
def test_nan_in_a_source_is_no_agreement(
    make: Make, tmp_path: Path, tensor: str, said: str
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[tensor].view(-1)[0] = math.nan

    with pytest.raises(UserError, match=said):
        verify_checkpoint(from_changed_source(make, tmp_path, spoil))


def test_hidden_states_beyond_float16_ask_for_bf16(make: Make, tmp_path: Path) -> None:
    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.down_proj.weight"].mul_(1e6)

    said = r" of layers\.0\.mlp.* reach .*, float16 ends at 65504; .* in bf16"
    with pytest.raises(UserError, match=said):
        verify_checkpoint(from_changed_source(make, tmp_path, enlarge))


# What both hold and no logit of the prompts shows: agreement is 100 %.


def test_nan_in_a_row_that_no_prompt_touches_is_found_in_both(
    tmp_path: Path, prompts: list[list[int]]
) -> None:
    row = untouched(prompts)

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"][row, 0] = math.nan

    task = from_spoilt_source(tmp_path, prompts, "fp16", spoil)
    said = r"model\.embed_tokens\.weight of the original and the checkpoint holds NaN or Inf"
    with pytest.raises(UserError, match=said):
        verify_checkpoint(task)


def test_a_wrong_row_that_no_prompt_touches_is_found(
    make: Make, tmp_path: Path, prompts: list[list[int]]
) -> None:
    row = untouched(prompts)

    def swap(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"][row] *= -1

    with pytest.raises(UserError, match=r"1 of 320 rows of model\.embed_tokens\.weight aren't"):
        verify_checkpoint(from_changed_source(make, tmp_path, swap))


def untouched(prompts: list[list[int]]) -> int:
    seen = {token for prompt in prompts for token in prompt}
    return max(set(range(320)) - seen)


def move(weights: dict[str, torch.Tensor]) -> None:
    """The same function, with numbers inside the first MLP that float16 can't hold."""
    weights["model.layers.0.mlp.up_proj.weight"].mul_(2.0**17)
    weights["model.layers.0.mlp.down_proj.weight"].div_(2.0**17)


@pytest.mark.parametrize(
    ("precision", "fix"), [("fp16", "in bf16"), ("int8_wo", "in int8_wo_bf16")]
)
def test_an_overflow_within_a_layer_asks_for_bf16_by_name(
    tmp_path: Path, prompts: list[list[int]], precision: str, fix: str
) -> None:
    def milder(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.up_proj.weight"].mul_(2.0**14)
        weights["model.layers.0.mlp.down_proj.weight"].div_(2.0**8)

    task = from_spoilt_source(tmp_path, prompts, precision, milder)
    with pytest.raises(UserError, match=rf"layers\.0\.mlp.* float16 ends at 65504; .*{fix}$"):
        verify_checkpoint(task)


@pytest.mark.parametrize("precision", ["fp8_bf16", "int8_wo_bf16", "int4_awq_bf16"])
def test_what_overflows_float16_can_be_made_in_bfloat16(
    tmp_path: Path, prompts: list[list[int]], precision: str
) -> None:
    task = from_spoilt_source(tmp_path, prompts, precision, move)
    report = verify_checkpoint(task)
    assert report["top1"] > 0.9
    config = json.loads((task.checkpoint_dir / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["quantization"]["quant_algo"] == find_precision(precision).quant_algo


def from_spoilt_source(
    tmp_path: Path,
    prompts: list[list[int]],
    precision: str,
    change: Callable[[dict[str, torch.Tensor]], None],
) -> Task:
    """A checkpoint made of a changed source, so that both hold the same."""
    model, output = tmp_path / "spoilt", tmp_path / "made"
    shutil.copytree(EXAMPLE / "model", model)
    (file,) = model.glob("*.safetensors")
    weights = {name: each.float() for name, each in load_file(file).items()}
    change(weights)
    save_file(weights, file, {"format": "pt"})
    found = find_precision(precision)
    measured = export_checkpoint(
        CheckpointJob(model, output, precision, calibration=CALIBRATION), lambda _: None
    )
    return Task(model, output, found, prompts, min(found.min_top1, 0.9), measured)


def from_changed_source(
    make: Make, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Task:
    """An fp16 checkpoint's task with a source whose weights, in float32, were changed."""
    task = make("fp16")
    model = tmp_path / "source"
    shutil.copytree(task.model_dir, model)
    (file,) = model.glob("*.safetensors")
    weights = {name: each.float() for name, each in load_file(file).items()}
    change(weights)
    save_file(weights, file, {"format": "pt"})
    return replace(task, model_dir=model)

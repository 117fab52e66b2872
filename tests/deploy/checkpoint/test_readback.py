"""Real checkpoints, made by modelopt, read back: what is stored is what the model computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelopt.torch.export.quant_utils import pack_int4_in_uint8
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from llm_perf.errors import UserError
from tests.deploy.agreement import compare_logits
from trtllm_deploy.checkpoint.attention import round_to
from trtllm_deploy.checkpoint.dequantize import unpack_int4, weight_only_int8
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob
from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint
from trtllm_deploy.checkpoint.readback import load_model

EXAMPLE = Path(__file__).parents[3] / "examples" / "number-words"
CALIBRATION = Calibration(EXAMPLE / "calibration.jsonl", samples=6, max_length=48)

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Checkpoints of the example model or of ``model_dir``, each made once."""
    made: dict[tuple[Path, str, int, int], Path] = {}

    def checkpoint(precision: str, tp: int = 1, pp: int = 1, model_dir: Path | None = None) -> Path:
        key = (model_dir or EXAMPLE / "model", precision, tp, pp)
        if key not in made:
            output = tmp_path_factory.mktemp(f"{precision}_tp{tp}_pp{pp}")
            job = CheckpointJob(key[0], output, precision, tp, pp, CALIBRATION)
            export_checkpoint(job, lambda _: None)
            made[key] = output
        return made[key]

    return checkpoint


@pytest.fixture
def changed(make: Make, tmp_path: Path) -> Make:
    """A copy of a checkpoint, to plant a fault in."""

    def copy(*arguments: Any) -> Path:
        return Path(shutil.copytree(make(*arguments), tmp_path / "changed"))

    return copy


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """Token ids of example prompts with their answers."""
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "model")
    rows = [json.loads(line) for line in (EXAMPLE / "prompts.jsonl").read_text().splitlines()]
    texts = [
        row["text_input"] + (" " if row["category"] == "en" else "") + row["reference"]
        for row in rows[:48]
    ]
    return [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]


def logits(model: Any, batches: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(input_ids=ids).logits[0] for ids in batches])


@pytest.fixture(scope="module")
def original(batches: list[Tensor]) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE / "model", dtype=torch.float16)
    return logits(model.float().eval(), batches)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_fp16_reads_back_to_the_original_whatever_the_split(
    make: Make, batches: list[Tensor], original: Tensor, tp: int, pp: int
) -> None:
    # tp 4 repeats each of the model's two key-value heads
    model = load_model(make("fp16", tp, pp))
    assert compare_logits(logits(model, batches), original).max_abs_err < 1e-5


@pytest.mark.parametrize(
    ("precision", "top1"),
    [("bf16", 0.98), ("fp8", 0.98), ("int8_wo", 0.98), ("int8_sq", 0.95), ("int4_awq", 0.95)],
)
def test_a_quantized_checkpoint_agrees_with_the_original_but_is_not_it(
    make: Make, batches: list[Tensor], original: Tensor, precision: str, top1: float
) -> None:
    agreement = compare_logits(logits(load_model(make(precision)), batches), original)
    assert agreement.top1 >= top1
    assert agreement.max_abs_err > 0.01


@pytest.mark.parametrize("precision", ["fp8", "int8_sq"])
def test_quantized_splits_agree_with_the_unsplit_checkpoint(
    make: Make, batches: list[Tensor], precision: str
) -> None:
    split = logits(load_model(make(precision, 2, 2)), batches)
    whole = logits(load_model(make(precision)), batches)
    assert compare_logits(split, whole).max_abs_err < 1e-5


@pytest.mark.parametrize("precision", ["fp8", "int8_sq", "int4_awq"])
def test_each_linear_computes_what_modelopt_simulates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    simulated: list[Any] = []
    quantize = mtq.quantize

    def keep(*arguments: Any) -> Any:
        simulated.append(quantize(*arguments))
        return simulated[0]

    monkeypatch.setattr(mtq, "quantize", keep)
    job = CheckpointJob(EXAMPLE / "model", tmp_path, precision, calibration=CALIBRATION)
    export_checkpoint(job, lambda _: None)
    model, read_back = simulated[0].float(), load_model(tmp_path)
    if precision == "fp8":  # the export gives both halves of the gated MLP the larger scale
        for layer in model.model.layers:
            pair = (layer.mlp.gate_proj.weight_quantizer, layer.mlp.up_proj.weight_quantizer)
            pair[0].amax = pair[1].amax = torch.maximum(pair[0].amax, pair[1].amax)
    linears = [name for name, _ in read_back.named_modules() if name.endswith("_proj")]
    assert len(linears) == 28
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in linears:
            ours, theirs = read_back.get_submodule(name), model.get_submodule(name)
            inputs = 0.1 * torch.randn(64, ours.in_features, generator=generator)
            expected = theirs(inputs)
            # a few weights lie on the edge between two steps; a wrong scale is off by far more
            assert (ours(inputs) - expected).norm() < 0.01 * expected.norm(), name


@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_keys_and_values_are_rounded_as_the_cache_keeps_them(
    make: Make, tmp_path: Path, batches: list[Tensor], original: Tensor, kv: str
) -> None:
    job = CheckpointJob(EXAMPLE / "model", tmp_path, "fp16", calibration=CALIBRATION)
    export_checkpoint(replace(job, kv_cache_dtype=kv), lambda _: None)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": kv.upper()}
    agreement = compare_logits(logits(load_model(tmp_path), batches), original)
    assert agreement.top1 > 0.97
    assert agreement.mean_abs_err > 0.001
    # the rounding is the module's own: a model without it computes as before
    plain = compare_logits(logits(load_model(make("fp16")), batches), original)
    assert plain.max_abs_err < 1e-5


def test_a_kv_cache_of_coarse_steps_shows_in_continuous_batching_too(tmp_path: Path) -> None:
    job = CheckpointJob(EXAMPLE / "model", tmp_path, "fp16", calibration=CALIBRATION)
    export_checkpoint(replace(job, kv_cache_dtype="int8"), lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "model")
    rows = [json.loads(line) for line in (EXAMPLE / "prompts.jsonl").read_text().splitlines()]
    prompts = [tokenizer(row["text_input"])["input_ids"] for row in rows[:4]]
    assert generate(load_model(tmp_path), prompts) == generate(whole(), prompts)
    tensors = load_file(tmp_path / "rank0.safetensors")
    for layer in range(4):
        tensors[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"] *= 100
    save_file(tensors, tmp_path / "rank0.safetensors")
    assert generate(load_model(tmp_path), prompts) != generate(whole(), prompts)


def whole() -> Any:
    return AutoModelForCausalLM.from_pretrained(EXAMPLE / "model", dtype=torch.float32).eval()


def generate(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    little = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)  # else most of memory
    answers = model.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=little
    )
    return [answers[name].generated_tokens for name in sorted(answers)]


def test_int8_wo_stores_full_precision_weights(make: Make) -> None:
    # TensorRT-LLM quantizes them itself when it builds the engine
    stored = load_file(make("int8_wo") / "rank0.safetensors")
    assert stored["transformer.layers.0.mlp.fc.weight"].dtype == torch.float16
    config = json.loads((make("int8_wo") / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A16"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with what the example hasn't: llama3 rope, biases, ties, odd vocabulary."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=501,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.half().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_a_llama_reads_back_to_the_original(make: Make, llama: Path, tp: int, pp: int) -> None:
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    ids = [torch.arange(200).reshape(1, -1)]
    read_back = logits(load_model(make("fp16", tp, pp, llama)), ids)
    assert compare_logits(read_back, logits(model, ids)).max_abs_err < 1e-4
    assert read_back.shape[-1] == 501


def test_the_dtype_is_float32_on_the_cpu(make: Make) -> None:
    assert load_model(make("fp16")).dtype == torch.float32


def test_a_lost_rotary_base_is_named(changed: Make) -> None:
    checkpoint = changed("fp16")
    config = json.loads((checkpoint / "config.json").read_text())
    del config["rotary_base"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: required field 'rotary_base' is missing"):
        load_model(checkpoint)


def test_a_wrong_rotary_base_shows_in_the_logits(
    changed: Make, batches: list[Tensor], original: Tensor
) -> None:
    checkpoint = changed("fp16")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "rotary_base": 10000.0}))
    assert compare_logits(logits(load_model(checkpoint), batches), original).max_abs_err > 0.1


def test_swapped_ranks_show_in_the_logits(
    changed: Make, batches: list[Tensor], original: Tensor
) -> None:
    checkpoint = changed("fp16", 2, 1)
    first, second = (checkpoint / f"rank{rank}.safetensors" for rank in (0, 1))
    first.rename(checkpoint / "aside")
    second.rename(first)
    (checkpoint / "aside").rename(second)
    assert compare_logits(logits(load_model(checkpoint), batches), original).top1 < 0.9


@pytest.mark.parametrize("scale", ["weights_scaling_factor", "activation_scaling_factor"])
def test_a_scale_off_by_two_shows_in_the_logits(
    make: Make, changed: Make, batches: list[Tensor], scale: str
) -> None:
    checkpoint = changed("fp8")
    file = checkpoint / "rank0.safetensors"
    tensors = load_file(file)
    tensors[f"transformer.layers.0.mlp.proj.{scale}"] /= 2
    save_file(tensors, file)
    right = logits(load_model(make("fp8")), batches)
    assert compare_logits(logits(load_model(checkpoint), batches), right).max_abs_err > 0.1


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "transformer.layers.3.attention.dense.weight",
        "transformer.layers.3.mlp.fc.weights_scaling_factor",
    ],
)
def test_a_lost_tensor_is_named(changed: Make, name: str) -> None:
    checkpoint = changed("fp8")
    file = checkpoint / "rank0.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"rank0\.safetensors: tensor '{name}' is missing"):
        load_model(checkpoint)


def test_weight_only_int8_steps_are_absmax_over_128() -> None:
    weight = torch.tensor([[1.0, -0.5, 0.0039], [64.0, 0.26, -64.0]], dtype=torch.float16)
    quantized = weight_only_int8(weight)
    # row 0: step 1/128, +1 clips to 127 steps; row 1: step 0.5, -64 is step -128
    expected = [[127 / 128, -0.5, 0.0], [63.5, 0.5, -64.0]]
    assert quantized.tolist() == expected


def test_weight_only_int8_of_an_all_zero_channel_is_zero() -> None:
    assert weight_only_int8(torch.zeros(2, 4, dtype=torch.float16)).eq(0).all()


@given(st.lists(st.integers(-8, 7), min_size=16, max_size=16))
def test_int4_unpacks_to_what_modelopt_packed(numbers: list[int]) -> None:
    steps = torch.tensor(numbers, dtype=torch.float32).reshape(4, 4)
    packed = pack_int4_in_uint8(steps, torch.ones(4, 1), 4).view(torch.int8)
    assert torch.equal(unpack_int4(packed), steps)


@pytest.mark.parametrize(
    ("kind", "value", "rounded"),
    [
        ("fp8", 17.0, 16.0),  # e4m3 has steps of 2 between 16 and 32, ties to even
        ("fp8", 1e6, 448.0),
        ("fp8", -1e6, -448.0),
        ("int8", 17.4, 17.0),
        ("int8", 1e6, 127.0),
        ("int8", -1e6, -128.0),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_inputs_are_rounded_and_clipped_at_their_scale(
    kind: str, value: float, rounded: float, scale: float
) -> None:
    assert round_to(torch.tensor([value * scale]), kind, scale).item() == rounded * scale


def test_agreement_counts_top_tokens_and_errors() -> None:
    a = torch.tensor([[1.0, 2.0, 0.0], [5.0, 1.0, 0.0]])
    b = torch.tensor([[1.0, 2.5, 0.0, 9.0], [0.0, 1.0, 0.0, 9.0]])  # padded vocabulary
    agreement = compare_logits(a, b)
    assert (agreement.top1, agreement.max_abs_err) == (0.5, 5.0)
    assert agreement.mean_abs_err == pytest.approx(5.5 / 6)

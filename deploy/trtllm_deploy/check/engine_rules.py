"""Preflight's rules about an engine: against its model's config, against GPUs and processes.

Each is a function from facts, a model and its engine to findings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import EngineConfig
from trtllm_deploy.backends.refusals import FP8_SM
from trtllm_deploy.backends.triton.models import Model
from trtllm_deploy.check.facts import Facts, found
from trtllm_deploy.checkpoint.architectures import find_architecture
from trtllm_deploy.checkpoint.attention_windows import attention_windows
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.json_files import read_json_object
from trtllm_deploy.plan.memory import (
    KV_FRACTION,
    WEIGHT_BYTES,
    activation_bytes,
    kv_bytes_per_token,
    weight_bytes,
)
from trtllm_deploy.plan.shape import read_shape, trained_length

_HOPPER_SM = 90
_LEAST_SM = {"NVFP4": 100, "FP8": FP8_SM, "W4A8_AWQ": FP8_SM}
_LOCKED_MEMORY = 64 * 2**20
# tensorrt_llm's SpeculativeDecodingMode, one bit each: the decoding_mode that goes with it
_SPECULATION = {4: "medusa", 8: "lookahead", 16: "redrafter", 32: "eagle"}
_LOGITS = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
_LOGITS_IN_FP32 = re.compile(r"0\.(\d|1[0-6])\.")  # 0.17 brought logits_datatype


def processes(facts: Facts, llm: Model, engine: EngineConfig) -> Iterator[Finding]:
    """Ranks, GPUs and versions that have to be one another's."""
    launch, world, place = facts.launch, engine.world_size, facts.place
    if launch.world_size not in (None, world):
        yield found("world_size", place, world_size=world, asked=launch.world_size)
    if not engine.linked and engine.ranks != world:
        yield found("ranks", place, ranks=engine.ranks, world_size=world)
    if not engine.linked and launch.tensorrt_llm not in (None, engine.version):
        yield found("version", place, built=engine.version, installed=launch.tensorrt_llm)
    here = len(launch.gpus)
    for instance in filter(None, (llm.get("gpu_device_ids") or "").split(";")):
        ids, where = [each.strip() for each in instance.split(",")], llm.at("gpu_device_ids")
        if len(ids) != world:
            yield found("device_ids", where, count=len(ids), world_size=world)
        gone = [each for each in ids if each not in map(str, range(here))]  # among the visible
        if here and gone:
            yield found("no_device", where, ids=", ".join(gone), here=here)
    needed = -(-world // launch.nodes)
    if 0 < here < needed and _on_gpu(llm, engine):
        yield found("few_gpus", place, needed=needed, here=here)
    locked = launch.locked_memory
    if world > 1 and locked is not None and 0 <= locked < _LOCKED_MEMORY:
        yield found("locked_memory", "ulimit -l", mib=locked >> 20)


def lengths(facts: Facts, llm: Model, engine: EngineConfig) -> Iterator[Finding]:
    """Batches, beams and lengths that the engine wasn't built for."""
    names = ("batch_size", "beam_width", "input_len", "seq_len", "num_tokens")
    batch, beam, inputs, total, step = (engine.limit(f"max_{name}") or math.inf for name in names)
    beams = int(llm.number("max_beam_width") or 1)
    isl, osl = facts.launch.lengths or (0, 0)
    longest = isl or min(inputs, total)
    chunked = llm.flag("enable_chunked_context") or llm.role == "llmapi"
    for rule, where, asked, built in (
        ("batch", llm.at("max_batch_size"), llm.config.max_batch_size, batch),
        ("beam", llm.at("max_beam_width"), beams, beam),
        ("input_length", facts.place, isl, inputs),
        ("sequence_length", facts.place, isl + osl, total),
        ("step_isl" if isl else "step", facts.place, 0 if chunked else longest, step),
    ):
        if math.inf > asked > built:
            yield found(rule, where, asked=asked, built=built)
    trained, most = trained_length(engine.pretrained), isl + osl or engine.limit("max_seq_len")
    if trained is not None and most is not None and most > trained:
        yield found("positions", facts.place, asked=most, trained=trained)
    for bls in facts.playing("tensorrt_llm_bls"):
        if beams > 1 and bls.flag("accumulate_tokens"):
            yield found("accumulate", bls.at("accumulate_tokens"))


def features(facts: Facts, llm: Model, engine: EngineConfig) -> Iterator[Finding]:
    """Parameters that need a plugin, or another way to build."""
    reuse, strategy = llm.flag("enable_kv_cache_reuse"), llm.get("gpt_model_type") or ""
    inflight = strategy.startswith("inflight")
    asks = {"enable_kv_cache_reuse": reuse, "gpt_model_type": inflight}
    for key in (key for key, asked in asks.items() if asked and not engine.paged):
        yield found("paged_cache", llm.at(key), key=key)
    for key in ("enable_kv_cache_reuse", "enable_chunked_context"):
        if llm.flag(key) and engine.off("use_paged_context_fmha"):
            yield found("paged_attention", llm.at(key), key=key)
    for plugin in ("gpt_attention_plugin", "remove_input_padding"):
        if inflight and engine.off(plugin):
            yield found("inflight", llm.at("gpt_model_type"), strategy=strategy, plugin=plugin)
    int8 = engine.quantization.get("kv_cache_quant_algo") == "INT8"
    if int8 and reuse and facts.release and "int8_kv_cache_reuse" in facts.release.cannot:
        yield found("int8_reuse", llm.at("enable_kv_cache_reuse"))
    share = llm.number("gpu_weights_percent")
    if share is not None and share < 1 and engine.build.get("weight_streaming") is False:
        yield found("streamed_weights", llm.at("gpu_weights_percent"))
    lora = [key for key in llm.parameters if key.startswith("lora_") and llm.get(key)]
    if lora and engine.off("lora_plugin"):
        yield found("lora", llm.at(lora[0]), key=lora[0])


def decoding(facts: Facts, llm: Model, engine: EngineConfig) -> Iterator[Finding]:
    """How tokens are chosen, and what of their logits is returned."""
    from tritonclient.grpc.model_config_pb2 import DataType

    mode, width = llm.get("decoding_mode") or "", int(llm.number("max_beam_width") or 1)
    bits = engine.limit("speculative_decoding_mode")
    built = _SPECULATION.get(bits or 1, "no speculation")
    speculative = {mode, built} & {*_SPECULATION.values()}
    if mode and bits is not None and speculative and mode != built:
        yield found("speculation", llm.at("decoding_mode"), mode=mode, built=built)
    if (mode == "beam_search" and width == 1) or (mode.startswith("top_") and width > 1):
        yield found("beams", llm.at("decoding_mode"), mode=mode, width=width)
    types = {number: name for name, number in DataType.items()}
    outputs = {each.name: types.get(each.data_type, "?") for each in llm.config.output}
    both = ("context_logits", "generation_logits")
    for tensor in both:
        if outputs and tensor not in outputs and engine.build.get(f"gather_{tensor}") is True:
            yield found("logits_unused", facts.place, which=tensor)
    wanted = _LOGITS.get(str(engine.pretrained.get("logits_dtype")))
    wrong = [each for each in both if wanted and outputs.get(each, wanted) != wanted]
    if wrong and not engine.linked and not _LOGITS_IN_FP32.match(engine.version):
        said = {"tensors": " and ".join(wrong), "said": outputs[wrong[0]], "built": wanted}
        yield found("logits_type", llm.at(wrong[0]), **said)


def compute(facts: Facts, llm: Model, engine: EngineConfig) -> Iterator[Finding]:
    """What the oldest GPU here can't compute."""
    if not facts.launch.gpus or not _on_gpu(llm, engine):
        return
    gpu = min(facts.launch.gpus, key=lambda each: each.sm)
    algos = [each for each in engine.quantization.values() if isinstance(each, str)]
    for algo, least in _LEAST_SM.items():
        if gpu.sm < least and any(each.startswith(algo) for each in algos):
            needed = {"what": algo, "needed": f"{least // 10}.{least % 10}"}
            yield found("capability", facts.place, gpu=gpu.name, has=gpu.capability, **needed)
    if engine.on("use_fp8_context_fmha") and "FP8" in algos and gpu.sm < _HOPPER_SM:
        yield found("fp8_attention", facts.place, gpu=gpu.name)


def memory(facts: Facts, llm: Model, engine: EngineConfig) -> Iterator[Finding]:
    """Whether weights fit the GPU, and a sequence and a full batch of them the KV cache."""
    longest = engine.limit("max_seq_len")
    window = int(llm.number("max_attention_window_size") or longest or 0)
    if not longest:
        return
    if window < longest and window not in _own_windows(facts):
        where = llm.at("max_attention_window_size")
        yield found("window", where, asked=window, built=longest)
    block, beams = engine.limit("tokens_per_block") or 1, int(llm.number("max_beam_width") or 1)
    batch = engine.limit("max_batch_size") or 1
    batch = min(llm.config.max_batch_size or batch, batch)
    usual = sum(facts.launch.lengths or (longest,))
    one, each = (beams * block * -(-min(size, window) // block) for size in (longest, usual))
    cap = llm.number("max_tokens_in_paged_kv_cache")
    room = {} if cap is None else {llm.at("max_tokens_in_paged_kv_cache"): int(cap)}
    needs = _bytes_on_a_gpu(engine)
    told = [(gpu.memory, gpu.name) for gpu in facts.launch.gpus if gpu.memory]
    if needs and told and not engine.linked:
        weights, working, per_token = needs
        has, name = min(told)
        free = has - weights - working
        if free < 0:
            sizes = [size / 2**30 for size in (weights, working, has)]
            values = dict(zip(("weights", "working", "has"), sizes, strict=True))
            yield found("memory", facts.place, gpu=name, **values)
        else:
            share = llm.number("kv_cache_free_gpu_mem_fraction") or KV_FRACTION
            room[name] = int(free * share / per_token)
    for where, tokens in room.items():
        if tokens < one:
            yield found("cache_sequence", where, tokens=tokens, needed=one)
        elif tokens < batch * each:
            yield found("cache_batch", where, tokens=tokens, needed=batch * each)


def _own_windows(facts: Facts) -> set[int | None]:
    """The sliding windows that the models of the tokenizers' folders have, where they say it."""
    files = [
        Path(model.get("tokenizer_dir") or "") / "config.json"
        for model in facts.playing("preprocessing")
    ]
    found: set[int | None] = set()
    for file in files:
        with suppress(UserError):
            found |= {*attention_windows(read_json_object(file))}
    return found


def _bytes_on_a_gpu(engine: EngineConfig) -> tuple[int, int, float] | None:
    """Weights, what a step works with, and KV cache of a token; None for an unknown model."""
    quantized = [each for each in WEIGHT_BYTES if each == engine.quantization.get("quant_algo")]
    head_size = engine.pretrained.get("head_size")
    names = [find_architecture(engine.pretrained)]
    shape = read_shape({**engine.pretrained, "head_dim": head_size, "architectures": names})
    if shape is None or not quantized:
        return None
    kv_dtype = engine.quantization.get("kv_cache_quant_algo")
    tokens, batch = engine.limit("max_num_tokens") or 0, engine.limit("max_batch_size") or 1
    return (
        weight_bytes(shape, quantized[0], engine.tp, engine.pp),
        activation_bytes(shape, engine.tp, tokens, batch),
        kv_bytes_per_token(shape, engine.tp, engine.pp, kv_dtype),
    )


def _on_gpu(llm: Model, engine: EngineConfig) -> bool:
    """Whether it runs there: the reference backend may do without."""
    return not engine.linked or llm.role == "llmapi"


RULES = (processes, lengths, features, decoding, compute, memory)

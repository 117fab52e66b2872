"""The reference backend's engine on a GPU: right answers, nothing left behind, and how fast.

    python benchmarks/gpu_reference.py [--shape 7b] [--json result.json]

First the number-words example in float32 and bfloat16 against transformers' plain generate, greedy
and sampled, and 200 cancelled requests. Then a model of Qwen2-7B's shape with random weights under
a full batch, its cache sized from the GPU's free memory. Runs on a CPU too, with ``--shape none``.
Needs torch, transformers 5.14, psutil; no pytest, no Triton. Exit code 1 when an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # benchmarks is imported as a package

from trtllm_deploy.reference.generation import Chunk, Engine, Request
from trtllm_deploy.reference.limits import CacheSettings, Limits
from trtllm_deploy.reference.sampling import Choice

EXAMPLE = ROOT / "examples/number-words"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CACHE = CacheSettings(enable_kv_cache_reuse=True, enable_chunked_context=True)
SMALL = Limits(8, 256, 320, 1024, 32)
LARGE = Limits(64, 3072, 4096, 8192, 32)
LARGEST = Limits(512, 6144, 8192, 8192, 32)  # its cache is as large as the memory lets it
QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}
CHOICES = (
    Choice(temperature=0.9, top_p=0.9, seed=1),
    Choice(top_k=5, seed=2, frequency_penalty=0.5),
    Choice(repetition_penalty=1.3, presence_penalty=0.2, min_tokens=4, end_id=2),
    Choice(bad_words=((5,), (7, 8)), embedding_bias=torch.linspace(-1, 1, 300)),
)


def ask(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    """Every request's tokens, all submitted at once. Raises RuntimeError for one that failed."""
    said: list[list[Chunk]] = [[] for _ in requests]
    ended = threading.Semaphore(0)

    def receiver(chunks: list[Chunk]) -> Any:
        def receive(chunk: Chunk) -> None:
            chunks.append(chunk)
            if chunk.final:
                ended.release()

        return receive

    for request, chunks in zip(requests, said, strict=True):
        engine.submit(request, receiver(chunks))
    for _ in requests:
        ended.acquire()
    for chunks in said:
        if chunks[-1].error is not None:
            raise RuntimeError(chunks[-1].error)
    return [tuple(token for chunk in chunks for token in chunk.tokens) for chunks in said]


def example(dtype: torch.dtype) -> dict[str, float]:
    """The example's answers, against plain generate on the same device."""
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "model", local_files_only=True)
    rows = (EXAMPLE / "prompts.jsonl").read_text("utf-8").splitlines()[:64]
    prompts = [tuple(tokenizer(json.loads(row)["text_input"]).input_ids) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE / "model", dtype=dtype).to(DEVICE).eval()
    truth = []
    for ids in prompts:
        inputs = torch.tensor([ids], device=DEVICE)
        mask = torch.ones_like(inputs)
        said = model.generate(inputs, attention_mask=mask, max_new_tokens=32, do_sample=False)
        truth.append(said[0, len(ids) :].tolist())
    end_id = model.config.eos_token_id
    engine = Engine(model, SMALL, CACHE)
    try:
        answers = ask(engine, [Request(ids, 32, end_id, streaming=True) for ids in prompts])
        right = sum(
            list(answer) == [token for token in expected if token != end_id]
            for answer, expected in zip(answers, truth, strict=True)
        )
        sampled = [Request(ids, 32, choice=choice) for ids in prompts[:4] for choice in CHOICES]
        same = ask(engine, sampled) == [ask(engine, [each])[0] for each in sampled]
        for ids in prompts * 4:
            engine.cancel(engine.submit(Request(ids, 60, streaming=True), lambda _: None))
        again = ask(engine, [Request(prompts[0], 32, end_id)])[0] == answers[0]
        pages = engine.statistics()["kv_cache_block"]
    finally:
        engine.close()
    return {
        "greedy_equal": right / len(prompts),
        "sampled_equal_in_any_batch": float(same),
        "equal_after_cancelled": float(again),
        "pages_left": pages["used"],
    }


def random_model(limits: Limits, requests: int) -> dict[str, float]:
    """Tokens per second and memory of a model of Qwen2-7B's shape, all requests at once."""
    config = AutoConfig.for_model("qwen2", **QWEN2_7B)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    engine = Engine(model, limits, CACHE)
    generator = torch.Generator().manual_seed(0)
    try:
        shape = (requests, limits.max_input_len // 2)
        ids = torch.randint(0, config.vocab_size, shape, generator=generator).tolist()
        prompts = [tuple(each) for each in ids]
        begun = time.perf_counter()
        answers = ask(engine, [Request(ids, 64, streaming=True) for ids in prompts])
        took = time.perf_counter() - begun
        statistics = engine.statistics()
    finally:
        engine.close()
    return {
        "output_tokens_per_s": round(sum(map(len, answers)) / took, 1),
        "seconds": round(took, 2),
        "cache_pages": statistics["kv_cache_block"]["max"],
        "pages_left": statistics["kv_cache_block"]["used"],
        "gpu_gib": round(statistics["runtime_memory"]["gpu"] / 2**30, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if DEVICE == "cuda" else 0,
    }


def main() -> int:
    """Run, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=("7b", "none"), default="7b")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "float32": example(torch.float32),
        "bfloat16": example(torch.bfloat16),
    }
    if chosen.shape == "7b":
        result["qwen2_7b_shape"] = random_model(LARGE, 128)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        result["qwen2_7b_shape_largest"] = random_model(LARGEST, 64)
    print(json.dumps(result, indent=1))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    wrong = result["float32"]["greedy_equal"] < 1 or any(
        each[name] != expected
        for each in (result["float32"], result["bfloat16"])
        for name, expected in (("equal_after_cancelled", 1), ("pages_left", 0))
    )
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())

"""A model of Qwen2-7B's shape goes through fp8 calibration, export and verification on one GPU.

    python benchmarks/gpu_checkpoint.py --json result.json

Weights are random, so nothing is downloaded; prompts are the number-words example's, joined. Prints
seconds and peak GPU memory of each step, then plants a fault (one scale doubled) and sees that
verification names it. Runs on a CPU too, with a small --shape.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from string import ascii_letters
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM

sys.path[0] = str(Path(__file__).parent.parent)  # benchmarks is imported as a package

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.calibration import read_prompts
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob, Verification, check_job
from trtllm_deploy.checkpoint.modelopt_export import export_checkpoint
from trtllm_deploy.checkpoint.trtllm_format import check_checkpoint
from trtllm_deploy.checkpoint.verify import REPORT
from trtllm_deploy.checkpoint.verify_job import verify_job

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "number-words"
SCALE = "transformer.layers.0.mlp.proj.weights_scaling_factor"
# The logits of random weights are near ties among 152,064 tokens, which rounding turns (16 % agree
# with fp8); a trained model's are not.
MIN_TOP1 = 0.05


class Steps:
    """Seconds and peak GPU memory, by step; starting one ends the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}
        self._running = ""
        self._since = 0.0

    def start(self, name: str) -> None:
        """End the step that runs, and start another unless it is that one."""
        if name == self._running:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._running:
            self.seconds[self._running] = round(time.monotonic() - self._since, 2)
            if torch.cuda.is_available():
                self.peak_gib[self._running] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            peak = f", {self.peak_gib[self._running]} GiB at most" if self.peak_gib else ""
            print(f"{self._running:<12} {self.seconds[self._running]:>8.2f} s{peak}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._running, self._since = name, time.monotonic()

    def progress(self, text: str) -> None:
        """Start the step that a progress text of the export names."""
        for name in ("load model", "calibrate", "export"):
            if name in text:
                self.start(name)


def random_model(
    shape: Path, folder: Path, device: str, seed: int, dtype: torch.dtype = torch.float16
) -> int:
    """Write a Hugging Face checkpoint of the shape with random weights; returns its parameters."""
    values = json.loads(shape.read_text(encoding="utf-8"))
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    config = AutoConfig.for_model("qwen2", **{"rope_parameters": rope, **values})
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="4GB")
    wide_tokenizer(folder / "tokenizer.json", config.vocab_size)
    shutil.copyfile(EXAMPLE / "model" / "tokenizer_config.json", folder / "tokenizer_config.json")
    return sum(each.numel() for each in model.parameters())


def wide_tokenizer(file: Path, size: int) -> None:
    """Write a tokenizer of so many tokens, all of which decode: bytes, and words of letters.

    What a model with random weights says is any token; a client and a server have to read it.
    """
    vocabulary = {each: number for number, each in enumerate(sorted(ByteLevel.alphabet()))}
    merges, words = [], deque(["Ġ"])
    while len(vocabulary) < size - 1:
        word = words.popleft()
        for letter in ascii_letters[: size - 1 - len(vocabulary)]:
            vocabulary[word + letter] = len(vocabulary)
            merges.append((word, letter))
            words.append(word + letter)
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(file))


def write_prompts(file: Path, samples: int) -> None:
    """Long prompts: the example's, joined by twos, fours, … until they are long enough."""
    texts = list(read_prompts(EXAMPLE / "calibration.jsonl"))
    rows = [" ".join(texts[(i + j) % len(texts)] for j in range(64)) for i in range(samples)]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")


def double_scale(file: Path, tensor: str) -> None:
    """Change one float32 of a safetensors file in place."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        start = 8 + length + json.loads(stream.read(length))[tensor]["data_offsets"][0]
        stream.seek(start)
        value = torch.frombuffer(bytearray(stream.read(4)), dtype=torch.float32) * 2
        stream.seek(start)
        stream.write(value.numpy().tobytes())


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = Steps()
    steps.start("make model")
    parameters = random_model(options.shape, folder / "model", device, seed=1)
    steps.start("check job")
    prompts = folder / "prompts.jsonl"
    write_prompts(prompts, options.samples)
    job = CheckpointJob(
        model_dir=folder / "model",
        output_dir=folder / "checkpoint",
        precision=options.precision,
        tp=options.tp,
        calibration=Calibration(prompts, options.samples, options.max_length),
        kv_cache_dtype=options.kv_cache_dtype,
        verification=Verification(min_top1=MIN_TOP1),
    )
    check_job(job)
    measured = export_checkpoint(job, steps.progress)
    steps.start("check files")
    check_checkpoint(job.output_dir)
    steps.start("verify")
    verify_job(job, lambda _: None, measured)
    steps.start("find fault")
    report = json.loads((job.output_dir / REPORT).read_text(encoding="utf-8"))
    print(json.dumps(report, indent=2))
    double_scale(job.output_dir / "rank0.safetensors", SCALE)
    caught = None
    try:
        verify_job(job, lambda _: None, measured)
    except UserError as error:
        caught = str(error)
    steps.start("")
    print(f"planted fault: {caught or 'NOT FOUND'}")
    return {
        "shape": options.shape.name,
        "parameters": parameters,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "precision": options.precision,
        "kv_cache_dtype": options.kv_cache_dtype,
        "samples": options.samples,
        "max_length": options.max_length,
        "seconds": steps.seconds,
        "peak_gib": steps.peak_gib,
        "checkpoint_bytes": sum(each.stat().st_size for each in job.output_dir.iterdir()),
        "verify": report,
        "fault_found": caught,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    shapes = ROOT / "examples" / "shapes"
    parser.add_argument("--shape", type=Path, default=shapes / "qwen2-7b.json")
    parser.add_argument("--precision", default="fp8")
    parser.add_argument("--kv-cache-dtype", choices=["fp8", "int8"])
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where to work: 30 GB for 7B")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = run(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not result["fault_found"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

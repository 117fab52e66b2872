"""What postprocessing's detokenizer costs per chunk, and what the simple ways cost.

    python benchmarks/detokenizer.py [--tokenizer FOLDER] [--rounds 5] [--json FILE]

One token per chunk, as in-flight batching streams them, for answers of 64, 512 and 2048 tokens:
``ours`` is the class that postprocessing runs; ``everything`` decodes all tokens so far for each
chunk, which is right and what a longer answer makes dear; ``alone`` decodes the chunk's tokens by
themselves, as TensorRT-LLM's own postprocessing does, which is cheapest and breaks characters:
``broken`` counts the chunks that it gets wrong. Each figure is the least of the rounds, in µs of
CPU time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # benchmarks is imported as a package

from trtllm_deploy.backends.repository import templates
from trtllm_deploy.machine.json_files import write_json

EXAMPLE = ROOT / "examples/number-words"
LENGTHS = (64, 512, 2048)
ANSWERS = 2048  # tokens per round: as many answers as that makes
Pieces = Callable[[list[int]], Iterator[str]]


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    rows = [measured(tokenizer, length, options.rounds) for length in LENGTHS]
    print("".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>16.4g}" for value in row.values()))
    if options.json:
        write_json(options.json, {"tokenizer": str(options.tokenizer), "rows": rows})


def measured(tokenizer: Any, length: int, rounds: int) -> dict[str, float]:
    """µs per chunk of each way, and how they compare."""
    tokens = answer(tokenizer, length)
    ways = {"ours": ours(tokenizer), "everything": everything(tokenizer), "alone": alone(tokenizer)}
    cost = {name: min(timed(way, tokens) for _ in range(rounds)) for name, way in ways.items()}
    right, cut = list(ways["ours"](tokens)), list(ways["alone"](tokens))
    assert "".join(right) == tokenizer.decode(tokens)
    wrong = sum("\ufffd" in piece for piece in cut)
    return {
        "tokens": length,
        **{f"{name}_us": value for name, value in cost.items()},
        "ours/everything": cost["ours"] / cost["everything"],
        "ours/alone": cost["ours"] / cost["alone"],
        "broken": wrong,
    }


def answer(tokenizer: Any, length: int) -> list[int]:
    """Tokens of the example's references one after another, English and Chinese in turns."""
    lines = (EXAMPLE / "prompts.jsonl").read_text("utf-8").splitlines()
    texts = cycle(json.loads(line)["reference"] + ". " for line in lines)
    every = (token for text in texts for token in tokenizer.encode(text).ids)
    return list(islice(every, length))


def timed(way: Pieces, tokens: list[int]) -> float:
    """µs per token of the way."""
    answers = ANSWERS // len(tokens)
    began = time.process_time()
    for _ in range(answers):
        for _ in way(tokens):
            pass
    return (time.process_time() - began) / (answers * len(tokens)) * 1e6


def ours(tokenizer: Any) -> Pieces:
    """The detokenizer of the model repository, among as many streams as a busy server has."""
    sys.path.insert(0, str(templates() / "postprocessing" / "1"))
    subject = importlib.import_module("detokenizer").Detokenizer(tokenizer.decode, [1])
    for key in range(256):
        subject.open(f"other {key}", [[0]], 1000)

    def pieces(tokens: list[int]) -> Iterator[str]:
        subject.open("key", [[0]], len(tokens))
        return (subject.add("key", [token]) for token in tokens)

    return pieces


def everything(tokenizer: Any) -> Pieces:
    """The text of all tokens so far, less what was sent."""

    def pieces(tokens: list[int]) -> Iterator[str]:
        sent = 0
        for end in range(1, len(tokens) + 1):
            text = tokenizer.decode(tokens[:end]).rstrip("\ufffd")
            yield text[sent:]
            sent = len(text)

    return pieces


def alone(tokenizer: Any) -> Pieces:
    """Each chunk's text by itself."""
    return lambda tokens: (tokenizer.decode([token]) for token in tokens)


if __name__ == "__main__":
    main()

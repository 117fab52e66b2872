"""Makes the number-words model: a Qwen2 of 1.07 M parameters that writes 0 … 9999 in words.

In: nothing but a seed. Out: model/ (fp16 weights, tokenizer, configs) and three jsonl files.
Runs on 2 CPU cores in a few minutes: python examples/number-words/train.py --help
"""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM
from words import LANGUAGES, held_out, line, prompt, taught

Rows = list[dict[str, str]]  # as they stand in a jsonl file
Files = dict[str, Rows]

END = "<|endoftext|>"
CONTEXT = 1024  # max_position_embeddings
LONG_ROW = 512  # tokens in a row of many lines
PEAK_RATE = 3e-3  # of learning
# Qwen2's own split: single digits, words with their leading space, runs of punctuation.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges come from English alone: a Chinese character stays 3 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=317,  # below the model's 320: real Qwen2 pads its embeddings too
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line(n, "en") for n in taught("en")), trainer)
    return tokenizer


def make_model(tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """Heads, layers, widths and vocabulary split evenly for tp=2 and pp=2."""
    end = tokenizer.token_to_id(END)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_theta=1_000_000.0,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return Qwen2ForCausalLM(config)


class Lines:
    """Rows of training lines as (input ids, labels), both (rows, tokens).

    A label stands at the position that predicts it; -100 is not scored. After every answer the
    label is the end token, also where the input goes on with a newline and another line.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.random = random.Random(seed)
        self.end, self.newline = tokenizer.token_to_id(END), tokenizer.encode("\n").ids
        self.numbers = {language: taught(language) for language in LANGUAGES}
        self.lines: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        for language, numbers in self.numbers.items():
            for n in numbers:
                asked = len(tokenizer.encode(prompt(n, language)).ids)
                ids = tokenizer.encode(line(n, language)).ids
                self.lines[language, n] = ids, [-100] * (asked - 1) + ids[asked:] + [self.end]

    def draw(self, language: str | None = None) -> tuple[list[int], list[int]]:
        """One line; small numbers come more often than their share, being few."""
        language = language or self.random.choice(list(LANGUAGES))
        numbers = self.numbers[language]
        if self.random.random() < 0.2:
            numbers = numbers[: 10 ** self.random.randint(1, 3)]
        return self.lines[language, self.random.choice(numbers)]

    def short(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One line a row, padded on the right."""
        drawn = [self.draw() for _ in range(rows)]
        width = max(len(ids) for ids, _ in drawn)
        inputs = [ids + [self.end] * (width - len(ids)) for ids, _ in drawn]
        labels = [marks + [-100] * (width - len(marks)) for _, marks in drawn]
        return torch.tensor(inputs), torch.tensor(labels)

    def long(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Lines joined by newlines: questions at every position, after every kind of context."""
        inputs, labels = [], []
        for _ in range(rows):
            ids: list[int] = []
            marks: list[int] = []
            only = self.random.choice([None, *LANGUAGES])
            while len(ids) < LONG_ROW:
                more, scored = self.draw(only)
                ids += more + self.newline
                marks += scored + [-100] * len(self.newline)
            inputs.append(ids[:LONG_ROW])
            labels.append(marks[:LONG_ROW])
        return torch.tensor(inputs), torch.tensor(labels)


def train(model: Qwen2ForCausalLM, lines: Lines, steps: int) -> None:
    """AdamW with a warm-up and a cosine down to zero; every fourth step is one of long rows."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    warm, began = steps // 20 + 1, time.monotonic()
    model.train()
    for step in range(steps):
        rate = min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate
        inputs, labels = lines.long(12) if step % 4 == 3 else lines.short(128)
        logits = model(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 40 in (38, 39):
            progress = f"step {step + 1}/{steps}  {'long' if step % 4 == 3 else 'short'} rows' loss"
            print(f"{progress} {loss.item():.4f}  {time.monotonic() - began:.0f} s", flush=True)
    model.eval()


@torch.inference_mode()
def exact_match(model: Qwen2ForCausalLM, tokenizer: Tokenizer, rows: Rows) -> float:
    """Share of rows whose greedy answer, ended by the model itself, is the reference."""
    end, hits = tokenizer.token_to_id(END), 0
    by_length: dict[int, list[tuple[list[int], str]]] = {}
    for row in rows:
        ids = tokenizer.encode(row["text_input"]).ids
        by_length.setdefault(len(ids), []).append((ids, row["reference"]))
    for length, group in by_length.items():  # equal lengths: no padding, no mask
        inputs = torch.tensor([ids for ids, _ in group])
        output = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=40
        )
        for answer, (_, reference) in zip(output[:, length:].tolist(), group, strict=True):
            said = answer[: answer.index(end)] if end in answer else []
            hits += tokenizer.decode(said).strip() == reference
    return hits / len(rows)


def examples(numbers: dict[str, list[int]], lead: str = "") -> Rows:
    """Prompts with their references, the languages taking turns."""
    return [
        {
            "text_input": lead + prompt(n, language),
            "reference": LANGUAGES[language][0](n),
            "category": language,
        }
        for pair in zip(*numbers.values(), strict=True)
        for language, n in zip(numbers, pair, strict=True)
    ]


def data_files(tokenizer: Tokenizer) -> Files:
    """Rows of the jsonl files: held-out prompts, the same behind a long prefix, taught lines."""
    chosen = random.Random("data files")  # apart from the training's, so that no option moves them
    drawn = {language: chosen.sample(taught(language), 96) for language in LANGUAGES}
    lead = ""
    for pair in zip(*(numbers[64:] for numbers in drawn.values()), strict=True):
        if len(tokenizer.encode(lead).ids) < 400:
            lead += "".join(line(n, lang) + "\n" for lang, n in zip(drawn, pair, strict=True))
    return {
        "prompts": examples({lang: held_out(lang)[:128] for lang in LANGUAGES}),
        "shared_prefix": examples({lang: held_out(lang)[128:160] for lang in LANGUAGES}, lead),
        "calibration": [
            {"text_input": line(n, lang)} for lang in LANGUAGES for n in drawn[lang][:64]
        ],
    }


def write(out: Path, model: Qwen2ForCausalLM, tokenizer: Tokenizer, files: Files) -> None:
    """Everything is written beside its place first, then renamed over what was there."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as folder:
        fresh = Path(folder)
        model.save_pretrained(fresh / "model")
        (fresh / "model" / "model.safetensors").chmod(0o644)  # the library leaves it private
        path = fresh / "model" / "config.json"
        config = json.loads(path.read_text())  # to be spelled as in published Qwen2 folders
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["torch_dtype"] = config.pop("dtype")
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tokenizer.save(str(fresh / "model" / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": END,
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
        }
        path.with_name("tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for name, rows in files.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (fresh / f"{name}.jsonl").write_text(text, encoding="utf-8")
        for made in list(fresh.iterdir()):
            if (out / made.name).is_dir():  # a rename replaces files, but no folder
                (out / made.name).rename(fresh / "old")
            made.rename(out / made.name)


def main() -> None:
    """Train, score the held-out prompts of the files, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, Lines(tokenizer, options.seed), options.steps)
    files = data_files(tokenizer)
    model.half().float()  # the weights as they are written
    for name in ("prompts", "shared_prefix"):
        for language in LANGUAGES:
            rows = [row for row in files[name] if row["category"] == language]
            print(f"{name} {language}: exact match {exact_match(model, tokenizer, rows):.1%}")
    write(options.out, model.half(), tokenizer, files)


if __name__ == "__main__":
    main()

"""The prompts that come with the project are what their page says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from llm_perf.workload.datasets import read_lines

FOLDER = Path(__file__).parents[3] / "examples/prompts"
LINES = read_lines(FOLDER / "prompts.jsonl")


def test_there_are_sixty_different_ones_in_both_languages() -> None:
    assert len({line.text for line in LINES}) == len(LINES) == 60
    kinds = Counter(line.category for line in LINES)
    assert kinds == {"chat": 18, "summary": 14, "code": 14, "extraction": 14}
    asked = [line.text.rpartition("Message: ")[2] for line in LINES]
    assert sum(bool(re.search("[一-鿿]", text)) for text in asked) == 27
    assert all(line.max_tokens for line in LINES)


def test_the_page_counts_those_that_are_scored() -> None:
    scored = Counter(line.category for line in LINES if line.reference is not None)
    assert scored == {"chat": 6, "code": 3, "extraction": 14}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"{scored[kind]} with one right" in page for kind in ("chat", "code"))


def test_extractions_share_their_template_and_keep_its_rules() -> None:
    lines = [line for line in LINES if line.category == "extraction"]
    shared = lines[0].text.rpartition("Message: ")[0] + "Message: "
    assert len(shared) > 1500 and all(line.text.startswith(shared) for line in lines)
    for line in lines:
        reference = json.loads(line.reference or "")
        assert list(reference) == ["kind", "product", "order", "date", "urgent"]
        message = re.sub(r"[^0-9A-Z]", "", line.text.removeprefix(shared))
        assert reference["order"] is None or reference["order"] in message
        assert reference["product"] is None or reference["product"] in line.text
        assert re.fullmatch(r"2024-\d\d-\d\d", reference["date"] or "2024-01-01")

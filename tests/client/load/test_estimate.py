from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_perf import api
from llm_perf.cli.main import command
from llm_perf.errors import UserError
from llm_perf.load import progress
from llm_perf.load.estimate import at_least_s, warning_before, warning_meanwhile
from llm_perf.load.load import Concurrency, Extent, Load, Rate, Trace
from llm_perf.workload.workload import Prompt

FIXED = [Prompt(i, "p", 1, 500, min_tokens=500, at_s=20.0 * i) for i in range(100)]
FREE = [Prompt(i, "p", 1, 500) for i in range(100)]


@pytest.mark.parametrize(
    ("load", "extent", "prompts", "seconds"),
    [
        (Rate(0.1, "constant"), Extent(), FREE, 990),  # the last is due then
        (Rate(10.0, "constant"), Extent(requests=10_001), FREE, 1000),
        (Rate(float("inf")), Extent(), FREE, 0),
        (Trace(), Extent(), FIXED, 1980),
        (Concurrency(1), Extent(), FIXED, 100),  # 50,000 tokens at 2 ms
        (Concurrency(4), Extent(requests=2000), FIXED, 500),
        (Concurrency(1), Extent(), FREE, 0),  # an answer may be a token long
        (Concurrency(1), Extent(duration_s=60), FIXED, 0),
    ],
)
def test_what_a_load_takes_at_least(
    load: Load, extent: Extent, prompts: list[Prompt], seconds: float
) -> None:
    assert at_least_s(load, extent, prompts) == pytest.approx(seconds)


def test_only_a_long_load_is_warned_of_and_no_timed_one() -> None:
    said = warning_before(Concurrency(1), Extent(requests=1000), FIXED)
    assert said is not None and said.startswith(
        "concurrency 1: this takes at least 17 min; --duration 10m"
    )
    assert warning_before(Concurrency(16), Extent(requests=1000), FIXED) is None
    assert warning_before(Rate(0.1), Extent(requests=1000, duration_s=5), FREE) is None


def test_the_command_says_it_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_folder: Path, write_prompts
) -> None:
    def measure(*_: object) -> None:
        raise UserError("here the run would start")

    monkeypatch.setattr(api, "measure", measure)
    flags = {
        **{"tokenizer-path": tokenizer_folder, "input-data": write_prompts(*"abc")},
        **{
            "request-rate": 0.001,
            "arrival": "constant",
            "profile-export-file": tmp_path / "x.json",
        },
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    done = CliRunner().invoke(command, words, standalone_mode=False)
    assert "rate 0.001/s: this takes at least 33 min; --duration 10m" in done.output
    assert str(done.exception) == "here the run would start"


def test_a_slow_pace_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.show_progress("concurrency 1", warning_meanwhile) as watch:
        for seconds, done in ((10, 1), (40, 4), (80, 8)):
            now[0] = seconds
            watch(progress.Progress(done, 1000, 0))
    said = sys.stderr.getvalue()
    assert said.count("at this pace it takes another 2 h 46 min; --duration 10m") == 1
    assert warning_meanwhile(900, 1000, 40) is None and warning_meanwhile(5, None, 40) is None

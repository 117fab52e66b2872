from __future__ import annotations

import io
import re

import pytest

from llm_perf.figures.goodput import parse_goodput
from llm_perf.figures.metrics import DEFINITIONS
from llm_perf.load.load import Concurrency, Rate
from llm_perf.record import Status
from llm_perf.results.run import Run
from llm_perf.results.table import print_run, print_summary
from tests.client.runs import asked, make_run


def printed(run: Run, **how: bool) -> str:
    file = io.StringIO()
    print_run(run, file, **how)
    return file.getvalue()


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.split("\n") if label in line)
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


def test_the_table_has_the_columns_and_the_n_of_each_row() -> None:
    short = asked(1, tokens=1, chunks_ms=(300,))
    text = printed(make_run([asked(0), short, asked(2, status=Status.TIMEOUT, chunks_ms=())]))
    head = row(text, "Statistic")
    assert head == [
        *("Statistic", "avg", "min", "max", "std", "p99", "p90", "p75", "p50", "p25"),
        "n / failed",
    ]
    # TTFT 50 and 200 ms
    assert row(text, "Time to first token (ms)") == [
        *("Time to first token (ms)", "125.00", "50.00", "200.00", "75.00"),
        *("198.50~", "185.00", "162.50", "125.00", "87.50", "2 / 1"),
    ]
    assert row(text, "Inter token latency (ms)")[1] == "10.00"
    assert row(text, "Inter token latency (ms)")[-1] == "1 / 1"
    assert "Requests ok / failed: 2 / 1" in text
    assert "Time to first token (ms), failures as infinity: p50 200.00, p90 inf, p99 inf" in text
    assert "from schedule" not in text and "Server:" not in text


def test_a_p99_of_fewer_than_100_is_marked() -> None:
    few, enough = (printed(make_run([asked(i) for i in range(n)])) for n in (99, 100))
    assert row(few, "Time to first token (ms)")[5] == "50.00~"
    assert "~ p99 of fewer than 100 values: as good as their maximum" in few
    assert "~" not in enough


def test_an_open_loop_shows_both_clocks() -> None:
    text = printed(make_run([asked()], Rate(2)))
    assert row(text, "Time to first token (ms)")[1] == "50.00"
    assert row(text, "Time to first token from schedule (ms)")[1] == "70.00"
    assert row(text, "Request latency from schedule (ms)")[1] == "110.00"


def test_counts_that_differ_by_over_a_percent_are_flagged_in_the_table() -> None:
    fine = [asked(index, tokens=100, tokenizer_tokens=101) for index in range(3)]
    assert "Output sequence length (tokens) (!)" not in printed(make_run(fine))
    text = printed(make_run([*fine, asked(3, tokens=100, tokenizer_tokens=102)]))
    assert "Output sequence length (tokens) (!)" in text
    assert "count 4 of 4 answers differently (400 and 405 tokens in all, over 1%" in text


def test_differences_up_and_down_do_not_cancel() -> None:
    run = make_run(
        [asked(0, tokens=10, tokenizer_tokens=9), asked(1, tokens=9, tokenizer_tokens=10)]
    )
    assert run.token_counts.server == run.token_counts.tokenizer
    assert run.token_counts.difference == 2 and run.token_counts.flagged


@pytest.mark.parametrize(
    ("record", "note"),
    [
        (asked(answer="prompt 0 one"), "all answers begin with their prompt"),
        (asked(max_tokens=5), "1 of 1 answers reached max_tokens: the run is not EOS-terminated"),
        (asked(answer="a\ufffdb"), "1 of 1 answers hold U+FFFD"),
        (asked(tokens=None), "output tokens counted by the tokenizer"),
        (
            asked(min_tokens=6, max_tokens=6),
            "1 of 1 answers haven't the length asked for (first: 5 of 6)",
        ),
    ],
)
def test_what_is_odd_is_noted(record, note: str) -> None:
    assert [each for each in make_run([record]).notes if note in each]


def test_a_run_as_it_should_be_has_no_notes() -> None:
    assert make_run([asked(), asked(1, min_tokens=5, max_tokens=5)]).notes == ()


def test_scores_have_intervals_and_categories() -> None:
    right = [asked(i, answer="x", reference="x", category="en") for i in range(3)]
    wrong = [asked(3, answer="x", reference="y", category="zh")]
    text = printed(make_run([*right, *wrong]))
    assert "Score (exact match): 0.7500 (n = 4), 95 % interval 0.3006 to 0.9544" in text
    assert "  en: 1.0000 (n = 3)" in text and "  zh: 0.0000 (n = 1)" in text
    assert "Score (f1): 0.7500" in printed(make_run([*right, *wrong], scorer="f1"))


def test_goodput_is_printed_with_its_limits() -> None:
    run = make_run([asked(0), asked(1, status=Status.CUT)])
    run.metrics["request_goodput"] = parse_goodput("ttft:1s,itl:50ms").metric(run.records)
    text = printed(run)
    assert "Goodput (requests/s): 11.11; 50.0% of 2 requests" in text  # one in 90 ms
    assert "kept: ttft<=1s, itl<=50ms" in text


def test_every_figure_is_explained_on_request() -> None:
    run = make_run([asked(0), asked(1, tokens=1, chunks_ms=(300,))])
    assert "computed" not in printed(run)
    text = printed(run, explain=True)
    for each in DEFINITIONS.values():
        if each.key in run.metrics:
            n = run.metrics[each.key].get("count", 2)
            assert f"{each.key} ({each.unit}; n = {n}): {each.formula} [{each.source}]" in text
    assert "inter_token_latency (ms; n = 1)" in text


def test_the_summary_has_a_row_per_load() -> None:
    file = io.StringIO()
    slow = [asked(0, chunks_ms=(350, 360, 390)), asked(1, status=Status.ERROR)]
    runs = make_run([asked()]), make_run(slow, Concurrency(8))
    print_summary([run.to_json() for run in runs], file)
    head = row(file.getvalue(), "tokens/s")
    four, eight = (
        dict(zip(head, row(file.getvalue(), f"concurrency {n}"), strict=True)) for n in (4, 8)
    )
    assert (four["tokens/s"], four["TTFT p50 ms"], four["ok / failed"]) == (
        "55.56",
        "50.00",
        "1 / 0",
    )
    assert (eight["TTFT p50 ms"], eight["ok / failed"]) == ("250.00", "1 / 1")
    assert "from schedule p99" not in head and "goodput/s" not in head

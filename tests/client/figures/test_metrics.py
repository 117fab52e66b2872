from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.figures.metrics import DEFINITIONS, PERCENTILES, compute_metrics, window_ns
from llm_perf.record import Record, Status
from llm_perf.workload.workload import Prompt

MS = 1_000_000


def record(
    sent_ms: int = 0,
    chunks_ms: tuple[int, ...] = (),
    tokens: int = 0,
    status: Status = Status.OK,
    input_tokens: int = 5,
    scheduled_ms: int | None = None,
    **more: int,
) -> Record:
    return Record(
        prompt=Prompt(index=0, text="p", input_tokens=input_tokens, max_tokens=100),
        request_id="r",
        status=status,
        error=None if status is Status.OK else "broken",
        scheduled_ns=(sent_ms if scheduled_ms is None else scheduled_ms) * MS,
        sent_ns=sent_ms * MS,
        end_ns=max((sent_ms, *chunks_ms)) * MS + 7,
        chunk_ns=tuple(at * MS for at in chunks_ms),
        answer="a",
        server_tokens=tokens,
        tokenizer_tokens=99,
        first_text_ns=chunks_ms[0] * MS if chunks_ms else None,
        **more,
    )


def test_one_request_gives_the_guides_figures() -> None:
    # sent at 100 ms, responses at 150, 160, 190 ms with 5 tokens in all
    metrics = compute_metrics([record(100, (150, 160, 190), tokens=5)])
    assert metrics["time_to_first_token"]["avg"] == pytest.approx(50)
    assert metrics["request_latency"]["avg"] == pytest.approx(90)
    assert metrics["inter_token_latency"]["avg"] == pytest.approx((90 - 50) / (5 - 1))
    assert metrics["output_token_throughput_per_user"]["avg"] == pytest.approx(1 / 0.010)
    assert metrics["output_token_throughput_per_user_e2e"]["avg"] == pytest.approx(5 / 0.090)
    assert metrics["output_token_throughput"]["avg"] == pytest.approx(5 / 0.090)
    assert metrics["request_throughput"]["avg"] == pytest.approx(1 / 0.090)
    assert metrics["output_sequence_length"]["avg"] == 5
    assert metrics["input_sequence_length"]["avg"] == 5
    assert metrics["time_to_second_token"]["avg"] == pytest.approx(10)
    assert metrics["inter_chunk_latency"]["max"] == pytest.approx(30)
    assert metrics["inter_chunk_latency"]["count"] == 2


def test_throughput_runs_from_the_first_send_to_the_last_response() -> None:
    records = [record(0, (10, 500), tokens=10), record(250, (300, 1000), tokens=30)]
    metrics = compute_metrics(records)
    assert window_ns(records) == 1000 * MS
    assert metrics["output_token_throughput"]["avg"] == pytest.approx(40)
    assert metrics["request_throughput"]["avg"] == pytest.approx(2)
    assert metrics["request_count"]["avg"] == 2


def test_every_percentile_is_over_requests_not_over_tokens() -> None:
    metrics = compute_metrics([record(0, (10, 20), tokens=2), record(0, (10, 1010), tokens=101)])
    assert metrics["inter_token_latency"]["avg"] == pytest.approx(10)
    assert metrics["inter_token_latency"]["std"] == pytest.approx(0)


def test_an_answer_of_one_token_has_no_itl_but_counts_elsewhere() -> None:
    metrics = compute_metrics([record(0, (10,), tokens=1), record(0, (10, 30), tokens=3)])
    assert metrics["inter_token_latency"]["count"] == 1
    assert metrics["time_to_first_token"]["count"] == 2
    assert metrics["output_sequence_length"]["count"] == 2


def test_an_answer_in_one_piece_has_no_itl() -> None:
    metrics = compute_metrics([record(0, (10,), tokens=64)])
    assert metrics["inter_token_latency"]["avg"] is None
    assert metrics["output_token_throughput_per_user"]["count"] == 0


def test_percentiles_among_infinite_paces_are_infinite_and_not_unknown() -> None:
    at_once = [record(0, (10, 10), tokens=2) for _ in range(2)]
    pace = compute_metrics([record(0, (10, 20), tokens=2), *at_once])
    per_user = pace["output_token_throughput_per_user"]
    assert (per_user["min"], per_user["p75"], per_user["p99"]) == (pytest.approx(100), "inf", "inf")


def test_failed_requests_stay_out_of_the_figures_but_in_the_window() -> None:
    good = record(0, (10, 100), tokens=9)
    failed = record(0, (10, 200), tokens=5, status=Status.CUT)
    metrics = compute_metrics([good, failed])
    assert metrics["request_count"]["avg"] == 1
    assert metrics["request_latency"]["max"] == pytest.approx(100)
    assert metrics["output_token_throughput"]["avg"] == pytest.approx(9 / 0.2)


def test_an_empty_answer_has_no_times_and_no_tokens() -> None:
    metrics = compute_metrics([record(0, (), tokens=0), record(0, (10, 20), tokens=2)])
    assert metrics["time_to_first_token"]["count"] == 1
    assert metrics["output_sequence_length"]["min"] == 0
    assert metrics["request_count"]["avg"] == 2


def test_nothing_seen_gives_none_not_zero() -> None:
    metrics = compute_metrics([record(0, (), status=Status.ERROR)])
    assert metrics["request_throughput"]["avg"] is None
    assert metrics["time_to_first_token"]["p99"] is None
    assert metrics["request_count"]["avg"] == 0


def test_the_tokenizer_counts_where_the_server_does_not() -> None:
    silent = Record(
        prompt=Prompt(0, "p", 1, 10),
        request_id="r",
        status=Status.OK,
        error=None,
        scheduled_ns=0,
        sent_ns=0,
        end_ns=3,
        chunk_ns=(1, 2),
        answer="a",
        server_tokens=None,
        tokenizer_tokens=7,
    )
    assert compute_metrics([silent])["output_sequence_length"]["avg"] == 7


def test_in_an_open_loop_waiting_at_the_client_counts_from_the_schedule() -> None:
    # due at 100 ms, sent at 400 ms, responses at 450 and 490 ms
    late = record(400, (450, 490), tokens=5, scheduled_ms=100)
    metrics = compute_metrics([late], open_loop=True)
    assert metrics["time_to_first_token"]["avg"] == pytest.approx(50)
    assert metrics["time_to_first_token_from_schedule"]["avg"] == pytest.approx(350)
    assert metrics["request_latency"]["avg"] == pytest.approx(90)
    assert metrics["request_latency_from_schedule"]["avg"] == pytest.approx(390)
    assert "time_to_first_token_from_schedule" not in compute_metrics([late])


def test_the_servers_own_times_split_ttft() -> None:
    split = record(0, (50, 60), tokens=2, queue_ns=20 * MS, prefill_ns=25 * MS)
    metrics = compute_metrics([split, record(0, (70, 80), tokens=2)])
    for key, value in (
        ("server_queue_time", 20),
        ("server_prefill_time", 25),
        ("ensemble_network_overhead", 5),
    ):
        assert (metrics[key]["avg"], metrics[key]["count"]) == (pytest.approx(value), 1)
    assert "server_queue_time" not in compute_metrics([record(0, (70, 80), tokens=2)])


def test_a_failed_request_is_infinitely_late_in_the_adjusted_percentiles() -> None:
    good = [record(0, (at, 2 * at), tokens=2) for at in range(1, 9)]  # TTFT 1 … 8 ms
    failed = [record(0, (), status=Status.TIMEOUT)] * 2
    ttft = compute_metrics(good + failed)["time_to_first_token"]
    # of ten: ranks 0 … 9, p50 is rank 4.5 → 4, p90 rank 8.1 → 8
    assert (ttft["adjusted_p50"], ttft["adjusted_p90"]) == (pytest.approx(5), "inf")
    assert ttft["p99"] == pytest.approx(np.percentile(range(1, 9), 99))
    assert "adjusted_p50" not in compute_metrics(good)["time_to_first_token"]
    assert "adjusted_p50" not in compute_metrics(good + failed)["output_sequence_length"]


def test_a_request_that_was_never_sent_does_not_stretch_the_run() -> None:
    good = record(5000, (5100, 6000), tokens=9)
    refused = record(0, (), status=Status.REFUSED)
    assert window_ns([good, refused]) == 1000 * MS


def test_every_metric_has_a_formula_and_a_source() -> None:
    split = record(
        0, (1, 2), tokens=2, queue_ns=1, prefill_ns=1, kv_cache_reused_blocks=1, cached_tokens=1
    )
    metrics = compute_metrics([split], open_loop=True)
    assert DEFINITIONS.keys() == {*metrics, "request_goodput"}
    assert all(DEFINITIONS[key].unit == metric["unit"] for key, metric in metrics.items())
    assert all(each.formula and each.source for each in DEFINITIONS.values())


_streams = st.builds(
    lambda sent, gaps, tokens: record(
        sent, tuple(int(at) for at in sent + np.cumsum(gaps)), tokens=tokens
    ),
    st.integers(0, 10_000),
    st.lists(st.integers(1, 5_000), min_size=1, max_size=20),
    st.integers(1, 500),
)


@given(st.lists(_streams, min_size=1, max_size=40))
def test_distributions_agree_with_numpy(records: list[Record]) -> None:
    metric = compute_metrics(records)["request_latency"]
    truth = np.array([(r.chunk_ns[-1] - r.sent_ns) / 1e6 for r in records])
    assert metric["avg"] == pytest.approx(truth.mean())
    assert metric["std"] == pytest.approx(truth.std(), abs=1e-6)
    for percent in PERCENTILES:
        assert metric[f"p{percent}"] == pytest.approx(np.percentile(truth, percent))


@given(st.lists(_streams, min_size=1, max_size=40))
def test_figures_hang_together(records: list[Record]) -> None:
    metrics = compute_metrics(records)
    for name in ("time_to_first_token", "request_latency", "output_sequence_length"):
        metric = metrics[name]
        spread = [metric["min"], *(metric[f"p{p}"] for p in PERCENTILES), metric["max"]]
        assert spread == sorted(spread)
        assert metric["count"] == len(records)
    for name in ("avg", "max", "p50"):
        assert metrics["time_to_first_token"][name] <= metrics["request_latency"][name]
    tokens = sum(r.output_tokens for r in records)
    window_s = window_ns(records) / 1e9
    assert metrics["output_token_throughput"]["avg"] * window_s == pytest.approx(tokens)
    for r in records:
        if r.itl_ns is not None:
            assert r.ttft_ns + r.itl_ns * (r.output_tokens - 1) == pytest.approx(r.latency_ns)


@given(st.lists(_streams, min_size=1, max_size=20), st.integers(0, 10**15))
def test_figures_do_not_depend_on_the_clocks_origin(records: list[Record], shift: int) -> None:
    moved = [
        record(
            r.sent_ns // MS + shift // MS,
            tuple(at // MS + shift // MS for at in r.chunk_ns),
            tokens=r.output_tokens,
        )
        for r in records
    ]
    assert compute_metrics(moved) == compute_metrics(records)


def test_the_documentation_has_every_metric_as_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    for each in DEFINITIONS.values():
        assert f"| `{each.key}` | {each.unit} | {each.formula} | {each.source} |\n" in page
    assert page.count("\n| `") == len(DEFINITIONS) + 6  # and the files

"""The whole client against a scripted server: counts, order and status, never wall time."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from llm_perf.api import (
    Concurrency,
    Progress,
    Run,
    Status,
    write_run,
)
from llm_perf.errors import UserError
from tests.client.scripted import (
    ENSEMBLE,
    FINAL,
    Abort,
    Fail,
    Hang,
    Say,
    ScriptedTriton,
    Step,
    Wait,
)

GOOD = [Say("one", 1), Say(" two", 1), FINAL]
SCRIPTS: dict[str, list[Step]] = {
    # 4 chunks of 9 tokens; nothing but tokens in one, nothing at all in another
    "chunks": [
        Say("", 0),
        Wait(0.01),
        Say("ab", 2),
        Wait(0.01),
        Say("", 1),
        Wait(0.01),
        Say("é", 1),
        Wait(0.01),
        Say("xyz", 5, final=True),
    ],
    "null final": GOOD,
    "end of stream": GOOD[:-1],
    "final on data": [Say("one", 1), Say(" two", 1, final=True)],
    "split": [Say(b"\xe4\xb8", 1), Say(b"\x89", 1), FINAL],
    "nothing": [FINAL],
    "silence": [],
    "refused": [Fail("prompt is too long"), FINAL],
    "fails late": [Say("one", 1), Fail("out of pages"), FINAL],
    "cut": [Say("one", 1), Abort()],
    "rejected": [Abort(grpc.StatusCode.RESOURCE_EXHAUSTED)],
    "hangs": [Say("one", 1), Hang()],
}


def test_known_chunks_give_known_counts_and_ordered_times(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        run = ask(server, "chunks")
    (record,) = run.records
    assert record.status is Status.OK
    assert record.answer == "abéxyz"
    assert record.server_tokens == record.output_tokens == 9
    assert record.tokenizer_tokens == 7  # bytes, with this tokenizer
    assert len(record.chunk_ns) == 4
    assert record.scheduled_ns <= record.sent_ns < record.chunk_ns[0]
    assert sorted(record.chunk_ns) == list(record.chunk_ns)
    assert record.chunk_ns[-1] <= record.end_ns
    # the server sleeps 10 ms before each: no clock, however late, can have seen less since sending
    for number, at in enumerate(record.chunk_ns, start=1):
        assert at - record.sent_ns >= number * 10_000_000
    assert run.metrics["output_sequence_length"]["avg"] == 9
    assert run.metrics["inter_token_latency"]["avg"] == pytest.approx(
        (record.latency_ns - record.ttft_ns) / 8 / 1e6
    )
    counts = run.to_json()["token_counts"]
    assert (counts["source"], counts["server"], counts["tokenizer"]) == ("server", 9, 7)
    assert counts["mismatches"] == 1


@pytest.mark.parametrize("ending", ["null final", "end of stream", "final on data"])
def test_all_three_ends_of_a_stream_give_the_same_record(
    ending: str, ask: Callable[..., Run]
) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        (record,) = ask(server, ending).records
    assert (record.status, record.answer, record.output_tokens) == (Status.OK, "one two", 2)
    assert len(record.chunk_ns) == 2


def test_a_character_split_between_responses_is_whole_in_the_answer(
    ask: Callable[..., Run],
) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        assert ask(server, "split").answers == ("三",)


def test_an_answer_without_tokens_is_empty_and_silence_is_an_error(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        nothing, silence = ask(server, "nothing", "silence").records
    assert (nothing.status, nothing.chunk_ns, nothing.ttft_ns) == (Status.EMPTY, (), None)
    assert silence.status is Status.ERROR
    assert silence.error == "the stream ended without a response"


def test_one_requests_failure_is_its_own(ask: Callable[..., Run]) -> None:
    prompts = ["refused", "fails late", "cut", "rejected", "hangs", "null final"]
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        run = ask(server, *prompts, load=Concurrency(2), request_timeout_s=0.5)
    assert [record.status.value for record in run.records] == [
        "error",
        "error",
        "cut",
        "error",
        "timeout",
        "ok",
    ]
    assert run.records[0].error == "prompt is too long"
    assert run.records[2].error == "UNAVAILABLE: scripted"
    assert run.answers == ("", "one", "one", "", "one", "one two")
    assert (run.requests_ok, run.requests_failed) == (1, 5)
    assert run.metrics["request_count"]["avg"] == 1
    assert run.notes[0].startswith("failed requests: 3 error, 1 cut, 1 timeout; the first: prompt")


@pytest.mark.parametrize("n", [1, 3, 40])
def test_a_closed_loop_reaches_its_concurrency_and_never_passes_it(
    n: int, ask: Callable[..., Run]
) -> None:
    prompts = [f"p{i}" for i in range(n * 3)]
    with ScriptedTriton(lambda prompt: GOOD, hold=n) as server:
        run = ask(server, *prompts, load=Concurrency(n))
    assert server.peak == n
    assert server.in_flight == 0
    assert run.requests_ok == len(prompts)
    assert sorted(str(asked.tensors["text_input"]) for asked in server.asked) == sorted(prompts)


def test_every_request_has_its_own_id_and_its_own_answer(ask: Callable[..., Run]) -> None:
    prompts = [f"p{i}" for i in range(20)]
    with ScriptedTriton(lambda prompt: [Say(f"re {prompt}", 1), FINAL]) as server:
        run = ask(server, *prompts, load=Concurrency(4))
    assert run.answers == tuple(f"re {prompt}" for prompt in prompts)
    asked = {request.id: request.tensors["text_input"] for request in server.asked}
    assert asked == {record.request_id: record.prompt.text for record in run.records}
    assert len(asked) == 20


def test_the_server_sees_what_the_workload_says(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD) as server:
        ask(server, {"text_input": "三", "max_tokens": 2})
    (asked,) = server.asked
    assert asked.tensors == {"text_input": "三", "max_tokens": 2, "stream": True}
    assert asked.shapes == {"text_input": [1, 1], "max_tokens": [1, 1], "stream": [1, 1]}
    assert asked.wants_empty_final
    assert set(asked.outputs) == {"text_output", "sequence_length", "output_ids"}


def test_a_model_that_is_not_decoupled_answers_in_one_piece(ask: Callable[..., Run]) -> None:
    models = (ENSEMBLE.replace("decoupled: true", "decoupled: false"),)
    with ScriptedTriton(lambda prompt: [Say("one two", 2, final=True)], models) as server:
        run = ask(server, "p")
    assert server.asked[0].tensors["stream"] is False
    assert run.answers == ("one two",)
    assert run.metrics["inter_token_latency"]["avg"] is None


def test_without_a_servers_count_the_tokenizer_counts(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: [Say("abc"), Say(""), Say("d"), FINAL]) as server:
        run = ask(server, "p")
    (record,) = run.records
    assert (record.server_tokens, record.output_tokens, len(record.chunk_ns)) == (None, 4, 2)
    assert "output tokens counted by the tokenizer" in run.notes


def test_the_score_is_exact_match_on_stripped_text(ask: Callable[..., Run]) -> None:
    prompts = [
        {"text_input": "1", "reference": "one two ", "category": "a"},
        {"text_input": "2", "reference": "One two", "category": "a"},
        {"text_input": "3"},
    ]
    with ScriptedTriton(lambda prompt: [Say("\none two", 2), FINAL]) as server:
        run = ask(server, *prompts)
    assert run.score == 0.5
    assert run.accuracy is not None
    assert run.accuracy.n == 2
    assert {name: (part.value, part.n) for name, part in run.accuracy.by_category.items()} == {
        "a": (0.5, 2)
    }


def test_without_references_there_is_no_score(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD) as server:
        assert ask(server, "p").score is None


def test_progress_ends_at_the_total(ask: Callable[..., Run]) -> None:
    seen: list[Progress] = []
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        ask(server, "null final", "cut", "null final", watch=seen.append)
    assert (seen[-1].done, seen[-1].total, seen[-1].broken) == (3, 3, 1)


def test_a_run_is_written_whole_and_reads_back(ask: Callable[..., Run], tmp_path: Path) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        run = ask(server, {"text_input": "split", "reference": "三"}, "cut")
    path, lines = write_run(run, tmp_path / "out" / "export.json")
    assert sorted(file.name for file in path.parent.iterdir()) == ["export.json", "export.jsonl"]
    document = json.loads(path.read_text())
    assert document == json.loads(json.dumps(run.to_json()))
    assert set(document["time_to_first_token"]) >= {
        *("unit", "count", "avg", "min", "max", "std"),
        *("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99"),
    }
    assert document["score"]["value"] == 1
    first, second = (json.loads(line) for line in lines.read_text().splitlines())
    assert (first["answer"], first["reference"], first["status"]) == ("三", "三", "ok")
    assert first["chunk_ns"] == list(run.records[0].chunk_ns)
    assert (second["status"], second["error"]) == ("cut", "UNAVAILABLE: scripted")


def test_a_failed_write_leaves_the_old_file(
    ask: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:
        run = ask(server, "null final")
    path, _ = write_run(run, tmp_path / "export.json")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space"):
        write_run(run, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.glob("*export*")) == [
        "export.json",
        "export.jsonl",
    ]


def test_a_server_that_goes_away_in_mid_run_leaves_records(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(SCRIPTS.__getitem__) as server:

        def stop(seen: Progress) -> None:
            if seen.done == 1:
                server._server.stop(None)

        run = ask(server, "null final", "hangs", "null final", watch=stop)
    assert [record.status.value for record in run.records] == ["ok", "cut", "refused"]


def test_no_server_names_the_place(ask: Callable[..., Run]) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Triton server answers at {url}"):
            ask(ScriptedTriton(SCRIPTS.__getitem__, url=url), "p")


def test_a_grpc_server_that_is_no_triton_is_told_apart(ask: Callable[..., Run]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    other = grpc.server(ThreadPoolExecutor(1))
    url = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    other.start()
    try:
        with pytest.raises(UserError, match="speaks gRPC, but is no Triton"):
            ask(ScriptedTriton(SCRIPTS.__getitem__, url=url), "p")
    finally:
        other.stop(None).wait()

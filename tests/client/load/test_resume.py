"""The journal, and runs that are cut and finished: by Ctrl-C, by a kill, by a crash in a write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.api import Concurrency, Rate, Run
from llm_perf.errors import UserError
from llm_perf.load.journal import Journal, Kept, decode, encode, resume_journal, start_journal
from llm_perf.record import Exchange, Status
from llm_perf.results.export import prepare_folder
from tests.client.scripted import Abort, ScriptedTriton, Step, answer

_times = st.integers(0, 2**63 - 1)
_exchanges = st.builds(
    Exchange,
    request_id=st.text(),
    scheduled_ns=_times,
    sent_ns=_times,
    end_ns=_times,
    messages=st.lists(st.tuples(_times, st.binary(max_size=40)), max_size=5),
    failure=st.none() | st.tuples(st.sampled_from(Status), st.text()),
)


@given(st.integers(), _exchanges)
def test_a_line_is_read_back(number: int, seen: Exchange) -> None:
    line = encode(number, seen)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode(line) == (number, seen)


def test_a_crash_in_mid_line_costs_that_line_only(tmp_path: Path) -> None:
    path, head = tmp_path / "j.jsonl", {"workload": "w"}
    start_journal(path, head)
    lines = [encode(number, Exchange(f"id{number}", sent_ns=number)) for number in range(3)]
    with path.open("ab") as file:
        file.write(lines[0] + lines[1][:-20])
    assert [number for number, _ in resume_journal(path, head)[0]] == [0]
    with Journal(path) as journal:
        journal.note(2, Exchange("id2"))
    assert [number for number, _ in resume_journal(path, head)[0]] == [0, 2]


def test_several_writers_keep_their_lines_apart(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    start_journal(path, {})
    with Journal(path) as one, Journal(path) as other:
        for number in range(200):
            (one, other)[number % 2].note(number, Exchange("x" * 1000))
    assert [number for number, _ in resume_journal(path, {})[0]] == list(range(200))


def test_a_full_disk_ends_the_journal_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j.jsonl"
    start_journal(path, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with Journal(path) as journal:
        journal.note(0, Exchange("id"))
    assert journal.failure == "requests are no longer kept on disk: No space left on device"
    assert journal.kept == {0: Exchange("id")}  # in memory


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    start_journal(path, {"workload": "w", "seed": 1})
    with pytest.raises(UserError, match=r"is of another run: seed differs"):
        resume_journal(path, {"workload": "w", "seed": 2})
    path.write_text("no journal\n")
    with pytest.raises(UserError, match="everything differs"):
        resume_journal(path, {"workload": "w"})


def test_without_a_journal_a_resumed_run_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    assert len(resume_journal(path, {"workload": "w"})[0]) == 0
    assert json.loads(path.read_text()) == {"workload": "w"}


@pytest.mark.parametrize("load", [Concurrency(2), Rate(200.0)])
@pytest.mark.parametrize("workers", [1, 2])
def test_only_what_is_missing_is_asked_again(
    load: Concurrency | Rate,
    workers: int,
    tmp_path: Path,
    ask: Callable[..., Run],
) -> None:
    journal = tmp_path / "j.jsonl"

    def run(server: ScriptedTriton, **options) -> Run:
        return ask(server, *"abcdefghij", load=load, journal=journal, **options)

    with ScriptedTriton(answer) as server:
        whole = run(server)
        head, *lines = journal.read_bytes().splitlines()
        kept = [line for line in lines if decode(line)[0] not in (2, 5, 9)]
        journal.write_bytes(b"\n".join([head, *kept]) + b"\n")
        server.asked.clear()
        resumed = run(server, resume=True, workers=workers)
        again = sorted(str(asked.tensors["text_input"]) for asked in server.asked)
        server.asked.clear()
        nothing = run(server, resume=True)
        assert server.asked == []
    assert again == ["c", "f", "j"]
    assert resumed.answers == nothing.answers == whole.answers
    assert resumed.notes[0].startswith("resumed: 7 of 10 requests are from before the cut")
    kept_ids = [record.request_id for record in whole.records]
    assert [r.request_id for r in resumed.records][0:2] == kept_ids[0:2]
    # what was seen before lies before what is seen now, with its gaps as they were
    before = [r for i, r in enumerate(resumed.records) if i not in (2, 5, 9)]
    now = [resumed.records[i] for i in (2, 5, 9)]
    assert max(r.end_ns for r in before) <= min(r.sent_ns for r in now)
    first = whole.records[0]
    assert resumed.records[0].ttft_ns == first.ttft_ns
    assert resumed.records[0].latency_ns == first.latency_ns


@pytest.fixture
def llm_perf(
    tmp_path: Path, tokenizer_folder: Path, write_prompts: Callable[..., Path]
) -> Callable[..., subprocess.Popen[str]]:
    path = write_prompts(*(f"p{i}" for i in range(12)))

    def start(server: ScriptedTriton, *flags: str) -> subprocess.Popen[str]:
        words = f"-u {server.url} -m ensemble --tokenizer-path {tokenizer_folder}".split()
        return subprocess.Popen(
            [sys.executable, "-m", "llm_perf.cli.main", *words, "--input-data", str(path), *flags],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[3] / "client"), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


class Gate:
    """Answers the first ``n`` prompts and keeps the others waiting until it is opened."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.lock = threading.Lock()
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, prompt: str) -> list[Step]:
        with self.lock:
            self.n -= 1
            waits = self.n < 0
        if waits:
            self.reached.set()
            self.open.wait(20)
        return answer(prompt)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_with_a_report_and_resume_finishes_the_run(
    workers: str, llm_perf, tmp_path: Path
) -> None:
    gate = Gate(5)
    flags = ("--concurrency=2", f"--workers={workers}")
    export = tmp_path / "artifacts" / "profile_export.json"
    with ScriptedTriton(gate) as server:
        running = llm_perf(server, *flags)
        assert gate.reached.wait(20)
        _wait_for_lines(export.with_suffix(".journal.jsonl"), 1 + 4)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
        gate.open.set()
        assert (running.returncode, "Traceback" in err) == (130, False), err
        first = json.loads(export.read_text())
        assert first["stopped"] == "interrupted"
        done = first["requests_ok"]
        assert 4 <= done <= 5 and "with --resume finishes the run" in out
        assert f"Requests ok / failed: {done} / 0" in out
        server.asked.clear()
        again = llm_perf(server, *flags, "--resume")
        out, err = again.communicate(timeout=20)
        assert again.returncode == 0, err
        assert len(server.asked) == 12 - done
    document = json.loads(export.read_text())
    assert (document["requests_ok"], document["stopped"]) == (12, None)
    lines = export.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [f"re p{i}." for i in range(12)]
    assert not export.with_suffix(".journal.jsonl").exists()


def test_a_killed_run_has_its_finished_requests_on_disk(llm_perf, tmp_path: Path) -> None:
    gate = Gate(5)
    journal = tmp_path / "artifacts" / "profile_export.journal.jsonl"
    with ScriptedTriton(gate) as server:
        running = llm_perf(server, "--concurrency=1,2")
        assert gate.reached.wait(20)
        _wait_for_lines(tmp_path / "artifacts" / "profile_export_concurrency1.journal.jsonl", 1 + 5)
        os.kill(running.pid, signal.SIGKILL)
        running.communicate(timeout=20)
        gate.open.set()
        server.asked.clear()
        again = llm_perf(server, "--concurrency=1,2", "--resume")
        _, err = again.communicate(timeout=20)
        assert again.returncode == 0, err
        assert len(server.asked) == 7 + 12
        server.asked.clear()
        third = llm_perf(server, "--concurrency=1,2", "--resume")
        out, _ = third.communicate(timeout=20)
        assert third.returncode == 0
        assert server.asked == [] and out.count("it was finished before") == 2
    assert not journal.exists()
    lines = (tmp_path / "artifacts" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["requests_ok"] for line in lines] == [12, 12]


@pytest.mark.parametrize(("ending", "workers"), [(signal.SIGTERM, "1"), (signal.SIGHUP, "2")])
def test_a_run_that_time_ends_goes_on_for_the_time_that_is_left(
    ending: signal.Signals, workers: str, llm_perf, tmp_path: Path
) -> None:
    export = tmp_path / "artifacts" / "profile_export.json"
    gate = Gate(5)
    flags = ("--duration=1", "--concurrency=2", f"--workers={workers}")
    with ScriptedTriton(gate) as server:
        running = llm_perf(server, *flags)
        assert gate.reached.wait(20)
        _wait_for_lines(export.with_suffix(".journal.jsonl"), 1 + 4)
        running.send_signal(ending)
        out, err = running.communicate(timeout=20)
        gate.open.set()
        assert (running.returncode, "Traceback" in err) == (130, False), err
        assert "with --resume finishes the run" in out
        again = llm_perf(server, *flags, "--resume")
        out, err = again.communicate(timeout=20)
        assert again.returncode == 0, err
    document = json.loads(export.read_text())
    assert document["stopped"] is None and document["requests_ok"] > 5
    lines = [json.loads(line) for line in export.with_suffix(".jsonl").read_text().splitlines()]
    sent = [line["sent_ns"] for line in lines]
    assert max(sent) - min(sent) <= 1_100_000_000  # both parts together, without the pause


def test_failures_are_results_and_not_asked_again(llm_perf, tmp_path: Path) -> None:
    bad = {"p1", "p2"}
    with ScriptedTriton(lambda p: [Abort()] if p in bad else answer(p)) as server:
        running = llm_perf(server, "--stop-after-failures=2")
        out, err = running.communicate(timeout=20)
        assert running.returncode == 1, err
        assert "stopped early (2 requests failed): 3 of 12 requests are in the figures" in out
        bad.clear()
        server.asked.clear()
        again = llm_perf(server, "--resume", "--max-failure-rate=20")
        again.communicate(timeout=20)
        assert again.returncode == 0  # 2 of 12 are 16.7 %
        assert len(server.asked) == 9
    document = json.loads((tmp_path / "artifacts" / "profile_export.json").read_text())
    assert (document["requests_ok"], document["requests_failed"]) == (10, 2)


def _wait_for_lines(path: Path, n: int) -> None:
    """Until so many lines are on disk."""
    pause = threading.Event()
    for _ in range(400):
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        pause.wait(0.05)
    raise AssertionError(f"{path} has no {n} lines")


def test_a_sweep_tells_of_the_loads_that_were_finished(llm_perf, tmp_path: Path) -> None:
    count = iter(range(100))
    with ScriptedTriton(answer) as server:

        def script(prompt: str) -> list[Step]:
            if next(count) == 13:  # in the second load
                threading.Thread(target=server.stop).start()
            return answer(prompt)

        server.script = script
        flags = ("--concurrency=1,2,4", "--repeat=1000", "--give-up-after=0.5")
        out, err = llm_perf(server, *flags).communicate(timeout=30)
    assert "Traceback" not in err
    assert "nothing but refusals" in out, err


def test_a_server_that_is_gone_before_the_second_load_costs_no_summary(
    llm_perf, tmp_path: Path
) -> None:
    count = iter(range(100))
    with ScriptedTriton(answer) as server:

        def script(prompt: str) -> list[Step]:
            if next(count) == 11:  # the last of the first load
                threading.Timer(0.3, server.stop).start()
            return answer(prompt)

        server.script = script
        running = llm_perf(server, "--concurrency=1,2", "--measurement-interval=2")
        out, err = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "no Triton server answers" in err or "no gRPC server answers" in err, err
    assert out.count("concurrency 1") == 2, out  # its table, and the summary


def test_pauses_are_taken_out_however_often_a_run_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    start_journal(path, {})
    for part in range(3):  # each on a clock of its own
        with Journal(path) as journal:
            for number in (2 * part, 2 * part + 1):
                at = 10**12 * (3 - part) + 100 * number
                journal.note(number, Exchange(f"{number}", at, at + 10, at + 60, [(at + 50, b"x")]))
        if part < 2:
            resume_journal(path, {})
    kept = Kept(path, {6: Exchange("6", *(10**12 + 100 * 6 + each for each in (0, 10, 60)))})
    assert [number for number, _ in kept] == list(range(7))
    sent = [seen.sent_ns for _, seen in kept]
    assert list(np.diff(sent)) == [100, 50, 100, 50, 100, 100]  # one part begins as another ends
    assert [seen.messages[0][0] - seen.sent_ns for _, seen in list(kept)[:6]] == [40] * 6
    assert (kept.passed_ns, kept.most_in_flight) == (550, 1)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=30))
def test_the_most_in_flight_is_counted(spans: list[tuple[int, int]]) -> None:
    seen = {
        number: Exchange("", sent + 1, sent + 1, sent + 1 + length)
        for number, (sent, length) in enumerate(spans)
    }
    inside = [sum(a <= at < a + n for a, n in spans if n) for at, _ in spans]
    assert Kept(None, seen).most_in_flight >= max(inside)
    assert Kept(None, seen).most_in_flight <= max(inside) + sum(n == 0 for _, n in spans)


def test_a_run_is_not_finished_at_another_server(llm_perf, tmp_path: Path) -> None:
    gate = Gate(5)
    export = tmp_path / "artifacts" / "profile_export.json"
    with ScriptedTriton(gate) as server:
        running = llm_perf(server)
        assert gate.reached.wait(20)
        _wait_for_lines(export.with_suffix(".journal.jsonl"), 1 + 5)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=20)
        gate.open.set()
    with ScriptedTriton(answer) as server:
        _, err = (again := llm_perf(server, "--resume")).communicate(timeout=20)
        assert (again.returncode, len(server.asked)) == (2, 0)
        assert "is of another run: url differs" in err and "--resume-anyway" in err
        _, err = (again := llm_perf(server, "--resume-anyway")).communicate(timeout=20)
        assert (again.returncode, len(server.asked)) == (0, 7), err
    document = json.loads(export.read_text())
    assert "resumed anyway at another server (url differs)" in " ".join(document["notes"])


def test_what_the_server_is_belongs_to_the_run(tmp_path: Path) -> None:
    path, head = tmp_path / "j.jsonl", {"load": 1, "server": {"version": "1"}}
    start_journal(path, head)
    other = {**head, "server": {"version": "2"}}
    with pytest.raises(UserError, match=r"server differs; .* --resume-anyway mixes"):
        resume_journal(path, other)
    assert resume_journal(path, other, anyway=True)[1] == ["server"]
    with pytest.raises(UserError, match="load, server differs"):
        resume_journal(path, {**other, "load": 2}, anyway=True)


def test_a_second_run_on_the_same_files_is_refused(llm_perf, tmp_path: Path) -> None:
    gate = Gate(0)
    with ScriptedTriton(gate) as server:
        first = llm_perf(server)
        assert gate.reached.wait(20)
        _, err = (second := llm_perf(server)).communicate(timeout=20)
        assert (second.returncode, "another run is writing there" in err) == (2, True), err
        gate.open.set()
        _, err = first.communicate(timeout=20)
        assert first.returncode == 0, err
        _, err = (third := llm_perf(server)).communicate(timeout=20)
        assert third.returncode == 0, err
    assert not list((tmp_path / "artifacts").glob(".*"))


def test_what_can_not_be_written_costs_neither_table_nor_journal(llm_perf, tmp_path: Path) -> None:
    export = tmp_path / "artifacts" / "profile_export.json"
    (export.with_suffix(".jsonl") / "in the way").mkdir(parents=True)
    with ScriptedTriton(answer) as server:
        out, err = (running := llm_perf(server)).communicate(timeout=20)
        assert running.returncode == 2
        assert "Requests ok / failed: 12 / 0" in out
        assert err.splitlines()[-1].startswith("llm_perf: artifacts/profile_export.jsonl: can't be")
        assert json.loads(export.read_text())["requests_ok"] == 12  # what can be written is
        (export.with_suffix(".jsonl") / "in the way").rmdir()
        export.with_suffix(".jsonl").rmdir()
        export.unlink()
        server.asked.clear()
        out, err = (running := llm_perf(server, "--resume")).communicate(timeout=20)
        assert (running.returncode, server.asked) == (0, []), err
    assert export.with_suffix(".jsonl").read_text().count("\n") == 12


def test_a_full_disk_is_said_before_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="can't be written to: No space left on device"):
        prepare_folder(tmp_path / "x.json")


def test_a_terminal_that_is_closed_costs_no_file(llm_perf, tmp_path: Path) -> None:
    export = tmp_path / "artifacts" / "profile_export.json"
    gate = Gate(5)
    with ScriptedTriton(gate) as server:
        running = llm_perf(server)
        assert gate.reached.wait(20)
        _wait_for_lines(export.with_suffix(".journal.jsonl"), 1 + 5)
        running.stdout.close()
        running.stderr.close()
        running.send_signal(signal.SIGHUP)
        running.wait(20)
        gate.open.set()
    assert json.loads(export.read_text())["requests_ok"] == 5

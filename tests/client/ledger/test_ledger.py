"""A measurement that was appended is there whole, whatever happens to its writer."""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.ledger.ledger import NAME, append_measurement, finished, read_measurements
from llm_perf.ledger.measurement import Measurement, Planned, Target
from llm_perf.load.load import Concurrency, Extent, Rate
from llm_perf.record import Status
from tests.client.runs import asked, make_run

RUN = make_run([asked(0, reference="one two"), asked(1, tokens=9, chunks_ms=(200, 290))])
CELL = Target(
    "a_fp8",
    "127.0.0.1:1",
    "grpc",
    "ensemble",
    gpus=2,
    cell={"precision": "fp8"},
    artifacts={"repository": "k"},
)
PLANNED = Planned(CELL, Concurrency(4), RUN.workload, study="s")
QUERY = Path(__file__).parents[3] / "docs/ledger.md"


def made(repetition: int = 0, **changed: Any) -> Measurement:
    return {**replace(PLANNED, repetition=repetition).measured(RUN), **changed}  # type: ignore[typeddict-item]


def test_a_measurement_says_what_was_measured_and_how(tmp_path: Path) -> None:
    append_measurement(tmp_path, made())
    (line,) = (tmp_path / NAME).read_text().splitlines()
    read = json.loads(line)
    assert read == read_measurements(tmp_path)[0]
    assert read["id"] == PLANNED.id and re.fullmatch("[0-9a-f]{16}", read["id"])
    assert read["metrics"] == RUN.metrics
    assert read["load"]["kind"] == "concurrency" and read["load"]["arrivals"] == "closed"
    assert read["load"]["requests"] == 2
    assert read["workload"]["osl_avg"] == 7 and read["workload"]["osl_sd"] == 2
    assert read["duration_s"] == pytest.approx(0.19)  # 100 ms to 290 ms
    assert read["score"]["value"] == 1
    assert read["status"] == "ok" and read["error"] is None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 10**6), kept=st.integers(0, 3))
def test_wherever_a_kill_cuts_the_file_whole_lines_stay_and_appending_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, kept: int
) -> None:
    folder = tmp_path_factory.mktemp("study")
    for number in range(kept):
        append_measurement(folder, made(number))
    path = folder / NAME
    whole = path.read_bytes() if kept else b""
    torn = json.dumps(made(kept, notes=["a line that was longer"] * 99)).encode() + b"\n"
    path.write_bytes(whole + torn[: cut % len(torn)])
    assert [each["repetition"] for each in read_measurements(folder)] == list(range(kept))
    append_measurement(folder, made(9))
    assert [each["repetition"] for each in read_measurements(folder)] == [*range(kept), 9]
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def _append_many(folder: Path, first: int) -> None:
    for number in range(first, first + 40):
        append_measurement(folder, made(number))


def test_processes_that_append_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_append_many, args=(tmp_path, 40 * number)) for number in range(3)
    ]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert sorted(each["repetition"] for each in read_measurements(tmp_path)) == list(range(120))


def test_a_disk_that_is_full_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    append_measurement(tmp_path, made())
    before = (tmp_path / NAME).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(UserError, match="can't be written"):
            append_measurement(tmp_path, made(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / NAME).read_bytes() == before


def test_the_last_of_an_id_counts(tmp_path: Path) -> None:
    append_measurement(tmp_path, PLANNED.failed("no\nroom \x1b[2J"))
    append_measurement(tmp_path, made(1))
    assert finished(read_measurements(tmp_path)) == {replace(PLANNED, repetition=1).id}
    assert "\n" not in (read_measurements(tmp_path)[0]["error"] or "\n")
    assert "\x1b" not in (tmp_path / NAME).read_text()
    append_measurement(tmp_path, made())
    assert [each["repetition"] for each in read_measurements(tmp_path)] == [1, 0]
    assert len(finished(read_measurements(tmp_path))) == 2


def test_a_load_that_nobody_answered_failed_and_says_why() -> None:
    refused = asked(chunks_ms=(), answer="", status=Status.REFUSED)
    nothing = PLANNED.measured(make_run([refused], remarks=("cold",)))
    assert (nothing["status"], nothing["requests_failed"]) == ("failed", 1)
    assert nothing["error"] == "failed requests: 1 refused; the first: out of pages"
    assert PLANNED.measured(make_run([]))["error"] == "no request was sent"
    assert PLANNED.measured(make_run([refused, asked(1)]))["status"] == "ok"
    assert PLANNED.measured(make_run([asked()], stopped="Ctrl-C"))["status"] == "stopped"


def test_an_identity_is_of_what_is_measured_and_not_of_the_day() -> None:
    same = [
        replace(PLANNED, target=replace(CELL, url="127.0.0.1:2", deployment_sha256="x")),
        replace(PLANNED, target=replace(CELL, protocol="openai", model="served")),
        replace(PLANNED, study="other", versions={"trtllm_deploy": "9"}),
    ]
    assert {each.id for each in same} == {PLANNED.id}
    server = replace(CELL, artifacts=None, cell=None)
    others = [
        replace(PLANNED, load=Concurrency(5)),
        replace(PLANNED, load=Rate(4)),
        replace(PLANNED, load=Rate(4, arrival="constant")),
        replace(PLANNED, extent=Extent(duration_s=2)),
        replace(PLANNED, seed=1),
        replace(PLANNED, repetition=1),
        replace(PLANNED, kind="block"),
        replace(PLANNED, unique_prefix=True),
        replace(PLANNED, workload=replace(RUN.workload, sha256="0")),
        replace(PLANNED, target=replace(CELL, artifacts={"repository": "l"})),
        replace(PLANNED, target=replace(CELL, cell={"precision": "fp16"})),
        replace(PLANNED, target=server),
        replace(PLANNED, target=replace(server, url="127.0.0.1:2")),
        replace(PLANNED, target=replace(server, transport="chat")),
    ]
    assert len({each.id for each in (PLANNED, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "is no JSON"),
        ("[]", "is no measurement"),
        ('{"id": "a"}', "is no measurement: it lacks load, metrics"),
        (json.dumps({**made(), "schema": 2}), "is of schema 2"),
    ],
)
def test_a_line_that_is_no_measurement_is_named(tmp_path: Path, line: str, wrong: str) -> None:
    append_measurement(tmp_path, made())
    with (tmp_path / NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=f"{NAME}:2: {wrong}"):
        read_measurements(tmp_path)


def test_every_field_is_documented() -> None:
    text = QUERY.read_text(encoding="utf-8")
    rows = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`\.?(\w+(?:\.\w+)?)`", rows))
    line = made()
    for key, value in line.items():
        parts = value if key in {"target", "load", "workload"} else ()
        for name in parts or (key,):
            assert {name, f"{key}.{name}"} & named or key == "files", f"{key}.{name}"


def test_the_query_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb")
    for number in range(2):
        append_measurement(tmp_path, made(number))
    append_measurement(tmp_path, made(1))
    append_measurement(tmp_path, replace(PLANNED, repetition=2).failed("x"))
    (query,) = re.findall(r"```sql\n(.*?)```", QUERY.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    ((name, load, runs, per_gpu, spread, *_),) = duckdb.sql(query).fetchall()
    assert (name, load, runs, spread) == ("a_fp8", 4, 2, 0)
    assert per_gpu == pytest.approx(RUN.metrics["output_token_throughput"]["avg"] / 2)

"""A sweep's ledger: a line per load and repetition, whatever the sweep's end is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_perf.ledger.ledger import NAME, read_measurements
from llm_perf.report.points import points_of
from llm_perf.report.read import read_results
from tests.client.scripted import ScriptedTriton

DIES = """
import os, signal
from llm_perf import api
kept = api.append_measurement

def append(folder, line):
    def die(place):
        if line["load"]["value"] == 2 and place == "{place}":
            os.kill(os.getpid(), signal.SIGKILL)
    die("before its line")
    kept(folder, line)
    die("after its line")

api.append_measurement = append
from llm_perf.cli.main import main; main()
"""
QUERY = Path(__file__).parents[3] / "docs/ledger.md"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


@pytest.mark.parametrize("place", ["before its line", "after its line"])
def test_a_killed_sweep_goes_on_and_no_record_is_lost_or_doubled(
    place: str, llm_perf, server: ScriptedTriton, tmp_path: Path
) -> None:
    folder = tmp_path / "artifacts"
    killed = llm_perf(code=DIES.format(place=place), concurrency="1,2,3")
    assert killed.returncode == -9
    assert len(server.asked) == 6 and len(lines(folder)) == 1 + (place == "after its line")
    before = (folder / NAME).read_bytes()
    done = llm_perf(concurrency="1,2,3", resume=None)
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == 9  # the journal had those of the load that was cut
    assert (folder / NAME).read_bytes().startswith(before)
    assert [(each["load"]["value"], each["status"]) for each in lines(folder)] == [
        *((n, "ok") for n in (1, 2, 3))
    ]
    assert len({each["id"] for each in lines(folder)}) == 3
    assert not list(folder.glob("*.journal.jsonl"))
    assert len(json.loads((folder / "profile_export.json").read_text())["loads"]) == 3
    _, summary = done.stdout.split("llm_perf | all loads")
    assert [summary.count(f"concurrency {n} ") for n in (1, 2, 3)] == [1, 1, 1]
    again = llm_perf(concurrency="1,2,3", resume=None)
    assert again.stdout.count("it was finished before") == len(lines(folder)) == 3
    assert len(server.asked) == 9


def test_of_a_sweep_that_was_begun_anew_and_cut_nothing_older_counts(
    llm_perf, sweep, server: ScriptedTriton, tmp_path: Path
) -> None:
    assert sweep(concurrency="1,2,3").return_value == 0
    assert "no Triton server answers" in str(
        sweep(concurrency="1,2,3", url="localhost:1").exception
    )
    assert not list((tmp_path / "artifacts").glob("*.journal.jsonl"))  # nothing was begun
    assert llm_perf(code=DIES.format(place="before its line"), concurrency="1,2,3").returncode == -9
    server.asked.clear()
    done = sweep(concurrency="1,2,3", resume=None)
    assert done.stdout.count("it was finished before") == 1  # concurrency 1, of the second time
    assert len(server.asked) == 3  # of 2 the journal had all


def test_repetitions_are_lines_of_one_point_and_the_docs_query_reads_them(
    sweep, server: ScriptedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sweep(request_rate="200,inf", repetitions=2, seed=5)
    assert done.return_value == 0
    folder = tmp_path / "artifacts"
    told = [(each["load"]["value"], each["repetition"], each["seed"]) for each in lines(folder)]
    assert told == [(200, 0, 5), (None, 0, 5), (200, 1, 6), (None, 1, 6)]
    assert {each["target"]["name"] for each in lines(folder)} == {server.url}
    points = points_of(read_results([str(folder)]))
    assert [(p.target, p.value, len(p.lines)) for p in points] == [
        *((server.url, value, 2) for value in (200, None))
    ]
    duckdb = pytest.importorskip("duckdb")
    (query,) = re.findall(r"```sql\n(.*?)```", QUERY.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    read = duckdb.sql(query.replace("'concurrency'", "'request_rate'")).fetchall()
    assert {(name, rate, runs) for name, rate, runs, *_ in read} == {
        (server.url, 200, 2),
        (server.url, None, 2),
    }
    (folder / NAME).unlink()  # results of before there was one
    assert len(read_results([str(folder)])) == 4


def test_another_command_in_the_folder_takes_nothing_of_what_is_resumed(
    sweep, server: ScriptedTriton, tmp_path: Path
) -> None:
    folder = tmp_path / "artifacts"
    assert sweep(concurrency="1,2").return_value == 0
    assert sweep(["d", "e"], concurrency="1").return_value == 0  # profile_export.json is this
    assert sweep(["d", "e"], concurrency="1,2").return_value == 0
    shown = read_results([str(folder)])
    assert {each.record["workload"]["prompts"] for each in shown} == {2}
    assert len(shown) == 2  # what was written over stays in the ledger alone
    assert len(lines(folder)) == 5 and len(read_measurements(folder)) == 4
    server.asked.clear()
    done = sweep(concurrency="2,4", resume=None)  # the files of the first are the third's now
    assert done.return_value == 0
    assert len(server.asked) == 6
    done = sweep(concurrency="2,4,8", repetitions=2, resume=None)
    assert (done.return_value, len(server.asked)) == (0, 6 + 12)
    assert done.stdout.count("it was finished before") == 2


def test_sweeps_are_called_as_their_files_and_folders_tell_them_apart(
    sweep, server: ScriptedTriton, tmp_path: Path
) -> None:
    for name in ("old/fp16", "old/fp8", "new/fp8"):
        place = tmp_path / f"{name}.json"
        assert sweep(profile_export_file=place).return_value == 0
    old, new = str(tmp_path / "old"), str(tmp_path / "new")

    def called(*words: str) -> list[str]:
        return [each.target for each in read_results(words)]

    assert called(old) == ["fp16", "fp8"]
    assert called(old, new) == ["fp16", "old/fp8", "new"]
    assert called(f"a={old}", f"b={new}") == ["a/fp16", "a/fp8", "b"]
    assert called(f"{old}/fp8.json", f"{new}/fp8.json") == ["old", "new"]
    assert called(old, old) == ["fp16", "fp8"]

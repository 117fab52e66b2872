"""``compare``: servers in alternation, over the same prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llm_perf import Concurrency, Endpoint, Target, load_workload
from llm_perf.errors import UserError
from llm_perf.ledger.ledger import read_measurements
from tests.deploy.study.token_server import TokenServer, token_servers
from trtllm_deploy.cli.compare import compare
from trtllm_deploy.study.blocks import Offer, Study, Subject
from trtllm_deploy.study.compare import compare as compare_subjects
from trtllm_deploy.study.up import Up

PROMPTS = [f"prompt {number}" for number in range(16)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = (json.dumps({"text_input": each, "reference": "one one one"}) for each in PROMPTS)
    path.write_text("\n".join(lines))
    return path


def invoke(data: Path, servers: list[TokenServer], *words: object) -> Result:
    urls = [each.url for each in servers]
    options = ("--workspace", data.parent / "w", "--data", data, "--requests", 4, "--blocks", 4)
    return CliRunner().invoke(
        compare, [*urls, *map(str, (*options, *words))], standalone_mode=False
    )


def test_servers_are_asked_the_same_in_turns_and_a_cut_block_again_whole(data: Path) -> None:
    with token_servers(3, 4) as servers:
        came = invoke(data, servers, "--json", "--fail-if", "osl.p95 > +30%")
        assert came.return_value == 3, came.output
        said = json.loads(came.stdout)
        log = servers[0].log
        turns = [name for name, _ in groupby(name for name, _ in log)]
        assert turns == ["A", "B", "A", "B", "A"]  # A B, B A, A B, B A: neighbours are one turn
        a, b = ([x for name, x in log if name == each and x in PROMPTS] for each in "AB")
        assert sorted(a) == sorted(b) == sorted(PROMPTS)  # beside the trial and the warm-up
        (pair,) = said["pairs"]
        osl = next(x for x in pair["changes"] if x["metric"] == "output_sequence_length")
        assert [osl[key] for key in ("a", "b", "low", "n")] == pytest.approx([3, 4, 1, 4])
        score = next(x for x in pair["changes"] if x["metric"] == "score")
        assert (score["a"], score["b"], score["n"]) == (1, 0, 16)
        bounds = ", ".join(f"{100 * score[each]:+.1f}" for each in ("low", "high"))
        assert said["rules"][0]["outcome"] == "broken"
        assert any("answers differ in length" in each for each in said["remarks"])
        ledger = data.parent / "w/results/ledger.jsonl"
        lines = ledger.read_text().splitlines(keepends=True)
        assert [json.loads(line)["kind"] for line in lines] == ["block"] * 8
        ledger.write_text("".join(lines[:5]) + lines[5][:100])  # killed in the second of block 2
        log.clear()
        again = invoke(data, servers)
        assert [name for name, _ in groupby(name for name, _ in log)] == ["A", "B", "A"]
        assert f"points [{bounds}]".replace("-", "−") in again.stdout  # the page's is the same
        assert "osl.avg" in again.stdout and "drift of A" in again.stdout
        assert "ttft.p90" not in again.stdout and "more figures: --all" in again.stdout
        assert "4 paired blocks, the score's of 16 answers to the same prompts" in again.stdout
        assert again.stderr.startswith("To measure: 8 blocks of 4 requests at concurrency 1.")
        assert len({each["id"] for each in read_measurements(ledger.parent)}) == 8
        log.clear()
        all_of_it = invoke(data, servers, "--all")
        assert all_of_it.return_value == 0 and not log  # all of it is there
        assert "ttft.p90" in all_of_it.stdout and "--all" not in all_of_it.stdout


def test_who_fails_is_told_and_the_others_are_compared(data: Path) -> None:
    with token_servers(3, 3, 3) as servers:
        servers[2].wrong = {PROMPTS[0]}
        urls = [servers[0].url, f"{servers[1].url}#unknown", servers[2].url]
        options = ("--workspace", data.parent / "w", "--data", data, "--requests", 2)
        came = CliRunner().invoke(
            compare, [*urls, *map(str, options), "--blocks", "1"], standalone_mode=False
        )
    assert came.return_value == 1
    assert "has no model 'unknown'" in came.stderr
    assert "C: 1 of 2 requests failed" in came.stdout
    assert "against  C" in came.stdout and "against  B" not in came.stdout
    assert any(each["status"] == "failed" for each in read_measurements(data.parent / "w/results"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["localhost:1"], "there is one target; name at least two"),
        (["a_cell", "localhost:1"], "'a_cell' is no URL, and no deployment file"),
        (["examples/quickstart.yaml", "localhost:1"], "has 6 cells; name those to compare"),
        (["examples/quickstart.yaml", "nothing"], "there is no cell 'nothing'"),
    ],
)
def test_what_is_no_target_is_told_in_a_line(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(
            compare,
            [*words, "--workspace", str(tmp_path)],
            standalone_mode=False,
            catch_exceptions=False,
        )


def test_a_server_is_not_compared_with_itself(data: Path) -> None:
    with token_servers(3) as servers:
        came = invoke(data, [*servers, *servers])
    assert isinstance(came.exception, UserError) and "is named twice" in str(came.exception)


def test_the_table_fits_80_columns(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm_perf.results.screen_table._PLAIN_WIDTH", 80)
    with token_servers(3, 4) as servers:
        came = invoke(data, servers, "--blocks", 1, "--requests", 2, "--request-rate", 100, "--all")
    table = [line for line in came.stdout.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(table) > 20 and max(map(len, table)) <= 80
    assert "ttft.p99" in came.stdout and "%" in table[1]


def test_servers_that_do_not_fit_at_once_are_up_one_at_a_time_and_twice_each(data: Path) -> None:
    ups: list[str] = []
    with token_servers(3, 4) as servers:

        @contextmanager
        def up(server: TokenServer, gpus: Sequence[str]) -> Iterator[Up]:
            assert not gpus and len(ups) % 2 == 0  # nobody else is up
            ups.append(f"{server.name} starts")
            yield Up(Endpoint(server.url, "openai", "m"))
            ups.append(f"{server.name} ends")

        prompts = load_workload(data, None, max_tokens=8)
        subjects = []
        for each in servers:
            target = Target(each.name, each.url, "openai", "m")
            subjects.append(Subject(each.name, target, prompts, partial(up, each), gpus=1))
        study = Study("s", data.parent / "r", lambda _: None)
        seen = compare_subjects(subjects, Offer(Concurrency(1), 2), 4, study, ["0"])
    starts = [each for each in ups if each.endswith("starts")]
    assert starts == ["A starts", "B starts", "B starts", "A starts"]
    assert ups[1::2] == [each.replace("starts", "ends") for each in starts]
    assert [len(each) for each in seen.measurements.values()] == [2, 2]
    assert all(x["requests_ok"] == 4 for each in seen.measurements.values() for x in each)
    assert "don't fit here at once" in seen.remarks[0] and seen.pairs[0].blocks == 2

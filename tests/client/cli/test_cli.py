"""The command as a user runs it, in a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.scripted import ScriptedTriton


def test_one_load_writes_the_table_the_json_and_the_lines(llm_perf, tmp_path: Path) -> None:
    prompts = [{"text_input": "a", "reference": "one two"}, {"text_input": "b", "reference": "x"}]
    done = llm_perf(prompts)
    assert done.returncode == 0, done.stderr
    for label in (
        "Time to first token (ms)",
        "Inter token latency (ms)",
        "Request latency (ms)",
        "Output sequence length (tokens)",
        "Input sequence length (tokens)",
    ):
        assert label in done.stdout
    assert "Requests ok / failed: 2 / 0" in done.stdout
    assert "Score (exact match): 0.5000 (n = 2)" in done.stdout
    assert "concurrency 1: 2/2 done" in done.stderr
    document = json.loads((tmp_path / "artifacts/profile_export.json").read_text())
    assert document["output_sequence_length"]["avg"] == 3
    lines = (tmp_path / "artifacts/profile_export.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["one two", "one two"]


def test_several_loads_write_a_file_each(llm_perf, tmp_path: Path) -> None:
    done = llm_perf(concurrency="1,2", profile_export_file=tmp_path / "out" / "x.json")
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").glob("*.json*"))
    assert [name for name in written if "answers" not in name] == [
        "ledger.jsonl",
        "x.json",
        "x_concurrency1.json",
        "x_concurrency1.jsonl",
        "x_concurrency2.json",
        "x_concurrency2.jsonl",
    ]
    each = sorted((tmp_path / "out").glob("x_*.json"))
    loads = [json.loads(path.read_text())["load"] for path in each]
    together = json.loads((tmp_path / "out" / "x.json").read_text())["loads"]
    assert together == [{"file": path.name, **json.loads(path.read_text())} for path in each]
    assert "x.json with all 2 loads" in done.stdout
    assert sorted(load["value"] for load in loads) == [1, 2]
    both = llm_perf(request_rate="50,inf", profile_export_file=tmp_path / "open" / "x.json")
    assert both.returncode == 0, both.stderr
    each = (tmp_path / "open").glob("x_*.json")
    loads = [json.loads(path.read_text())["load"] for path in each]
    assert {load["value"] for load in loads} == {50, None}


def test_every_load_flag_reaches_the_load(llm_perf, server: ScriptedTriton, tmp_path: Path) -> None:
    done = llm_perf(
        **{"request_rate": "100", "arrival": "gamma", "burstiness": "2", "seed": "7"},
        **{"ramp": "0.1", "warmup_requests": "2", "repeat": "3", "max_in_flight": "4"},
        **{"workers": "1", "stop_after_failures": "5", "request_timeout": "9"},
    )
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == 2 + 9
    assert "Note: 2 warm-up requests are left out" in done.stdout
    document = json.loads((tmp_path / "artifacts/profile_export.json").read_text())
    assert document["load"] == {
        "kind": "request_rate",
        "value": 100.0,
        "arrival": "gamma",
        "burstiness": 2.0,
        "seed": 7,
        "ramp_s": 0.1,
        "requests": 9,
        "duration_s": None,
        "warmup_requests": 2,
        "warmup_s": 0.0,
    }
    assert document["health"]["workers"] == 1


def test_a_trace_is_replayed_from_the_prompts_times(llm_perf, tmp_path: Path) -> None:
    prompts = [{"text_input": "a", "timestamp": 0}, {"text_input": "b", "timestamp": 30}]
    done = llm_perf(prompts, trace_replay=None)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "artifacts/profile_export.json").read_text())
    assert (document["load"]["kind"], document["requests_ok"]) == ("trace", 2)


def test_strict_turns_a_client_that_can_not_keep_up_into_code_three(llm_perf) -> None:
    code = (
        "import llm_perf.load.health as health\n"
        "health.LIMITS['cpu_share'] = health.ENOUGH_S = 0.0\n"
        "from llm_perf.cli.main import main; main()"
    )
    assert llm_perf(code=code, strict=None).returncode == 3
    done = llm_perf(code=code)
    assert done.returncode == 0
    assert "CLIENT-BOUND (CPU share" in done.stdout


def test_some_failures_are_a_result_and_only_failures_are_not(llm_perf) -> None:
    assert llm_perf(["a", "bad"]).returncode == 1  # over --max-failure-rate's 10 %
    some = llm_perf(["a", "bad"], max_failure_rate="50")
    assert (some.returncode, "Requests ok / failed: 1 / 1" in some.stdout) == (0, True)
    everything = llm_perf(["bad", "bad"])
    assert everything.returncode == 1
    assert "failed requests: 2 error; the first: UNAVAILABLE: scripted" in everything.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"url": "localhost"}, "'localhost' is no HOST:PORT"),
        ({"url": "http://localhost:8000"}, "is no HOST:PORT"),
        ({"url": "localhost:99999"}, "is no HOST:PORT"),
        ({"url": "::1:8001"}, "is no HOST:PORT"),
        ({"protocol": "telnet"}, "unknown protocol 'telnet'"),
        ({"concurrency": "1,x"}, "--concurrency: 'x' is no concurrency"),
        ({"concurrency": "0"}, "--concurrency: '0' is no concurrency"),
        ({"concurrency": ""}, "--concurrency: '' is no concurrency"),
        ({"concurrency": "4,4"}, "--concurrency: 4 is there twice"),
        ({"model": "nosuch"}, "has no model 'nosuch'; it has: ensemble, preprocessing"),
        ({"model": "preprocessing"}, "has no input text_input"),
        ({"tokenizer_path": "nosuch"}, "nosuch: no such tokenizer file"),
        ({"input_data": "nosuch.jsonl"}, "nosuch.jsonl: can't be read"),
        ({"profile_export_file": "/proc/x/y.json"}, "/proc/x: can't be written to"),
        ({"profile_export_file": "x.csv"}, "x.csv: is no .json file"),
        ({"max_tokens": "0"}, "Invalid value for '--max-tokens'"),
        ({"request_timeout": "0"}, "Invalid value for '--request-timeout'"),
        ({"nosuch": "1"}, "No such option"),
        ({"request_rate": "-1"}, "--request-rate: '-1' is no request-rate"),
        ({"request_rate": "nan"}, "--request-rate: 'nan' is no request-rate"),
        ({"request_rate": "2", "concurrency": "2"}, "--concurrency and --request-rate are"),
        ({"request_rate": "2", "arrival": "uniform"}, "unknown arrival 'uniform'"),
        ({"request_rate": "2", "burstiness": "2"}, "poisson arrivals have no burstiness"),
        ({"request_rate": "inf", "duration": "2"}, "no duration ends it"),
        ({"trace_replay": None}, "3 of 3 prompts have no time to replay"),
        ({"num_requests": "2", "repeat": "2"}, "--num-requests and --repeat both"),
        ({"warmup_requests": "2", "warmup_seconds": "2"}, "a warm-up has a number"),
        ({"workers": "0"}, "'0' is neither a number above 0 nor auto"),
        ({"header": "nocolon"}, "'nocolon' is no NAME:VALUE"),
        ({"transport": "carrier-pigeon"}, "unknown transport 'carrier-pigeon'"),
        ({"endpoint_type": "chat"}, "--endpoint-type is for -i openai"),
        ({"ssl_ca": "nosuch.pem"}, "nosuch.pem: can't be read"),
    ],
)
def test_bad_flags_are_one_line_and_code_two(llm_perf, flags: dict[str, str], said: str) -> None:
    done = llm_perf(**flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("llm_perf: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("prompts.jsonl", '{"text_input": "a"}\nnot json\n', "prompts.jsonl:2: not JSON"),
        ("prompts.jsonl", '{"number": "a"}\n', "prompts.jsonl:1: lacks text_input"),
        ("prompts.jsonl", "\n", "prompts.jsonl: holds no prompts"),
        ("tokenizer.json", "{}", "tokenizer.json: the tokenizer does not load"),
    ],
)
def test_bad_files_are_one_line_and_code_two(
    llm_perf, tmp_path: Path, name: str, content: str, said: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / name).write_text(content)
    flag = "input_data" if name.startswith("prompts") else "tokenizer_path"
    done = llm_perf(**{flag: folder / name})
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("llm_perf: ") and done.stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line_with_its_place(llm_perf) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{closed.getsockname()[1]}"
        done = llm_perf(url=url)
    assert done.returncode == 2
    assert f"no Triton server answers at {url}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_loads_nothing_heavy_and_stands_by_theme() -> None:
    heavy = {"grpc", "numpy", "tritonclient", "tokenizers", "rich", "torch", "transformers"}
    probe = (
        "import sys; from llm_perf.cli import main as cli\n"
        "try: cli.command.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    themes = [line for line in done.stdout.splitlines() if line[:1].strip() and line[-1] == ":"]
    assert themes == ["Server:", "Data:", "Load:", "Run:", "Results:", "Other:"]


@pytest.mark.parametrize("name", ["selftest", "compare"])
def test_other_commands_are_named_first_and_have_their_own_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_perf.cli.main", name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: llm_perf {name} ")


def test_measuring_loads_neither_torch_nor_transformers() -> None:
    probe = (
        "import sys, llm_perf.api, llm_perf.transports.libraries as g; print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    modules = done.stdout
    assert "'numpy'" in modules
    assert "'torch'" not in modules and "'transformers'" not in modules

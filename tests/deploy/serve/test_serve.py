"""``serve`` with stand-ins of servers, Triton's ranks under real mpirun; real ones: tests/e2e."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
import yaml

from llm_perf.errors import UserError
from tests.needs import needs
from tests.processes import marked, until
from tests.processes import name as name_of
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.repository import render_repository
from trtllm_deploy.machine.ports import Ports, free_ports
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.spec.settings import TritonSettings
from trtllm_deploy.store.leases import in_use

ROOT = Path(__file__).parents[3]
COMMAND = str(Path(sys.executable).with_name("trtllm-deploy"))
MODEL = ROOT / "examples/number-words/model"
STANDINS = {"tritonserver": "server.py", "vllm": "vllm.py"}
ENGINE = {
    "version": "1.2.0",
    "pretrained_config": {"dtype": "float16", "vocab_size": 4096, "mapping": {}},
    "build_config": {
        "max_input_len": 256,
        "max_seq_len": 320,
        "max_batch_size": 8,
        "max_num_tokens": 1024,
        "plugin_config": {
            "gpt_attention_plugin": "float16",
            "remove_input_padding": True,
            "paged_kv_cache": True,
        },
    },
}

needs_mpirun = needs("mpirun")


@dataclass
class Place:
    """A workspace, a folder to serve, and servers that are stand-ins.

    ``fails`` is an order to fail for a reason that stays, and ``told`` what is said of it.
    """

    root: Path
    title: str = "Triton"
    ports: Ports = field(default_factory=free_ports)
    without: Path = Path()
    finding: str = ""
    told: str = "failed to load 'tensorrt_llm' version 1"
    stays: str = (
        "Version tag does not match. Note: Current Version: 2, Serialized Engine Version: 1"
    )

    @property
    def orders(self) -> Path:
        return self.root / "orders"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return {
            **os.environ,
            "PATH": path,
            "TRT_STANDIN": str(self.orders),
            "PYTHONUNBUFFERED": "1",
        }

    def words(self, name: str, *more: object) -> list[str]:
        return [COMMAND, name, *map(str, more), "--workspace", str(self.root / "workspace")]

    def serve_words(self, *more: object) -> list[str]:
        flags = ("--grpc-port", "--http-port", "--metrics-port")
        numbers = zip(flags, map(str, astuple(self.ports)), strict=True)
        ports = [text for pair in numbers for text in pair]
        repository = self.root / "repository"
        return self.words("serve", "--repository", repository, "--oversubscribe", *ports, *more)

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=120, env=self.environment, check=False
        )

    def start(
        self, *words: object, more: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[str]:
        for file in self.orders.glob("started*"):
            file.unlink()
        return subprocess.Popen(
            self.serve_words(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self.environment, **more},
        )

    def started(self, rank: int) -> dict[str, Any]:
        return json.loads((self.orders / f"started{rank}.json").read_text())


def until_ready(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if line.startswith("ready"):
            return said
    pytest.fail(f"it never was ready: {said}")


def with_servers(root: Path) -> None:
    for folder in ("bin", "orders"):
        (root / folder).mkdir()
    for name, code in STANDINS.items():
        shim = root / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/standins/{code} "$@"\n')
        shim.chmod(0o755)


def vllm_place(root: Path) -> Place:
    with_servers(root)
    (root / "repository").mkdir()
    shutil.copytree(MODEL, root / "engine/checkpoint")
    options = {"max-num-seqs": 8, "max-model-len": 320, "no-enable-prefix-caching": True}
    serving = {"model": "m", "world_size": 1, "options": options, "left_out": []}
    folders = (root / "repository", "1.2", root / "engine", MODEL, 8, TritonSettings())
    BACKENDS["vllm"].make_repository(RepositoryJob(*folders, serving))
    return Place(
        root,
        "vLLM",
        without=root / "engine/checkpoint/config.json",
        finding="there is no checkpoint",
        told="RuntimeError: no engine",
        stays="ValueError: To serve at least one request with the model's max seq len (32768), (7.0"
        " GiB KV cache is needed, which is larger than the available KV cache memory (1.2 GiB).",
    )


def new_place(root: Path, ranks: int) -> Place:
    with_servers(root)
    (root / "engine").mkdir()
    place = Place(root, without=root / "engine/rank0.engine", finding="rank*.engine")
    config = json.loads(json.dumps(ENGINE))
    config["pretrained_config"]["mapping"] = {"world_size": ranks, "tp_size": ranks, "pp_size": 1}
    (root / "engine/config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (root / f"engine/rank{rank}.engine").write_text("engine")
    render_repository(
        RepositoryJob(
            root / "repository",
            "1.2",
            root / "engine",
            MODEL,
            8,
            TritonSettings(),
        ),
        "tensorrt",
    )
    return place


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return new_place(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return new_place(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return vllm_place(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(params=["one_rank", "vllm"])
def any_server(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test ends without a process of its server, and takes its orders along."""
    yield
    places = (each for each in request.node.funcargs.values() if isinstance(each, Place))
    for place in places:
        assert until(lambda place=place: not left(place)), left(place)
        for order in place.orders.glob("rank*"):
            order.unlink()


def left(place: Place) -> list[psutil.Process]:
    """The processes of a place's servers, whoever their parent is by now."""
    return list(marked("TRT_STANDIN", str(place.orders)))


# what a kill -9 hits, from the processes of a server: launcher first
VICTIMS: dict[str, Callable[[Place, psutil.Process], int]] = {
    "serve": lambda place, launcher: launcher.pid,
    "the supervisor": lambda place, launcher: launcher.children()[0].pid,
    "mpirun": lambda place, launcher: named(launcher, "mpirun"),
    "the first rank": lambda place, launcher: place.started(0)["pid"],
    "the last rank": lambda place, launcher: place.started(1)["pid"],
}
# of vLLM's one
OTHERS: dict[str, Callable[[Place, psutil.Process], int]] = {
    **{name: VICTIMS[name] for name in ("serve", "the supervisor")},
    "the server": VICTIMS["the first rank"],
    "its engine": lambda place, launcher: place.started(0)["engine"],
}


@pytest.mark.parametrize("victim", OTHERS)
def test_nothing_of_vllm_outlives_a_kill_and_the_next_start_works(vllm: Place, victim: str) -> None:
    with vllm.start() as server:  # on the port of the start before
        until_ready(server)
        launcher = psutil.Process(server.pid)
        family = [launcher, *launcher.children(recursive=True)]
        assert vllm.started(0)["engine"] in {each.pid for each in family}
        os.kill(OTHERS[victim](vllm, launcher), signal.SIGKILL)
        server.stdout.read()
        assert server.wait(30) not in (0, 2)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive


def named(launcher: psutil.Process, name: str) -> int:
    return next(each.pid for each in launcher.children(recursive=True) if name_of(each) == name)


@needs_mpirun
@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_outlives_a_kill_and_the_next_start_works(two_ranks: Place, victim: str) -> None:
    with two_ranks.start() as server:  # on the ports of the start before
        until_ready(server)
        launcher = psutil.Process(server.pid)
        family = [launcher, *launcher.children(recursive=True)]
        assert {"mpirun"} < {name_of(each) for each in family}
        pid = VICTIMS[victim](two_ranks, launcher)
        scratch = Path(two_ranks.started(0)["environment"]["OMPI_MCA_orte_tmpdir_base"])
        assert list(scratch.iterdir())
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        server.stdout.read()
        assert server.wait(30) not in (0, 2)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        assert until(lambda: not scratch.exists())
        print(f"kill -9 {victim}: all gone after {time.monotonic() - began:.1f} s")
    assert not list(Path("/dev/shm").glob(f"{scratch.name}*"))


@needs_mpirun
def test_a_rank_that_ignores_sigterm_is_killed_with_the_rest(two_ranks: Place) -> None:
    (two_ranks.orders / "rank1").write_text("stubborn")
    with two_ranks.start() as server:
        until_ready(server)
        family = psutil.Process(server.pid).children(recursive=True)
        stopped = two_ranks.run(two_ranks.words("stop")).stdout  # mpirun gives nobody time
        assert "stopping repository; requests in flight are cut off\n" in stopped
        assert server.wait(30) == 0
        assert not [each for each in family if each.is_running()]


@needs_mpirun
def test_a_rank_s_error_is_shown_with_its_rank_and_ends_the_server(two_ranks: Place) -> None:
    (two_ranks.orders / "rank1").write_text("fails")
    with two_ranks.start() as server:
        said = server.communicate(timeout=60)[0]
    assert server.returncode == 1
    assert "  rank 1: failed to load 'tensorrt_llm' version 1" in said
    [logs] = two_ranks.root.glob("workspace/logs/serve-repository-*.ranks")
    assert (logs / "1/rank.0/stdout").read_text() == "rank 0 of 2 is up\n"


@needs_mpirun
def test_a_server_that_is_not_ready_in_time_is_stopped(two_ranks: Place) -> None:
    (two_ranks.orders / "rank1").write_text("deaf")
    with two_ranks.start("--timeout", "2") as server:
        said = server.communicate(timeout=60)[0]
    assert server.returncode == 1
    assert "was not ready after 2 s" in said


@needs_mpirun
def test_ranks_of_other_hosts_get_the_gpus_and_end_with_mpirun(two_ranks: Place) -> None:
    """Two nodes that are this machine: what would be ssh starts Open MPI's daemon without a
    variable of ours, as on another host, and says which node it is."""
    root = two_ranks.root
    (root / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    agent = root / "bin/ssh-like"
    path = f"{root / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    agent.write_text(
        f"#!/bin/sh\nnode=$1\nshift\nexec env -i NODE=$node PATH={path}"
        f' HOME={root} TRT_STANDIN={two_ranks.orders} sh -c "$*"\n'
    )
    agent.chmod(0o755)
    over_ssh = {"OMPI_MCA_plm_rsh_agent": str(agent)}
    with two_ranks.start("--hostfile", root / "hosts", "--gpus", "3", more=over_ssh) as server:
        until_ready(server)
        seen = [two_ranks.started(rank)["environment"] for rank in (0, 1)]
        assert [each["NODE"] for each in seen] == ["node-a", "node-b"]
        assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["3", "3"]
        launcher = psutil.Process(server.pid)
        os.kill(named(launcher, "mpirun"), signal.SIGKILL)
        assert server.wait(30) == 137


@needs_mpirun
def test_an_orchestrator_is_told_so(two_ranks: Place) -> None:
    with two_ranks.start("--mode", "orchestrator") as server:
        until_ready(server)
        started = two_ranks.started(0)
        assert started["environment"]["TRTLLM_ORCHESTRATOR"] == "1"
        assert started["flags"]["enable-peer-access"] == ["false"]
        assert not (two_ranks.orders / "started1.json").exists()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


@needs_mpirun
def test_print_shows_the_command_and_starts_nothing(two_ranks: Place) -> None:
    done = two_ranks.run(two_ranks.serve_words("--print", "--gpus", "0,1"))
    assert done.returncode == 0
    words = shlex.split(done.stdout)
    assert words[0] == "env"
    assert "CUDA_VISIBLE_DEVICES=0,1" in words
    assert words.count("-n") == 2
    assert str(two_ranks.root / "bin/tritonserver") in words
    assert not left(two_ranks)


def test_flags_that_do_nothing_are_named_and_the_rest_reach_triton(one_rank: Place) -> None:
    other = one_rank.root / "bin/tritonserver"
    more = ("--no-mpi", "--gpus", "0", "--log-verbose", "2", "--tritonserver", other)
    done = one_rank.run(one_rank.serve_words("--print", *more))
    assert done.returncode == 0
    assert "--no-mpi changes nothing: one process serves it" in done.stderr
    assert "--oversubscribe changes nothing: mpirun doesn't start it" in done.stderr
    assert "--gpus changes nothing: there is no GPU here" in done.stderr
    words = shlex.split(done.stdout)
    assert "--log-verbose=2" in words
    assert str(other) in words
    missing = one_rank.run(one_rank.serve_words("--print", "--tritonserver", "/nowhere"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "/nowhere: is no program" in missing.stderr


def test_a_folder_that_is_no_repository_is_not_printed(one_rank: Place) -> None:
    words = one_rank.words("serve", "--repository", one_rank.root / "orders", "--print")
    done = one_rank.run(words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no folder in it has a config.pbtxt" in done.stderr


def test_preflight_stops_a_launch_unless_forced(any_server: Place) -> None:
    kept = any_server.without.read_bytes()
    any_server.without.unlink()
    try:
        done = any_server.run(any_server.serve_words())
        assert done.returncode == 2
        assert any_server.finding in done.stdout
        assert "--force" in done.stderr
    finally:
        any_server.without.write_bytes(kept)


def test_what_preflight_finds_is_launched_where_one_says_so(one_rank: Place) -> None:
    one_rank.without.write_bytes(b"")
    try:
        with one_rank.start("--force") as server:
            until_ready(server)
            server.terminate()
            assert server.wait(30) == 0
    finally:
        one_rank.without.write_text("engine")


def test_a_detached_server_is_listed_and_stopped(any_server: Place) -> None:
    done = any_server.run(any_server.serve_words("--detach"))
    assert done.returncode == 0, done.stderr
    assert "ready: repository" in done.stdout
    store = any_server.root / "workspace/store"
    assert in_use(store) == {("repository", "repository")}  # where gc leaves it alone
    listed = any_server.run(any_server.words("ps")).stdout
    assert "repository" in listed and "ready" in listed and str(any_server.ports.http) in listed
    again = any_server.run(any_server.serve_words())
    assert again.returncode == 2
    assert "is already in use on 127.0.0.1" in again.stderr
    assert any_server.run(any_server.words("stop", "other")).returncode == 2
    stopped = any_server.run(any_server.words("stop", "repository"))
    assert "requests in flight get 10 s\nstopped repository\n" in stopped.stdout
    assert not left(any_server)
    assert in_use(store) == frozenset()
    listed = any_server.run(any_server.words("ps")).stdout
    assert "repository" not in listed
    assert "servers of another folder need its --workspace" in listed


def test_a_detached_server_keeps_what_it_said_whatever_is_started_there(one_rank: Place) -> None:
    (one_rank.root / "deploy.py").write_text("raise SystemExit('another project')")
    words = one_rank.serve_words("--detach")
    assert subprocess.run(words, cwd=one_rank.root, env=one_rank.environment).returncode == 0
    [said] = one_rank.root.glob("workspace/logs/*.out")
    assert "ready: repository" in said.read_text()
    assert one_rank.run(words).returncode == 2
    assert "ready: repository" in said.read_text()
    assert one_rank.run(one_rank.words("stop")).returncode == 0
    assert said.read_text().endswith("stopped\n")


def test_a_detached_server_that_fails_says_why(any_server: Place) -> None:
    (any_server.orders / "rank0").write_text("fails")
    done = any_server.run(any_server.serve_words("--detach"))
    assert done.returncode == 1
    assert any_server.told in done.stdout


def test_a_detached_server_that_is_stopped_while_it_starts_is_no_success(one_rank: Place) -> None:
    (one_rank.orders / "rank0").write_text("deaf")
    with one_rank.start("--detach") as server:
        records = one_rank.root / "workspace/servers"
        assert until(lambda: any("starting" in each.read_text() for each in records.glob("*.json")))
        assert one_rank.run(one_rank.words("stop")).returncode == 0
        assert server.wait(30) == 1


def test_a_killed_serve_is_not_listed(any_server: Place) -> None:
    with any_server.start() as server:
        until_ready(server)
        [record] = (any_server.root / "workspace/servers").glob("*.json")
        assert record.parent.stat().st_mode & 0o077 == 0
        server.kill()
    assert record.exists()
    assert "repository" not in any_server.run(any_server.words("ps")).stdout
    stop = any_server.words("stop")  # while its guard sweeps, there is something left to end
    assert until(lambda: any_server.run(stop).returncode == 2, 60)  # the guard waits 31 s


def test_a_failed_server_is_started_again_as_often_as_told(any_server: Place) -> None:
    (any_server.orders / "rank0").write_text("fails")
    with any_server.start("--restart", "on-failure:2") as server:
        said = server.communicate(timeout=60)[0]
    assert server.returncode == 1
    assert said.count(f"starting {any_server.title}") == 3
    assert "restart 1 in 1 s" in said and "restart 2 in 2 s" in said
    logs = sorted(each.suffix for each in any_server.root.glob("workspace/logs/serve-repository-*"))
    assert {".log", ".1", ".2"} <= set(logs)


def test_what_fails_for_a_reason_that_stays_is_not_started_again(
    any_server: Place,
) -> None:
    (any_server.orders / "rank0").write_text(f"fails {any_server.stays}")
    with any_server.start("--restart", "on-failure") as server:
        said = server.communicate(timeout=60)[0]
    assert server.returncode == 1
    assert said.count(f"starting {any_server.title}") == 1
    assert "another start changes nothing" in said


def test_a_killed_server_comes_back(any_server: Place) -> None:
    with any_server.start("--restart", "on-failure") as server:
        until_ready(server)
        os.kill(any_server.started(0)["pid"], signal.SIGKILL)
        assert "exit code 137" in until_ready(server)
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("policy", ["always", "on-failure:", "on-failure:x"])
def test_an_unknown_policy_is_refused(one_rank: Place, policy: str) -> None:
    done = one_rank.run(one_rank.serve_words("--restart", policy))
    assert done.returncode == 2
    assert "write no, on-failure or on-failure:N" in done.stderr


def test_a_cell_or_a_repository_has_to_be_named(tmp_path: Path) -> None:
    done = subprocess.run([COMMAND, "serve"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "serve takes FILE and CELL, or --repository" in done.stderr


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"HF_TOKEN": "x"}, "HF_TOKEN is a secret"),
        ({"MY_API_KEY": "x"}, "MY_API_KEY is a secret"),
        ({"NOT A NAME": "x"}, "'NOT A NAME' can't be the name of an environment variable"),
        ({"NCCL_IB_DISABLE": 1}, "env.NCCL_IB_DISABLE: input should be a valid string"),
    ],
)
def test_an_environment_that_does_not_belong_in_a_file_is_refused(
    tmp_path: Path, written: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        load_deployment(deployment(tmp_path, written))


def test_an_environment_of_nccl_and_ucx_is_taken(tmp_path: Path) -> None:
    written = {"NCCL_IB_PKEY": "7", "UCX_TLS": "rc,cuda", "TOKENIZERS_PARALLELISM": "false"}
    assert load_deployment(deployment(tmp_path, written)).deployment.env == written


def deployment(folder: Path, env: dict[str, object]) -> Path:
    spec = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())
    spec["models"]["number_words"]["source"] = str(ROOT / "examples/number-words/model")
    spec["calibration"]["data"] = str(ROOT / "examples/number-words/calibration.jsonl")
    spec["measure"]["data"] = str(ROOT / "examples/number-words/prompts.jsonl")
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump({**spec, "env": env}))
    return file

"""What is rendered for clusters is valid by the published schemas, and its scripts run."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from tests.needs import skip_unless
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.repository import templates, templates_digest
from trtllm_deploy.cli import main as cli
from trtllm_deploy.releases.release import load_release, release_names
from trtllm_deploy.serve.manifests import ClusterJob, dns_name, kubernetes, slurm
from trtllm_deploy.spec.deployment_file import Cell

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "1.33"
WORKSPACE = Path("/mnt/workspace")
SLURM = yaml.safe_load((SCHEMAS / "slurm.yaml").read_text())


def cell(tp: int = 8, pp: int = 2) -> Cell:
    return Cell("qwen2_72b", "fp8", tp, pp, 2048, 1024, 8)


def job(tp: int = 8, pp: int = 2, **changed: Any) -> ClusterJob:
    options = {"backend": "tensorrt", "release": "1.2", "workspace": WORKSPACE, **changed}
    server = BACKENDS[options.pop("backend")].cluster(options.pop("release"), cell(tp, pp))
    return ClusterJob(cell(tp, pp), server, **options)


def documents(text: str) -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def pod_templates(document: Any) -> Iterator[Any]:
    group = document["spec"]["leaderWorkerTemplate"]
    yield from (group["leaderTemplate"], group["workerTemplate"])


def check(document: Any) -> None:
    """By the schema of its kind, strictly; raises for a key that there isn't."""
    custom = SCHEMAS / f"{document['kind'].lower()}s.yaml"
    if not custom.is_file():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, yaml.safe_load(custom.read_text()))
    metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    kubernetes_validate.validate(metadata, KUBERNETES, strict=True)
    if document["kind"] == "LeaderWorkerSet":
        for template in pod_templates(document):
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("tp", "pp", "kind"),
    [(8, 2, "LeaderWorkerSet"), (8, 1, "Deployment"), (1, 1, "Deployment")],
)
@pytest.mark.parametrize("backend", ["tensorrt", "llmapi"])
@pytest.mark.parametrize("namespace", [None, "llm"])
def test_manifests_are_valid(
    tp: int, pp: int, kind: str, backend: str, namespace: str | None
) -> None:
    found = documents(kubernetes(job(tp, pp, backend=backend), namespace=namespace))
    assert list(found) == ["ConfigMap", kind, "Service", "PodMonitor"]
    for document in found.values():
        check(document)
        assert document["metadata"].get("namespace") == namespace


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all keys, but of maps whose keys are anybody's."""
    items = enumerate(value) if isinstance(value, list) else getattr(value, "items", tuple)()
    for key, inner in items:
        if path and path[-1] in {"labels", "annotations", "matchLabels", "data", "selector"}:
            continue
        if key not in {"limits", "requests"}:
            yield (*path, key)
            yield from keys(inner, (*path, key))


def test_each_misspelt_key_fails() -> None:
    tried = 0
    for document in yaml.safe_load_all(kubernetes(job()) + "---\n" + kubernetes(job(8, 1))):
        for *above, key in keys(document):
            if not isinstance(key, str) or document["kind"] == "ConfigMap":
                continue
            broken = json.loads(json.dumps(document))
            inner = broken
            for step in above:
                inner = inner[step]
            inner[f"{key}s"] = inner.pop(key)
            with pytest.raises((jsonschema.ValidationError, KeyError)):
                check(broken)
            tried += 1
    assert tried > 100


def test_a_server_is_reached_probed_and_scraped_at_its_ports() -> None:
    for text, size in ((kubernetes(job()), 2), (kubernetes(job(4, 1)), 1)):
        found = documents(text)
        workload = found.get("LeaderWorkerSet") or found["Deployment"]
        [server, *workers] = (
            list(pod_templates(workload)) if size > 1 else [workload["spec"]["template"]]
        )
        [container] = server["spec"]["containers"]
        assert {each["name"]: each["containerPort"] for each in container["ports"]} == {
            "http": 8000,
            "grpc": 8001,
            "metrics": 8002,
        }
        probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")}
        assert probes["readiness"] == {"path": "/v2/health/ready", "port": "http"}
        assert probes["liveness"] == {"path": "/v2/health/live", "port": "http"}
        labels = server["metadata"]["labels"].items()
        assert found["Service"]["spec"]["selector"].items() <= labels
        selector = found["PodMonitor"]["spec"]["selector"]["matchLabels"].items()
        assert selector <= labels
        for worker in workers:
            assert not selector <= worker["metadata"]["labels"].items()
            assert "ports" not in worker["spec"]["containers"][0]


def test_pods_take_their_gpus_and_no_token_for_they_download_nothing() -> None:
    text = kubernetes(job(), pvc="shared", memory_per_gpu=16)
    for template in pod_templates(documents(text)["LeaderWorkerSet"]):
        [container] = template["spec"]["containers"]
        assert container["resources"]["limits"] == {"memory": "128Gi", "nvidia.com/gpu": 8}
        assert [each["name"] for each in container["env"]] == ["HOME"]
        assert template["spec"].get("hostNetwork") is None  # nor do two on a node meet at a port
        assert not any("hostPort" in each for each in container.get("ports", ()))
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
        assert volumes["workspace"]["persistentVolumeClaim"]["claimName"] == "shared"
        [mount] = [each for each in container["volumeMounts"] if each["name"] == "workspace"]
        assert mount["mountPath"] == str(WORKSPACE)
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_environment_reaches_every_process(
    tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    wanted = job(2, 1, environment={"NCCL_DEBUG": "INFO", "UCX_TLS": "it's $HOME"})
    script = slurm(wanted)[: slurm(wanted).index("\nsrun")]
    shown = 'echo "$NCCL_DEBUG, $UCX_TLS"'
    on = {"SLURMD_NODENAME": "n", "SLURM_JOB_ID": "7"}
    with run("bash", "-c", f"{script}\n{shown}", **on) as process:
        output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "INFO, it's $HOME"
    group = documents(kubernetes(job(environment=wanted.environment)))["LeaderWorkerSet"]
    for template in pod_templates(group):
        [container] = template["spec"]["containers"]
        values = {each["name"]: each.get("value") for each in container["env"]}
        assert wanted.environment.items() <= values.items()


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}", fullmatch=True)


@given(names, names)
def test_every_cell_has_a_name_of_its_own_in_kubernetes(one: str, other: str) -> None:
    for name in (dns_name(one), dns_name(other)):
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 45
    assert (dns_name(one) == dns_name(other)) == (one == other)


hostile = st.text(st.sampled_from("\n\r\t \"'`$(){};|&<>#\\!%:\x1b[\x7f\x85\u2028😀az09_./-"))


@given(value=hostile)
@settings(max_examples=40)
def test_a_variable_reaches_its_process_as_it_is(value: str) -> None:
    set_ = job(environment={"NCCL_SOCKET_IFNAME": value})
    before, _, _ = slurm(set_).partition("\n# What each of")
    script = f'{before}\nprintf %s "$NCCL_SOCKET_IFNAME"'
    on = {**os.environ, "SLURM_JOB_ID": "7"}
    said = subprocess.run(["bash", "-c", script], env=on, capture_output=True, check=True).stdout
    assert said.decode() == value
    group = documents(kubernetes(set_))["LeaderWorkerSet"]
    for template in pod_templates(group):
        [container] = template["spec"]["containers"]
        assert {"name": "NCCL_SOCKET_IFNAME", "value": value} in container["env"]


@given(
    option=st.sampled_from(["partition", "account", "time", "address"]),
    value=st.text(st.sampled_from("az09-:._,+@"), min_size=1) | hostile.filter(bool),
)
def test_an_option_is_one_plain_word_or_refused(option: str, value: str) -> None:
    try:
        lines = slurm(job(), **{option: value}).splitlines()
    except UserError:
        return
    assert not set(value) & set("\n\r\t \"'`$(){};|&<>#\\!%\x1b\x7f")
    assert len(lines) == len(slurm(job(), **{option: "1"}).splitlines())


@pytest.mark.parametrize("name", ["a\nb", "$(id)", "a b", "a`b", "a;b", "é"])
def test_a_name_that_a_script_would_read_otherwise_is_refused(name: str) -> None:
    odd = Cell(name, "fp8", 8, 2, 2048, 1024, 8)
    with pytest.raises(UserError, match="cell can't be"):
        ClusterJob(odd, BACKENDS["tensorrt"].cluster("1.2", odd), WORKSPACE)
    with pytest.raises(UserError, match="variable can't be"):
        job(environment={name: "1"})


def test_a_plain_cell_s_name_stays_readable() -> None:
    assert dns_name(cell().name) == "qwen2-72b-fp8-tp8-pp2-isl2048-osl1024-bs8"


@pytest.mark.parametrize("release", release_names())
def test_the_container_is_that_of_the_release(release: str) -> None:
    image = load_release(release).image
    assert job(release=release).container == image
    assert f"--container-image={image.replace('nvcr.io/', 'nvcr.io#')} " in slurm(
        job(release=release)
    )
    squashed = job(image="/images/triton.sqsh")
    assert "--container-image=/images/triton.sqsh " in slurm(squashed)


def test_what_a_cluster_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"16 ranks .* don't fill nodes of 3 GPUs"):
        job(gpus_per_node=3)
    with pytest.raises(UserError, match="reference backend is one process without a GPU"):
        job(backend="reference")
    assert (job(gpus_per_node=4).nodes, job(gpus_per_node=4).gpus) == (4, 4)
    assert (job(2, 1).nodes, job(2, 1).gpus) == (1, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("partition", "gpu\n#SBATCH --wrap=x"),
        ("account", "a; rm"),
        ("time", "1 day"),
        ("address", "0.0.0.0 --x"),
    ],
)
def test_a_value_that_would_break_the_script_is_refused(option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{option} can't be"):
        slurm(job(), **{option: value})


def test_a_value_that_would_break_a_manifest_is_refused() -> None:
    for wrong in ({"namespace": "Team"}, {"pvc": "a: b"}):
        with pytest.raises(UserError, match="can't be"):
            kubernetes(job(), **wrong)
    with pytest.raises(UserError, match="--workspace can't be '/my files'"):
        job(workspace=Path("/my files"))


def header(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE)
    assert len(found) == script.count("#SBATCH")
    return dict(found)


def test_sbatch_and_srun_know_every_option() -> None:
    script = slurm(job(), partition="gpu", account="me", time="1-00:00:00")
    assert header(script) == {
        "job-name": cell().name,
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "output": "/mnt/workspace/logs/slurm-%x-%j.log",
        "partition": "gpu",
        "account": "me",
        "time": "1-00:00:00",
    }
    assert header(script).keys() <= set(SLURM["sbatch"])
    srun = shlex.split(script[script.index("\nsrun") :].replace("\\\n", ""))
    said = [word.removeprefix("--").split("=")[0] for word in srun if word.startswith("--")]
    assert set(said) <= set(SLURM["srun"])
    assert "--mpi=pmix" in srun


STAND_IN = """#!{python}
import os, sys
with open({said!r}, "a") as said:
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("SLURM_PROCID", "0"))
    said.write(" ".join([rank, os.environ["HOSTNAME"], *sys.argv]) + chr(10))
sys.exit(int(os.environ.get("FAIL_" + rank, 0)))
"""
SRUN_STAND_IN = """#!{python}
import os, subprocess, sys
command = sys.argv[sys.argv.index("bash"):]
ranks = range(int(os.environ["SLURM_NTASKS"]))
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(rank)}}) for rank in ranks
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Run a bash script with stand-ins for what a cluster has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = str(tmp_path / "said")
    for name, text in (
        ("tritonserver", STAND_IN),
        ("trtllm-llmapi-launch", STAND_IN),
        ("srun", SRUN_STAND_IN),
    ):
        (folder / name).write_text(text.format(python=sys.executable, said=said))
        (folder / name).chmod(0o755)

    def run(*command: str, **environment: str) -> subprocess.Popen[str]:
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        path = f"{folder}:{os.environ['PATH']}"
        return subprocess.Popen(
            command,
            env={**os.environ, **allowed, "PATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return run


def said(tmp_path: Path) -> dict[int, list[str]]:
    """What each rank's server was told: its host, its command line."""
    lines = (tmp_path / "said").read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == len(lines)
    return {int(line.split()[0]): line.split()[1:] for line in lines}


def assert_leader_mode(ranks: dict[int, list[str]], named: Cell, http: int = 8000) -> None:
    """Rank 0 serves the repository, the others load the engine only."""
    ports = {f"--http-port={http}", f"--grpc-port={http + 1}", f"--metrics-port={http + 2}"}
    assert sorted(ranks) == list(range(named.world_size))
    for rank, (_host, binary, *flags) in ranks.items():
        assert binary.endswith("/tritonserver")
        repository = f"/mnt/workspace/ensemble_models/{named.name}"
        assert f"--model-repository={repository}" in flags
        assert f"--backend-config=python,shm-region-prefix-name=prefix{rank}_" in flags
        other = {"--model-control-mode=explicit", "--load-model=tensorrt_llm"}
        assert (other <= set(flags)) == (rank > 0)
        assert ports <= set(flags)
        assert "--disable-auto-complete-config" in flags


def test_slurm_s_tasks_get_the_flags_of_their_rank(
    tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    script = tmp_path / "job.sh"
    script.write_text(slurm(job()))
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    environment = {"SLURM_NTASKS": "16", "SLURMD_NODENAME": "node1", "HOSTNAME": "node"}
    with run("bash", str(script), **environment, SLURM_JOB_ID="14002") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "rank 0 will listen on node1, gRPC 10007, HTTP 10006, metrics 10008" in output
    assert_leader_mode(said(tmp_path), cell(), 10006)


def test_jobs_on_one_node_meet_at_no_port_unless_told(
    run: Callable[..., subprocess.Popen[str]],
) -> None:
    script = slurm(job(2, 1))[: slurm(job(2, 1)).index("\nsrun")]

    def ports(**environment: str) -> list[int]:
        with run("bash", "-c", script, SLURMD_NODENAME="n", **environment) as process:
            output, _ = process.communicate(timeout=60)
        return [int(number) for number in re.findall(r"(?:gRPC|HTTP|metrics) (\d+)", output)]

    told = [ports(SLURM_JOB_ID=str(number)) for number in (6999, 7000, 7001, 123456789)]
    assert len({port for each in told for port in each}) == 12
    assert all(1024 < port < 32768 for each in told for port in each)
    assert ports(SLURM_JOB_ID="1", TRITON_HTTP_PORT="8000") == [8001, 8000, 8002]


def test_slurm_s_job_fails_with_its_ranks(
    tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    script = tmp_path / "job.sh"
    script.write_text(slurm(job(2, 1)))
    environment = {"SLURM_NTASKS": "2", "SLURMD_NODENAME": "n", "HOSTNAME": "n", "FAIL_1": "3"}
    with run("bash", str(script), **environment, SLURM_JOB_ID="1") as process:
        process.communicate(timeout=60)
    assert process.returncode == 3


def test_llmapi_starts_through_its_launcher_on_several_gpus_only(
    tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    for tp, launcher in ((2, "trtllm-llmapi-launch"), (1, "tritonserver")):
        scripts = documents(kubernetes(job(tp, 1, backend="llmapi")))["ConfigMap"]["data"]
        with run("bash", "-c", scripts["rank.sh"], HOSTNAME="pod") as process:
            process.communicate(timeout=60)
        assert Path(said(tmp_path)[0][1]).name == launcher
        (tmp_path / "said").unlink()


@pytest.fixture
def group(
    tmp_path: Path, run: Callable[..., subprocess.Popen[str]], free_first_port: int
) -> Callable[..., tuple[int, list[int]]]:
    """Run the scripts of a LeaderWorkerSet's pods here, with the real mpirun; the exit codes.

    mpirun takes hosts that it can't resolve for other machines, as this one's name with an index.
    """
    skip_unless("mpirun")
    launch = tmp_path / "launch"
    launch.mkdir()

    def group(wanted: ClusterJob, **environment: str) -> tuple[int, list[int]]:
        for name, text in documents(kubernetes(wanted))["ConfigMap"]["data"].items():
            text = text.replace("/launch/", f"{launch}/")
            (launch / name).write_text(text.replace("= 20000", f"= {free_first_port}"))
        host = socket.gethostname()
        shared = {"LWS_LEADER_ADDRESS": "127.0.0.1", "PYTHONUNBUFFERED": "1", **environment}
        agent = str(launch / "mpi_agent.py")
        pods = [
            run("python3", agent, HOSTNAME=f"{host}-{at}", LWS_WORKER_INDEX=str(at), **shared)
            for at in range(1, wanted.nodes)
        ]
        pods.append(run("bash", str(launch / "serve.sh"), HOSTNAME=host, **shared))
        try:
            outputs = [pod.communicate(timeout=60)[0] for pod in pods]
        finally:
            for pod in pods:
                if pod.poll() is None:
                    os.killpg(pod.pid, signal.SIGKILL)
        print(*outputs)
        *workers, leader = (pod.returncode for pod in pods)
        return leader, workers

    return group


@pytest.fixture
def free_first_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_mpirun_reaches_the_pods_of_a_group_without_ssh(
    tmp_path: Path, group: Callable[..., tuple[int, list[int]]]
) -> None:
    wanted = job(2, 3, gpus_per_node=2)
    assert group(wanted) == (0, [0, 0])
    ranks = said(tmp_path)
    assert_leader_mode(ranks, wanted.cell)
    host = socket.gethostname()
    where = [ranks[rank][0] for rank in range(6)]
    assert where == [host, host, f"{host}-1", f"{host}-1", f"{host}-2", f"{host}-2"]


def test_a_rank_that_fails_fails_the_leader(group: Callable[..., tuple[int, list[int]]]) -> None:
    leader, _workers = group(job(2, 2, gpus_per_node=2), FAIL_3="7")
    assert leader == 7


def test_the_command_writes_what_the_library_renders(tmp_path: Path) -> None:
    spec = {
        "backend": "tensorrt",
        "models": {"qwen2_72b": {"source": "model", "tp": 8, "pp": 2}},
        "precisions": "fp16",
        "matrix": {"max_batch_size": 8, "isl_osl": "128,64"},
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    file = tmp_path / "d.yaml"
    file.write_text(yaml.safe_dump(spec))
    name = "qwen2_72b_fp16_tp8_pp2_isl128_osl64_bs8"
    common = [str(file), name, "--workspace", str(tmp_path / "w"), "--gpus-per-node", "4"]
    target = tmp_path / "job.sh"
    for kind in (["slurm", "--time", "10:00"], ["kubernetes", "--pvc", "claim"]):
        result = CliRunner().invoke(cli.command, ["render", *kind, *common, "-o", str(target)])
        assert result.exit_code == 0, result.output
        shown = CliRunner().invoke(cli.command, ["render", *kind, *common])
        assert shown.output == target.read_text()
        assert f"{tmp_path}/w/ensemble_models/{name}" in shown.output
    assert documents(shown.output)["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]["size"] == 4
    with pytest.raises(UserError, match="there is no cell"):
        CliRunner().invoke(
            cli.command, ["render", "slurm", str(file), "other"], catch_exceptions=False
        )


def test_deployment_templates_are_no_part_of_a_repository_s_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = templates_digest(load_release("1.2"))
    copy = tmp_path / "copy"
    shutil.copytree(templates(), copy)
    shutil.rmtree(copy / "deployment")
    monkeypatch.setattr("trtllm_deploy.backends.repository.templates", lambda: copy)
    assert templates_digest(load_release("1.2")) == before

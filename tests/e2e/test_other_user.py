"""What another user of the machine can do beside a running server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import command_line, tree
from trtllm_deploy.serve.launch import ModelServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
NOBODY = 65534
TRY = """
import json, pathlib, sys, urllib.error, urllib.request
url, name, *pids = sys.argv[1:]
found = {"read": [], "open": [], "words": []}
for pid in pids:
    for name in ("environ", "mem"):
        try:
            found["read"] += [f"{pid}/{name}"] if open(f"/proc/{pid}/{name}", "rb").read(1) else []
        except OSError:
            pass
    try:
        found["words"].append(open(f"/proc/{pid}/cmdline").read())
    except OSError:
        pass
for region in pathlib.Path("/dev/shm").glob(f"{name}*"):
    try:
        found["read"] += [str(region)] if region.open("rb") else []
    except OSError:
        pass
for path, body in {
    "repository/index": {},
    "repository/models/evil/load": {"parameters": {"config": "{}", "file:1/model.py": "eA=="}},
    "repository/models/ensemble/unload": {},
    "logging": {"log_file": "/tmp/elsewhere"},
    "trace/setting": {"trace_file": "/tmp/elsewhere"},
    "systemsharedmemory/region/x/register": {"key": "/x", "offset": 0, "byte_size": 8},
}.items():
    try:
        data = json.dumps(body).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}/v2/{path}", data))
        found["open"].append(path)
    except urllib.error.HTTPError as error:
        if error.code != 403:
            found["open"].append(f"{path}: {error.code} {error.read()}")
print(json.dumps(found))
"""


def test_another_user_sees_no_secret_and_can_only_ask_the_models(streaming: ModelServer) -> None:
    pids = [each.pid for each in tree(os.getpid())[1:] if "triton" in str(command_line(each))]
    name = streaming._name
    assert list(Path("/dev/shm").glob(f"{name}*"))
    done = subprocess.run(
        [
            "/usr/bin/env",
            "python3",
            "-c",
            TRY,
            f"http://{streaming.http_url}",
            name,
            *map(str, pids),
        ],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["read"] == found["open"] == []
    assert any("tritonserver" in words for words in found["words"])


def test_the_server_s_environment_has_no_secret(
    streaming: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has them all; a server is started here as everywhere."""
    code = (
        "import sys, time; from pathlib import Path;"
        "from trtllm_deploy.serve.launch import ModelServer;"
        "from trtllm_deploy.machine.ports import free_ports;"
        "repository, log, cache = map(Path, sys.argv[1:]);"
        "server = ModelServer(repository, ports=free_ports(), log_file=log, cache_dir=cache);"
        "server.__enter__(); time.sleep(1); print('started', flush=True); input()"
    )
    secrets = {"HF_TOKEN": "hf_secret", "OPENAI_API_KEY": "sk-secret", "GITHUB_PAT": "p-secret"}
    arguments = [str(streaming.repository), f"{streaming.log_file}.2", str(streaming._cache_dir)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **secrets},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        seen = [Path(f"/proc/{each.pid}/environ").read_bytes() for each in tree(process.pid)[1:]]
        process.kill()
    assert len(seen) >= 2  # the supervisor and Triton
    assert not [each for each in seen if b"secret" in each]

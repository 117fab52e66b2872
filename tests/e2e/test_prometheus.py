"""A real Prometheus, with the repository's configuration, on a running server."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import needs
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

DOCKER = Path(__file__).parents[2] / "docker"
ON_A_GPU = re.compile(r"nv_gpu_\w+")  # Triton has these where it sees a GPU
pytestmark = needs("prometheus")


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/{path}?{query}", timeout=5) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> Any:
        return self.get("query", query=expression)["result"]

    def wait_for(self, expression: str, patience: float = 60) -> Any:
        deadline = time.monotonic() + patience
        while not (found := self._try(expression)):
            assert time.monotonic() < deadline, f"{expression} stays without a result"
            time.sleep(0.5)
        return found

    def _try(self, expression: str) -> Any:
        try:
            return self.query(expression)
        except OSError:
            return None


def ask(server: ModelServer) -> None:
    body = json.dumps({"text_input": "4711 in words:", "max_tokens": 32}).encode()
    url = f"http://{server.http_url}/v2/models/ensemble/generate"
    urllib.request.urlopen(urllib.request.Request(url, body), timeout=30).read()


@pytest.fixture(scope="module")
def prometheus(
    streaming: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(DOCKER / "prometheus", folder / "config")
    targets = [{"targets": [f"127.0.0.1:{streaming.ports.metrics}"]}]
    (folder / "config/targets.yml").write_text(json.dumps(targets))
    port = free_ports().http
    command = [
        "prometheus",
        f"--config.file={folder / 'config/prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = Prometheus(port)
        server.wait_for('up{job="triton"} == 1')
        ask(streaming)
        server.wait_for('rate(nv_inference_request_success{model="ensemble"}[1m]) > 0')
        yield server
    finally:
        process.terminate()
        process.wait()


def panels() -> dict[str, list[str]]:
    dashboard = json.loads((DOCKER / "grafana/dashboards/triton.json").read_text())
    return {
        panel["title"]: [target["expr"] for target in panel["targets"]]
        for panel in dashboard["panels"]
        if "targets" in panel
    }


@pytest.mark.parametrize("title", panels())
def test_each_line_of_the_dashboard_has_data(prometheus: Prometheus, title: str) -> None:
    on_a_gpu = bool(prometheus.query('{__name__=~"nv_gpu_.+"}'))
    for expression in panels()[title]:
        asked = expression.replace("$model", ".*").replace("$__rate_interval", "1m")
        found = prometheus.query(asked)
        assert found or (ON_A_GPU.search(asked) and not on_a_gpu), asked


def test_every_rule_is_evaluated_and_a_healthy_server_alarms_nobody(
    prometheus: Prometheus,
) -> None:
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) == 6
    assert all(rule["health"] in ("ok", "unknown") for rule in rules)
    assert [
        alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"
    ] == []

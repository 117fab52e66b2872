import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.needs import skip_unless

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def promtool(*arguments: object) -> None:
    skip_unless("promtool")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", DOCKER / "prometheus/prometheus.yml")


def test_each_alert_fires_on_what_it_is_about_and_on_nothing_less() -> None:
    promtool("test", "rules", Path(__file__).with_name("rules_test.yml"))


def test_each_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        assert {"summary", "action"} == set(rule["annotations"]), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_service_is_pinned_watched_and_for_this_machine_alone() -> None:
    for name, service in COMPOSE["services"].items():
        assert re.search(r":[v\d][\d.]*\}?$", service["image"]), name
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_there_is_no_default_password() -> None:
    password = COMPOSE["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]

    assert re.fullmatch(r"\$\{GRAFANA_PASSWORD:\?.+\}", password)


def test_what_is_mounted_is_there() -> None:
    for name in ("prometheus", "grafana"):
        for volume in COMPOSE["services"][name]["volumes"]:
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).is_dir()


def test_the_dashboard_reads_the_provisioned_data_source() -> None:
    sources = yaml.safe_load(
        (DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    dashboard = json.loads((DOCKER / "grafana/dashboards/triton.json").read_text())

    asked = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "targets" in panel}

    assert asked == {source["uid"] for source in sources}


def test_a_dashboard_that_is_not_what_its_panels_say_is_told(tmp_path: Path) -> None:
    shutil.copytree(DOCKER, tmp_path / "docker")
    file = tmp_path / "docker/grafana/dashboards/triton.json"
    check = [sys.executable, tmp_path / "docker/dashboard.py", "--check"]

    assert subprocess.run(check, check=False).returncode == 0
    file.write_text(file.read_text().replace("nv_cpu_utilization", "nv_cpu_use"))
    assert subprocess.run(check, check=False, capture_output=True).returncode == 1

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.check.planted import VERSIONS, Site
from trtllm_deploy.machine.gpu import Gpu

PLANTED: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("planted.yaml").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module", params=[*VERSIONS])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("sound"), request.param)


@pytest.fixture
def site(sound: Site, tmp_path: Path) -> Site:
    """A copy, so that a test may spoil it."""
    return sound.copy(tmp_path / "site")


def plant(site: Site, mistake: dict[str, Any]) -> None:
    for name, text in mistake.get("files", {}).items():
        (site.root / name).parent.mkdir(parents=True, exist_ok=True)
        (site.root / name).write_text(text)
    for model, (old, new) in mistake.get("edit", {}).items():
        models = [each.name for each in site.repository.iterdir()] if model == "*" else [model]
        for each in models:
            site.edit(each, old, new)
    for key, value in mistake.get("write", {}).items():
        model, _, parameter = key.rpartition(" ")
        value = str(value).replace("ROOT", str(site.root))
        site.write(parameter, value, model or "tensorrt_llm")
    for path, value in mistake.get("build", {}).items():
        site.build(path, value)
    for old, new in mistake.get("copy", {}).items():
        shutil.copytree(site.root / old, site.root / new)
    if "remove" in mistake:
        shutil.rmtree(site.root / mistake["remove"])
    start = mistake.get("start", {})
    if "gpus" in start:
        gpus = enumerate(start["gpus"])
        start = {**start, "gpus": tuple(Gpu(n, a, b * 2**30, c) for n, (a, b, c) in gpus)}
    site.start(**start)


def test_a_sound_repository_has_no_findings(sound: Site) -> None:
    assert sound.findings() == []


@pytest.mark.parametrize("mistake", PLANTED.values(), ids=[*PLANTED])
def test_a_planted_mistake_is_named(site: Site, mistake: dict[str, Any]) -> None:
    plant(site, mistake)
    level = "error" if "error" in mistake else "warning"
    where, what, fix = mistake[level]
    where = "tensorrt_llm/config.pbtxt:" if where == "LLM" else where
    findings = site.findings()
    named = [
        each
        for each in findings
        if (each.level, bool(each.why)) == (level, True)
        and (where in each.where and what in each.what and fix in each.fix)
    ]
    if site.release == mistake.get("only", site.release):
        assert named, findings
        assert len(findings) == 1 + mistake.get("more", 0), findings
    else:
        assert not named, findings


def test_thirty_mistakes_are_named_in_each_release() -> None:
    for release in VERSIONS:
        assert sum(each.get("only", release) == release for each in PLANTED.values()) >= 30

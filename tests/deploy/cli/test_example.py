"""The quickstart's files for a user without a checkout."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_perf.errors import UserError
from trtllm_deploy.cli import example
from trtllm_deploy.cli import main as cli
from trtllm_deploy.spec.deployment_file import load_deployment


def test_the_example_can_be_planned_where_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "place"
    done = CliRunner().invoke(cli.command, ["example", str(folder)])
    assert done.exit_code == 0, done.output
    file = load_deployment(folder / "quickstart.yaml")
    assert len(file.cells()) == 6
    measure = file.deployment.measure
    assert measure is not None
    assert file.resolve(measure.data).is_file()


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "number-words").mkdir()
    done = CliRunner().invoke(cli.command, ["example", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert "number-words" in str(done.exception)
    assert not (tmp_path / "quickstart.yaml").exists()


@pytest.mark.parametrize("copy", ["copyfile", "copytree"])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        why = "No space left on device"
        if copy == "copytree":
            target.mkdir()
            raise shutil.Error([(str(source), str(target), f"[Errno 28] {why}")])
        target.touch()
        raise OSError(28, why, str(target))

    monkeypatch.setattr(shutil, copy, full)
    done = CliRunner().invoke(cli.command, ["example", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert "No space left on device" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_what_pip_compiled_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "examples"
    (source / "number-words" / "__pycache__").mkdir(parents=True)
    (source / "number-words" / "__pycache__" / "words.pyc").touch()
    (source / "number-words" / "words.py").touch()
    (source / "quickstart.yaml").touch()
    monkeypatch.setattr(example, "packaged", lambda folder: tmp_path / folder)
    done = CliRunner().invoke(cli.command, ["example", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "new" / "number-words").iterdir()] == ["words.py"]

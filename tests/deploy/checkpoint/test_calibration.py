"""Where calibration prompts come from, and what is said when they don't come."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.calibration import (
    built_in_prompts,
    choose,
    read_prompts,
    write_prompts,
)


def jsonl(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the package ``datasets``: answers with ``rows``, or raises ``error``."""

    class Datasets(ModuleType):
        rows: list[dict[str, Any]]
        error: Exception | None = None
        asked: tuple[Any, ...] = ()

        class config:  # noqa: N801 (the package's own name)
            HF_HUB_OFFLINE = False

        def disable_progress_bars(self) -> None: ...

        def load_dataset(self, *name: Any, **options: Any) -> Any:
            self.asked = (*name, options)
            if self.error is not None:
                raise self.error
            return iter(self.rows)

    module = Datasets("datasets")
    module.rows = []
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_the_jsonl_files_of_a_folder_are_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "a.jsonl", {"text": "one"}, {"text_input": "two 二\u2028"})
    jsonl(folder / "b.jsonl", {"text": "three"}, {"text": "four"})
    file = write_prompts(folder, 3, tmp_path / "out" / "prompts.jsonl")
    assert list(read_prompts(file)) == ["one", "two 二\u2028", "three"]


def test_cnn_dailymail_is_read_as_a_stream_and_no_further_than_needed(
    hub: Any, tmp_path: Path
) -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield {"id": str(number), "article": f"story {number}", "highlights": "short"}
            number += 1

    hub.rows = endless()
    file = write_prompts("cnn_dailymail", 3, tmp_path / "prompts.jsonl")
    assert list(read_prompts(file)) == ["story 0", "story 1", "story 2"]
    assert hub.asked == (
        "abisee/cnn_dailymail",
        "3.0.0",
        {"split": "train", "streaming": True},
    )


def test_offline_the_local_cache_is_asked(hub: Any, tmp_path: Path) -> None:
    hub.config.HF_HUB_OFFLINE = True
    hub.rows = [{"text": "a"}]
    write_prompts("acme/texts", 3, tmp_path / "prompts.jsonl")
    assert hub.asked == ("acme/texts", None, {"split": "train", "streaming": False})


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no texts"),
        ([{"label": 1, "vector": [1]}], "no text column among label, vector; known are text_input"),
        ([{"text": "  "}], "has no texts"),
    ],
)
def test_a_data_set_without_text_is_refused(
    hub: Any, tmp_path: Path, rows: list[dict[str, Any]], says: str
) -> None:
    hub.rows = rows
    with pytest.raises(UserError, match=says):
        write_prompts("acme/texts", 3, tmp_path / "prompts.jsonl")
    assert not (tmp_path / "prompts.jsonl").exists()


def test_an_unreachable_hub_is_one_line_without_the_token(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.error = ConnectionError("no route for hf_secret")
    with pytest.raises(
        UserError, match=r"cnn_dailymail can't be loaded from the hub \(ConnectionError: no route"
    ) as caught:
        write_prompts("cnn_dailymail", 3, tmp_path / "prompts.jsonl")
    assert "or name a jsonl under 'calibration: data:'" in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_without_the_package_a_hub_name_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package 'datasets'; pip install"):
        write_prompts("cnn_dailymail", 3, tmp_path / "prompts.jsonl")


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_a_folder_is_read_by_datasets_itself(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "data"
    folder.mkdir()
    made = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    if kind == "disk":
        made.save_to_disk(folder)
    else:
        made.to_parquet(folder / "train.parquet")
    file = write_prompts(folder, 5, tmp_path / "prompts.jsonl")
    assert list(read_prompts(file)) == ["one", "two"]


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="isn't a data set"):
        write_prompts(tmp_path, 5, tmp_path / "out" / "prompts.jsonl")


def test_prompts_are_chosen_by_the_seed() -> None:
    prompts = [str(number) for number in range(50)]
    assert choose(prompts, 50, 1) == prompts
    assert choose(prompts, 5, 1) == choose(prompts, 5, 1) != choose(prompts, 5, 2)


def test_the_built_in_texts_are_many_and_in_two_scripts() -> None:
    texts = built_in_prompts()
    assert len(texts) == 16
    assert all(len(text) > 40 for text in texts)
    assert any("北京" in text for text in texts)

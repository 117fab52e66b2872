"""Records on disk read as those in memory."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path

import pytest

from llm_perf import records
from llm_perf.record import Record
from llm_perf.records import Records
from tests.client.runs import asked


@pytest.fixture(params=["memory", "disk", "full disk"])
def kept(request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[Record], Records]:
    if request.param != "memory":
        monkeypatch.setattr(records, "_IN_MEMORY", 1000)
    if request.param == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        request.addfinalizer(
            lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        )
    made = [asked(i, answer="四" * i, chunks_ms=range(150, 150 + i)) for i in range(200)]
    prompts = [record.prompt for record in made[:150]]  # the others' are no data set's
    return made, Records(made, prompts, tmp_path)


def test_they_are_a_sequence(kept: tuple[list[Record], Records]) -> None:
    made, read = kept
    assert list(read) == made
    assert (len(read), read[0], read[-1], read[199]) == (200, made[0], made[199], made[199])
    assert read[3:190:7] == tuple(made[3:190:7])
    assert read[7].prompt is made[7].prompt
    for outside in (200, -201):
        with pytest.raises(IndexError):
            read[outside]


def test_several_readers_do_not_meet(kept: tuple[list[Record], Records]) -> None:
    made, read = kept
    assert list(zip(read, reversed(read), strict=True)) == list(
        zip(made, reversed(made), strict=True)
    )


def test_they_travel_without_their_file(kept: tuple[list[Record], Records]) -> None:
    made, read = kept
    assert pickle.loads(pickle.dumps(read)) == tuple(made)


def test_nothing_is_left_on_the_disk(kept: tuple[list[Record], Records], tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []

"""Files are there whole, or nothing of them, and one line says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_perf.errors import UserError
from llm_perf.files import write_text


def test_what_cannot_be_written_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "one")
    (tmp_path / "new" / "b.txt").mkdir()
    for path, why in (("a.txt/c.txt", "Not a directory|File exists"), ("b.txt", "Is a directory")):
        with pytest.raises(UserError, match=f"{path}: can't be written: ({why})"):
            write_text(tmp_path / "new" / path, "two")
    assert (tmp_path / "new/a.txt").read_text() == "one"
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == ["a.txt", "b.txt"]

"""docs/architecture.md names folders and modules that exist, and every room."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGES = ("deploy/trtllm_deploy", "client/llm_perf")
SERVERS = r"(.*_)?(vllm|trtllm[-_]serve)(_.*)?"


def named() -> set[str]:
    return set(re.findall(r"`((?:deploy|client|templates|docs)/[\w./*-]+)`", PAGE))


def test_what_the_page_names_is_there() -> None:
    assert len(named()) > 20
    for path in named():
        assert list(ROOT.glob(path)), path


def test_bare_file_names_are_of_a_room() -> None:
    files = {path.name for each in PACKAGES for path in (ROOT / each).rglob("*")}
    for name in re.findall(r"`(\w+\.(?:py|yaml))`", PAGE):
        assert name in files, name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_on_the_page_and_says_in_one_docstring_what_it_is_for(package: str) -> None:
    table = PAGE.partition(f"| `{package}/` |")[2].partition("\n\n")[0]
    for room in (path.parent for path in (ROOT / package).glob("*/__init__.py")):
        assert f"| `{room.name}` |" in table, room
        assert (room / "__init__.py").read_text(encoding="utf-8").startswith('"""'), room


def words_of(file: Path) -> list[str]:
    """What a file's code may ask for: its names, and the texts and keys that are one word."""
    if file.suffix != ".py":
        return re.findall(r"^[- ]*([\w-]+):", file.read_text(encoding="utf-8"), re.MULTILINE)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    fields = (value for node in ast.walk(tree) for _, value in ast.iter_fields(node))
    return [value for value in fields if isinstance(value, str) and " " not in value]


def test_only_the_backends_room_names_a_server_other_than_triton() -> None:
    """Whoever adds a server adds it there; the rest asks what a ``Server`` says."""
    package = ROOT / PACKAGES[0]
    named: dict[str, set[str]] = {"backends": set()}
    for file in (each for each in package.rglob("*") if each.suffix in (".py", ".yaml")):
        if any(re.fullmatch(SERVERS, word, re.IGNORECASE) for word in words_of(file)):
            named.setdefault(file.relative_to(package).parts[0], set()).add(file.name)
    assert len(named.pop("backends")) > 3
    assert named == {}

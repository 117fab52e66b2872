from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from tests.standins.contract import parser
from trtllm_deploy.releases.commands import Command, Flag, read_flag
from trtllm_deploy.releases.release import load_release, release_names

CONTRACTS = Path(__file__).parents[2] / "standins" / "contracts"
COMMANDS = ("trtllm-build", "quantize", "convert_checkpoint-qwen", "convert_checkpoint-llama")
RELEASES = ("0.11.0", "1.2")
"""Those whose parsers are stood in for here; all are held against NVIDIA's own in tests/nvidia."""


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("command", [*COMMANDS, "launch_triton_server"])
def test_a_release_has_exactly_the_flags_of_its_commands(command: str, release: str) -> None:
    contract = json.loads((CONTRACTS / f"{command}-{release}.json").read_text())["flags"]
    flags = load_release(release).commands[command].flags
    expected = {}
    for each in contract:
        names = each["flag"] if isinstance(each["flag"], list) else [each["flag"]]
        expected[names[0]] = (each, tuple(names[1:]))
    assert {f"--{name}" for name in flags} == set(expected)
    for name, flag in flags.items():
        each, aliases = expected[f"--{name}"]
        assert flag.aliases == aliases
        assert flag.required == bool(each.get("required"))
        assert flag.many == (each.get("nargs") == "+")
        assert (flag.kind == "switch") == (each["action"] == "store_true")
        if isinstance(each["choices"], list):
            assert flag.choices == tuple(str(one) for one in each["choices"] if one is not None)
        if flag.kind in ("int", "float"):
            assert flag.kind == each["type"]
        default = each["default"]
        if flag.kind != "switch" and default != "SUPPRESS" and "Mode." not in str(default):
            assert flag.default == (
                str(default) if flag.choices and default is not None else default
            )


def test_what_to_write_instead_is_said_for_every_flag_that_a_release_dropped() -> None:
    names = release_names()
    for old, new in itertools.pairwise(names):
        for command in COMMANDS:
            before, after = (load_release(name).commands[command] for name in (old, new))
            assert set(before.flags) - set(after.flags) <= set(after.instead)


def good_value(flag: Flag) -> st.SearchStrategy[Any]:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(0, 10**6),
        "float": st.floats(0, 10),
        "text": st.text("abc/-_.", min_size=1).filter(lambda text: text[0] not in "-"),
        "switch": st.booleans(),
    }
    one = st.sampled_from(flag.choices) if flag.choices else kinds[flag.kind]
    return st.lists(one, min_size=1, max_size=3) if flag.many else one


def settings(release: str, command: str) -> st.SearchStrategy[dict[str, Any]]:
    flags = load_release(release).commands[command]
    free = {
        name: good_value(each) for name, each in flags.flags.items() if name not in flags.instead
    }
    required = {name: free.pop(name) for name, each in flags.flags.items() if each.required}
    return st.fixed_dictionaries(required, optional=free)


@given(st.data(), st.sampled_from(RELEASES), st.sampled_from(COMMANDS))
def test_every_line_that_we_write_is_one_that_the_command_takes(
    data: st.DataObject, release: str, command: str
) -> None:
    values = data.draw(settings(release, command))
    line = load_release(release).commands[command].line(values)
    parsed = vars(parser(command, release).parse_args(line))
    for name, value in values.items():
        got = parsed[name.replace("-", "_")]
        if isinstance(value, list):
            assert [str(one) for one in got] == [str(one) for one in value]
        elif value or load_release(release).commands[command].flags[name].kind != "switch":
            assert str(got) == str(value)


@given(
    st.sampled_from(RELEASES),
    st.text("abcdefgh_", min_size=1),
    st.integers() | st.text(max_size=4) | st.booleans(),
)
def test_a_line_is_refused_or_taken_by_the_command(release: str, name: str, value: Any) -> None:
    try:
        line = load_release(release).commands["trtllm-build"].line({name: value})
    except UserError:
        return
    assert isinstance(parser("trtllm-build", release).parse_args(line), argparse.Namespace)


def test_a_required_flag_is_missed() -> None:
    command = load_release("1.2").commands["convert_checkpoint-qwen"]
    with pytest.raises(UserError, match="--model_dir: is required"):
        command.line({"tp_size": 2})


@pytest.mark.parametrize(
    ("value", "fix"),
    [(3, None), (True, "write a whole number"), ("3", "write a whole number"), (2.5, "write")],
)
def test_a_number_is_a_number(value: Any, fix: str | None) -> None:
    wrong = Command("c", {"n": Flag("n", "int")}, {}).mistake("n", value)
    assert (wrong is None) if fix is None else (wrong is not None and fix in wrong[1])


@given(
    st.sampled_from(["int", "float", "text", "switch", "a|b", "enable|disable"]),
    st.lists(st.sampled_from(["--x", "-sq", "--long_name"]), unique=True),
    st.booleans(),
    st.booleans(),
)
def test_a_flag_line_says_what_it_says(
    kind: str, aliases: list[str], required: bool, many: bool
) -> None:
    text = kind + "".join(f" also {alias}" for alias in aliases)
    flag = read_flag("f", f"{text}{' required' * required}{' list' * many}")
    assert flag.aliases == tuple(aliases)
    assert (flag.required, flag.many) == (required, many)
    assert flag.choices == (tuple(kind.split("|")) if "|" in kind else ())


def test_a_flag_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="flag f"):
        read_flag("f", "int is required")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.cli.main import command
from llm_perf.duration import UNITS, parse_duration, spell_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("0.5", 0.5), ("1m", 60), ("500ms", 0.5), ("1m30s", 90), ("1h 2m 3s", 3723)),
        *(("1.5h", 5400), ("250 us", 0.00025), ("2min", 120), (" 10s ", 10), ("0", 0)),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 2", "1m30", "nan", "inf", "1e9", "1d", "٣s"])
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no length of time: write it like 90, 1m30s or 500ms"):
        parse_duration(text)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1))
def test_units_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert parse_duration(text) == pytest.approx(sum(n * UNITS[unit] for n, unit in parts))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45, "45 s"), (2000, "33 min"), (7500, "2 h 5 min"), (99.4, "99 s"), (5990, "1 h 40 min")],
)
def test_times_are_spelt_for_the_eye(seconds: float, said: str) -> None:
    assert spell_duration(seconds) == said


TIMES = (
    *("ramp", "warmup-seconds", "duration", "measurement-interval", "request-timeout"),
    *("give-up-after", "server-metrics-interval"),
)


@pytest.mark.parametrize("flag", TIMES)
def test_every_flag_of_time_takes_units(flag: str) -> None:
    known = {option.opts[0].removeprefix("--"): option.name for option in command.params}
    context = command.make_context("llm_perf", [f"--{flag}=1m500ms"])
    assert context.params[str(known[flag])] == 60.5
    timed = {name for name in known if command_metavar(name) == "TIME"}
    assert timed == set(TIMES)


def command_metavar(name: str) -> str | None:
    options = {each.opts[0].removeprefix("--"): each for each in command.params}
    return options[name].metavar

"""What searches in a ledger found: their probes in, judged as the search judges them, answers out.

A search is known by its target, limits and mode; who asked again with other limits has two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from llm_perf.errors import UserError
from llm_perf.figures.limits import Limit, parse_limit
from llm_perf.report.points import Line
from llm_perf.search.probe import Probe
from llm_perf.search.question import CONFIRMED, INDICATIVE, Answer, Question
from llm_perf.search.seen import Criterion, Seen

_MODES: Final = {mode.name: mode for mode in (INDICATIVE, CONFIRMED)}


def answers(lines: Iterable[Line]) -> list[tuple[str, Answer]]:
    """Give each searched target with what its probes show: a question's together, in the order they
    were first asked, the highest load first."""
    found: dict[tuple[str, str, str, tuple[str, ...]], list[Line]] = {}
    for line in lines:
        asked = line.record.get("search") or {}
        if line.record.get("kind") == "probe" and asked.get("mode") in _MODES:
            key = (line.target, asked["vary"], asked["mode"], tuple(asked["limits"]))
            found.setdefault(key, []).append(line)
    told = []
    for (target, vary, mode, limits), probes in found.items():
        with suppress(UserError, KeyError, TypeError, ValueError):  # of another version's
            criteria = tuple(Criterion(parse_limit(each, "search")) for each in limits)
            told.append((target, _answer(Question(criteria, vary, _MODES[mode]), probes)))  # type: ignore[arg-type]
    asked_at = {each[1].question: at for at, each in reversed(list(enumerate(told)))}
    return sorted(told, key=lambda each: (asked_at[each[1].question], -(each[1].about or 0.0)))


def limits_of(lines: Iterable[Line]) -> list[Limit]:
    """The limits that all searches had in common."""
    asked = {tuple((line.record.get("search") or {}).get("limits") or ()) for line in lines}
    asked.discard(())
    return [parse_limit(each, "search") for each in asked.pop()] if len(asked) == 1 else []


def _answer(question: Question, lines: Sequence[Line]) -> Answer:
    probes: dict[tuple[float, int | None], Probe] = {}
    rough, loops = [], []
    for line in lines:
        load, asked = line.record["load"], line.record["search"]
        if "seen" not in asked:
            continue
        value, seen = load["value"], Seen.from_json(asked["seen"])
        if asked["stage"] == "ends":
            known = (value, load.get("requests"))
            probes.setdefault(known, question.probe(value)).seen.append(seen)
        elif asked["stage"] == "rough":
            rough.append(question.probe(value, seen))
        else:
            loops.append(question.probe(value, seen))
    return Answer(
        question,
        tuple(sorted(probes.values(), key=lambda each: each.value)),
        tuple(rough),
        tuple(loops),
        "the ledger shows no more",
    )

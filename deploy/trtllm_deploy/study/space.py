"""What ``tune`` may choose from: settings with their values, points, what a failure teaches. Pure.

A point has a value for each setting. Knows nothing of how a point is built or measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trtllm_deploy.machine.data import load_data
from trtllm_deploy.plan.memory import WEIGHT_BYTES
from trtllm_deploy.releases.commands import Scalar
from trtllm_deploy.spec.precision import PRECISIONS
from trtllm_deploy.study.evidence import Limit

PRECISION: Final = "precision"
_KNOWN: Final[Mapping[str, Mapping[str, Any]]] = load_data("study/tuned_settings.yaml")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting and the values to try, the baseline's first.

    ``most``: instead of a list, doubled up to it while the setting's limit binds.
    """

    name: str
    values: tuple[Scalar, ...]
    most: int | None = None

    @property
    def limit(self) -> Limit | None:
        """The limit of a step that it moves."""
        found: Limit | None = _KNOWN.get(self.name, {}).get("limit")
        return found

    def after(self, value: Scalar) -> Scalar | None:
        """The next value that moves its limit up; None where there is none."""
        if self.most is not None:
            return min(2 * int(value), self.most) if int(value) < self.most else None
        larger = [each for each in self.values if float(each) > float(value)]
        return min(larger, key=float) if larger else None


@dataclass(frozen=True, slots=True)
class Point:
    """A value for each setting, in the order of the file."""

    values: tuple[tuple[str, Scalar], ...]

    def __getitem__(self, name: str) -> Scalar:
        return dict(self.values)[name]

    def with_value(self, name: str, value: Scalar) -> Point:
        """The point with one value in place of another."""
        return Point(tuple((key, value if key == name else old) for key, old in self.values))

    def changes(self, other: Point) -> dict[str, Scalar]:
        """What is set otherwise than in ``other``."""
        return {name: value for name, value in self.values if other[name] != value}

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values)


@dataclass(frozen=True, slots=True)
class Space:
    """All settings that are tuned."""

    settings: tuple[Setting, ...]

    @property
    def baseline(self) -> Point:
        """The first value of each."""
        return Point(tuple((each.name, each.values[0]) for each in self.settings))

    def apart(self) -> Iterator[Point]:
        """The baseline, and each other value in its place alone."""
        yield self.baseline
        for each in self.settings:
            for value in (*each.values[1:], *([] if each.most is None else [each.most])):
                yield self.baseline.with_value(each.name, value)

    def listed(self, around: Point) -> Iterator[Point]:
        """Every combination of the values that are listed; what is doubled is as in ``around``."""
        ways = [
            each.values if each.most is None else (around[each.name],) for each in self.settings
        ]
        names = [each.name for each in self.settings]
        for values in itertools.product(*ways):
            yield Point(tuple(zip(names, values, strict=True)))

    def moved(self, point: Point, limits: Sequence[Limit]) -> Iterator[Point]:
        """Where a step up would go, for each of the limits that bind."""
        for limit in limits:
            for each in self.settings:
                value = each.after(point[each.name]) if each.limit == limit else None
                if value is not None:
                    yield point.with_value(each.name, value)


@dataclass(slots=True)
class Lessons:
    """Points that failed, and so what isn't tried: all that asks for as much or more everywhere."""

    failed: dict[Point, str] = field(default_factory=dict)

    def learn(self, point: Point, why: str) -> None:
        """Keep a failure."""
        self.failed[point] = why

    def against(self, point: Point) -> str | None:
        """Why a point isn't tried."""
        for worse, why in self.failed.items():
            if point == worse:
                return why
            if all(_asks_as_much(name, point[name], value) for name, value in worse.values):
                return f"asks for no less than {worse}, which failed: {why}"
        return None


def _asks_as_much(name: str, value: Scalar, failed: Scalar) -> bool:
    if value == failed:
        return True
    if name == PRECISION:
        mine, theirs = (WEIGHT_BYTES.get(PRECISIONS[str(x)].quant_algo) for x in (value, failed))
        return mine is not None and theirs is not None and mine >= theirs
    takes = _KNOWN.get(name, {}).get("takes_memory", False)
    return bool(takes) and float(value) >= float(failed)

"""What the commands of a TensorRT-LLM release accept, and command lines that they accept.

In: flags as a release file writes them, and values from a deployment file. Out: argv, or what is
wrong with a value and what to write instead. Knows nothing of what the commands do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_perf.errors import UserError

Scalar = str | int | float | bool

_FLAG = re.compile(
    r"(?P<kind>\S+)(?P<aliases>( also \S+)*)(?P<required> required)?(?P<list> list)?"
    r"( = (?P<default>.+))?"
)
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "text": ((str, int, float), "text"),
    "switch": ((bool,), "true or false"),
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, its name without dashes. ``kind`` is int, float, text, switch or choice."""

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    default: Scalar | None = None
    aliases: tuple[str, ...] = ()
    required: bool = False
    many: bool = False

    def mistake(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value and what to write instead; None for a good one."""
        if self.many and isinstance(value, list):
            return next((wrong for each in value if (wrong := self.mistake(each))), None)
        if self.kind == "choice":
            if isinstance(value, (str, int)) and str(value) in self.choices:
                return None
            return f"{value!r} is none of its values", f"write one of: {', '.join(self.choices)}"
        kinds, meaning = _KINDS[self.kind]
        if isinstance(value, kinds) and (self.kind == "switch" or not isinstance(value, bool)):
            return None
        return f"{value!r} isn't {meaning}", f"write {meaning}"

    def words(self, value: Any) -> tuple[str, ...]:
        """The flag and a checked value as they stand in argv; a switch that is off says nothing."""
        if self.kind == "switch":
            return (f"--{self.name}",) if value else ()
        values = value if isinstance(value, list) else [value]
        return (f"--{self.name}", *map(str, values))


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a release.

    ``instead`` says what to write in place of a flag that is gone or better not used; ``script``
    is the path below the container's examples folder, None for what is on PATH. ``called`` are the
    flags that scripts of one purpose mostly have, and what they are called here; ``always`` is said
    beside whatever else is.
    """

    name: str
    flags: Mapping[str, Flag]
    instead: Mapping[str, str]
    script: str | None = None
    called: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, Scalar] = field(default_factory=dict)

    def spelt(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values under the flags that this command has for them."""
        return {**self.always, **{self.called.get(key, key): each for key, each in values.items()}}

    def mistake(self, name: str, value: Any) -> tuple[str, str] | None:
        """What is wrong with a flag or its value and what to write instead; None: nothing."""
        if name in self.instead:
            return f"{self.name} has no use for {name}", self.instead[name]
        flag = self.flags.get(name)
        if flag is not None:
            return flag.mistake(value)
        for known in self.flags.values():
            if f"--{name}" in known.aliases:
                return f"{name} is another name of {known.name}", f"write {known.name}"
        near = difflib.get_close_matches(name, self.flags, n=1)
        return (
            f"{self.name} has no flag {name}",
            f"did you mean {near[0]!r}?" if near else "remove it",
        )

    def line(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The flags with these values, in their order, as argv without the command itself.

        None leaves a flag unsaid. Raises UserError: a flag that the release doesn't have, a value
        that it doesn't take, or a required flag that is missing.
        """
        words: list[str] = []
        for name, value in values.items():
            if value is None:
                continue
            wrong = self.mistake(name, value)
            if wrong:
                raise UserError(wrong[0], where=f"{self.name} --{name}", fix=wrong[1])
            words.extend(self.flags[name].words(value))
        for flag in self.flags.values():
            if flag.required and values.get(flag.name) is None:
                raise UserError("is required", where=f"{self.name} --{flag.name}")
        return tuple(words)


def read_command(name: str, data: Mapping[str, Any]) -> Command:
    """A command as a release file writes it."""
    return Command(
        name=name,
        flags={key: read_flag(key, text) for key, text in data["flags"].items()},
        instead=data.get("instead", {}),
        script=data.get("script"),
        called=data.get("called", {}),
        always=data.get("always", {}),
    )


def read_flag(name: str, text: str) -> Flag:
    """Read ``int also --max_decoder_seq_len = 1``, the release files' way to write a flag."""
    match = _FLAG.fullmatch(text)
    if match is None:
        raise ValueError(f"flag {name}: cannot read {text!r}")
    kind, default = match["kind"], match["default"]
    return Flag(
        name=name,
        kind=kind if kind in _KINDS else "choice",
        choices=() if kind in _KINDS else tuple(kind.split("|")),
        default=_default(kind, default),
        aliases=tuple(match["aliases"].replace(" also", "").split()),
        required=bool(match["required"]),
        many=bool(match["list"]),
    )


def _default(kind: str, text: str | None) -> Scalar | None:
    if kind == "switch":
        return False
    if text is None or kind not in ("int", "float"):
        return text
    return int(text) if kind == "int" else float(text)

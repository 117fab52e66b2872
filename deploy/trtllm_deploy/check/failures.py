"""What a log says went wrong: known failure lines, told as cause and fix.

In: the lines of a log. Out: a finding for each cause, root causes first; the patterns and texts are
in ``failures.yaml``, and beside them those that the kinds of servers bring. It knows nothing of who
wrote the log, or of the machine here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trtllm_deploy.backends.servers import KINDS
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.finding import Finding, Level

# What Triton, TensorRT-LLM, python and other servers call an error, after mpirun's tag; of a python
# model's error, the traceback is left in the log.
_ERROR = re.compile(
    r"^(?:\[\d+,\d+\]<\w+>: ?)?(?:"
    r'E\d{4} [\d:.]+ \d+ \S+\] "?(?P<triton>.+?)(?:\\n\\nAt:.*)?"?'
    r"|(?:\[[^\]]*\] )?\[(?:TensorRT-LLM\]\[ERROR|TRT-LLM\] \[E|TRT\] \[E)\] (?P<trtllm>.+)"
    r"|  what\(\):  (?P<cpp>.+)"
    r"|(?P<python>(?:[\w.]+Error|[\w.]+Exception): .+)"
    r"|(?P<mpirun>(?:mpirun (?:noticed|detected|was unable)|There are not enough slots).+)"
    + "".join(f"|{each.error}" for each in KINDS.values() if each.error)
    + ")$"
)
# errors that mean nothing: of a machine without a GPU, and of a server that was told to stop
_HARMLESS = ("CudaDriverHelper", "unable to create stream", "failed to stop server")
# A table's row whose first cells are blank, after what a container or mpirun writes before it; and
# the end of a cell that is full: where more than one blank is left, its text ended with a new line.
_CONTINUED = re.compile(r"[^|]*(?:\| )?(?:\| {2,})+\| (?P<text>.*\|)$")
_BORDER = re.compile(r"(?<!  ) \|$")
_READ = 2000  # characters of a line; backtraces and tables make them endless
_SHOWN = 300  # characters of a matched value, or of a line


@dataclass(frozen=True, slots=True)
class Failure:
    """One known cause. ``what`` and ``fix`` may have ``{group}`` of the pattern that matched.

    It isn't told beside one of ``unless``, which say the same more exactly.
    """

    name: str
    says: tuple[str, ...]
    what: str
    why: str
    fix: str
    source: str
    level: Level = "error"
    consequence: bool = False
    passes: bool = False
    unless: tuple[str, ...] = ()

    def first(self, text: str) -> re.Match[str] | None:
        """Where ``text`` says so first."""
        found = (re.search(pattern, text, re.MULTILINE) for pattern in self.says)
        return min(filter(None, found), key=re.Match.start, default=None)


@cache
def failures() -> tuple[Failure, ...]:
    """All that is known."""
    brought = (each.failures for each in KINDS.values() if each.failures)
    entries = [entry for file in ("check/failures.yaml", *brought) for entry in load_data(file)]
    tuples = ({key: tuple(entry.get(key, ())) for key in ("says", "unless")} for entry in entries)
    return tuple(
        Failure(**{**entry, **lists}) for entry, lists in zip(entries, tuples, strict=True)
    )


def diagnose(text: Iterable[str], log: str = "log") -> list[Finding]:
    """The known causes in the lines of a log; none where nothing known is said.

    One finding for a cause, however many lines say it; ``where`` is ``log`` and the number of the
    first. Root causes come before what follows from them, earlier lines before later ones.
    """
    whole = _whole(text)
    return [_finding(each, match, whole, log) for each, match in _causes(whole)]


def _whole(text: Iterable[str]) -> str:
    return "\n".join(line[:_READ] for line in unwrapped(text))


def _causes(whole: str) -> list[tuple[Failure, re.Match[str]]]:
    found = [(each, match) for each in failures() if (match := each.first(whole))]
    names = {each.name for each, _ in found}
    found = [(each, match) for each, match in found if names.isdisjoint(each.unless)]
    return sorted(found, key=lambda pair: (pair[0].consequence, pair[1].start()))


def stays_so(files: Iterable[Path]) -> bool:
    """Whether logs tell of a known error that another try of the same can't change."""
    texts = (_whole(file.read_text(errors="replace").splitlines()) for file in files)
    found = [each for text in texts for each, _ in _causes(text)]
    errors = [each for each in found if each.level == "error" and not each.consequence]
    return bool(errors) and not any(each.passes for each in found)


def unwrapped(text: Iterable[str]) -> Iterator[str]:
    """The lines of a log, those of tables that Triton wraps in a cell joined again.

    As many lines as there were, the joined one in the place of its first. Triton's table printer
    cuts a cell where its column ends, in the midst of a word, and at each end of a line.
    """
    waiting: list[str] = []
    for line in (line.rstrip("\r\n") for line in text):
        more = _CONTINUED.match(line) if waiting else None
        if more is None:
            yield from waiting
            waiting = [line]
        elif border := _BORDER.search(waiting[0]):
            waiting[0] = waiting[0][: min(border.start(), _READ)] + more["text"]
            waiting.append("")
        else:  # the cell's own text went on to a new line
            yield from waiting
            waiting = [more["text"]]
    yield from waiting


def diagnose_logs(files: Iterable[Path]) -> list[Finding]:
    """The same of several logs, each cause once."""
    logs = ((str(file), file.read_text(errors="replace").splitlines()) for file in files)
    return once(each for name, lines in logs for each in diagnose(lines, name))


def once(findings: Iterable[Finding]) -> list[Finding]:
    """The first finding of each cause: several ranks' logs tell of the same."""
    found: dict[str, Finding] = {}
    for each in findings:
        found.setdefault(each.what, each)
    return list(found.values())


def _finding(failure: Failure, match: re.Match[str], whole: str, log: str) -> Finding:
    said = {name: (value or "…")[:_SHOWN] for name, value in match.groupdict().items()}
    line = whole.count("\n", 0, match.start()) + 1
    what, fix = failure.what.format_map(said), failure.fix.format_map(said)
    return Finding(failure.level, what, f"{log}:{line}", failure.why, fix)


def error_in(line: str) -> str | None:
    """What a line calls an error; None for other lines, and for errors that mean nothing."""
    match = _ERROR.match(line)
    text = next(filter(None, match.groups())) if match else ""
    return text[:_SHOWN] if text and not text.startswith(_HARMLESS) else None


def first_errors(lines: Sequence[str], count: int = 2) -> list[str]:
    """What a log calls errors first, for later ones follow from these; else its last lines."""
    said = list(dict.fromkeys(filter(None, map(error_in, lines))))[:count]
    return said or [line[:_SHOWN] for line in lines if line.strip()][-count:]

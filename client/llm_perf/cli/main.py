"""The command ``llm_perf``: flags in, table on stdout, files beside it, exit code out.

Imports little, so that ``--help`` is quick. Exit codes: 0 measured, 1 too many requests failed
(``--max-failure-rate``, ``--stop-after-failures``, ``--give-up-after``), 2 the user can mend it
(one line on stderr), 3 a check that was asked for fails (``--strict``, ``compare --fail-if``), 130
interrupted, by SIGTERM and SIGHUP too.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_perf import __version__
from llm_perf.cli import flags as asked
from llm_perf.cli.options import THEMES, ThemedCommand
from llm_perf.ending import end_like_ctrl_c
from llm_perf.errors import UserError, exit_code

if TYPE_CHECKING:
    from llm_perf.api import Conditions, Endpoint, Load, Planned, Run

SUBCOMMANDS: Final = {
    "ask": "llm_perf.cli.ask:ask_command",
    "compare": "llm_perf.results.compare:compare_command",
    "report": "llm_perf.cli.report:report_command",
    "search": "llm_perf.cli.search:search_command",
    "selftest": "llm_perf.selftest.selftest:selftest_command",
}


class _Command(ThemedCommand):
    """Measures, unless the first word is another command's name."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if not words or words[0].startswith("-"):
            return super().main(words, *more, **extra)
        command = subcommand(words[0])
        return command.main(words[1:], prog_name=f"llm_perf {words[0]}", **extra)


def subcommand(name: str) -> click.Command:
    """Import one of ``SUBCOMMANDS``. Raises UserError: there is none of that name."""
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SUBCOMMANDS)}"
        raise UserError(f"there is no command {name!r}", fix=fix)
    module, _, attribute = SUBCOMMANDS[name].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


@click.command(
    name="llm_perf",
    cls=_Command,
    params=[option for options in THEMES.values() for option in options],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Other commands: llm_perf ask QUESTION (an answer as it comes), llm_perf search (up to "
    "which load limits are kept), llm_perf selftest (how exact and how fast this machine is as a "
    "client), llm_perf compare A B (two runs of one workload), llm_perf report RESULTS (a page to "
    "mail). Each has its own --help.",
)
@click.version_option(__version__, prog_name="llm_perf")
def command(**flags: Any) -> int:
    """Measure a server of large language models: send all prompts, time and keep every answer."""
    endpoint = asked.read_endpoint(flags)
    loads = asked.read_loads(flags)
    flags["resume"] = flags["resume"] or flags["resume_anyway"]

    from llm_perf.results import export

    export_file: Path = flags["profile_export_file"]
    export.prepare_folder(export_file)
    with export.claim(export_file):
        return _measure_all(endpoint, loads, export_file, flags)


def _measure_all(
    endpoint: Endpoint, loads: Sequence[Load], export_file: Path, flags: dict[str, Any]
) -> int:
    """Measure one load after the other; gives the exit code."""
    from llm_perf import api
    from llm_perf.ledger.ledger import results_of
    from llm_perf.load.journal import is_newer, pending
    from llm_perf.server import scrape

    workload = asked.read_workload(flags, loads[0].name)
    extent = asked.read_extent(flags, len(workload.prompts))
    metrics_url = scrape.find_metrics(flags["server_metrics_url"], endpoint)
    turns = _turns(loads, export_file, flags["repetitions"])
    journals = [path.with_suffix(".journal.jsonl") for *_, path in turns]
    before = api.read_measurements(export_file.parent) if flags["resume"] else []
    kept = {each["id"]: each for each in before if each["status"] == "ok"}
    runs: list[Run] = []
    with (
        _told(export_file, several=len(turns) > 1) as done,
        nullcontext() if flags["resume"] else pending(journals),
    ):
        for (number, load, name, path), journal in zip(turns, journals, strict=True):
            if flags["isl"] is not None and name != loads[0].name:
                workload = asked.read_workload(flags, name)
            planned = asked.read_planned(flags, endpoint, workload, load, extent, number)
            line = kept.get(planned.id)
            if line and results_of(line, path.parent) == path and not is_newer(journal, path):
                click.echo(f"Kept {path}: it was finished before\n")
            else:
                if runs:
                    time.sleep(flags["measurement_interval"])
                conditions = asked.read_conditions(flags, extent, journal, metrics_url)
                runs.append(_measure(endpoint, planned, conditions, path, flags))
            done.append(path)
            if runs and runs[-1].stopped:
                break
            journal.unlink(missing_ok=True)  # the results have it all
    return _exit_code(runs, flags)


def _turns(
    loads: Sequence[Load], export_file: Path, repetitions: int
) -> list[tuple[int, Load, str, Path]]:
    """Each load in each repetition, with a name of its own and the JSON that is its own."""
    from llm_perf.results.export import export_path

    several = len(loads) * repetitions > 1
    return [
        (number, load, name, export_path(export_file, name, several=several))
        for number in range(repetitions)
        for load in loads
        for name in [f"{load.name}_{number + 1}" if number else load.name]
    ]


@contextmanager
def _told(export_file: Path, *, several: bool) -> Iterator[list[Path]]:
    """Tell what was finished of several loads, whatever ends the others."""
    from llm_perf import api
    from llm_perf.results import export

    done: list[Path] = []
    try:
        yield done
    finally:
        if several and done:
            documents = export.read_sweep(done)
            try:
                api.print_summary(documents)
            finally:  # the terminal may be gone
                export.write_sweep(documents, export_file)
                click.echo(f"Wrote {export_file} with all {len(done)} loads")


def _measure(
    endpoint: Endpoint,
    planned: Planned,
    conditions: Conditions,
    path: Path,
    flags: dict[str, Any],
) -> Run:
    from llm_perf import api
    from llm_perf.ledger.ledger import NAME
    from llm_perf.load import estimate
    from llm_perf.load.progress import show_progress

    load, workload = planned.load, planned.workload
    if said := estimate.warning_before(load, conditions.extent, workload.prompts):
        click.echo(said, err=True)
    timed = conditions.extent.duration_s is not None
    with show_progress(load.title, None if timed else estimate.warning_meanwhile) as watch:
        run = api.measure(endpoint, workload, load, replace(conditions, watch=watch))
    try:
        api.print_run(run, explain=flags["explain"])
    finally:  # the terminal may be gone
        written = api.write_run(run, path, asked.read_extras(flags))
        files = {"requests": written[1].name}
        api.append_measurement(path.parent, planned.measured(run, files))
    beside = ", ".join(str(each.relative_to(path.parent)) for each in written[1:])
    click.echo(f"Wrote {written[0]} and {beside}, and a line of {NAME}")
    if run.stopped and conditions.journal:
        click.echo(f"Kept {conditions.journal}: the same command with --resume finishes the run")
    click.echo()
    return run


def _exit_code(runs: Sequence[Run], flags: dict[str, Any]) -> int:
    stopped = next((run.stopped for run in runs if run.stopped), None)
    if stopped == "interrupted":
        return 130
    limit = flags["max_failure_rate"] / 100
    if stopped or (runs and not any(run.requests_ok for run in runs)):
        return 1
    if any(run.requests_failed > limit * len(run.records) for run in runs):
        return 1
    bound = any(run.health and run.health.client_bound for run in runs)
    return 3 if flags["strict"] and bound else 0


def main() -> None:
    """Run the command."""
    end_like_ctrl_c()
    sys.exit(exit_code(command, "llm_perf"))


if __name__ == "__main__":
    main()

"""The command ``llm_perf``: flags in, table on stdout, files beside it, exit code out.

Imports little, so that ``--help`` is quick. Exit codes: 0 measured, 1 every request failed or too
many did (``--stop-after-failures``), 2 the user can mend it (one line on stderr), 3 a check that
was asked for fails (``--strict``, ``compare --fail-if``), 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from client import options, options_data
from client.errors import UserError

if TYPE_CHECKING:
    from client.api import Endpoint, Extent, Load, Options, Run, Workload

_SUBCOMMANDS: Final = {
    "compare": "client.compare:compare_command",
    "selftest": "client.selftest:selftest_command",
}


class _Command(options.ThemedCommand):
    """Measures, unless the first word is another command's name."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if not words or words[0] not in _SUBCOMMANDS:
            return super().main(words, *more, **extra)
        module, _, name = _SUBCOMMANDS[words[0]].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command.main(words[1:], prog_name=f"llm_perf {words[0]}", **extra)


@click.command(
    name="llm_perf",
    cls=_Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Other commands: llm_perf selftest (how exact and how fast this machine is as a "
    "client), llm_perf compare A B (two runs of one workload). Each has its own --help.",
)
@options.add(options.SERVER)
@options.add(options_data.DATA)
@options.add(options.LOAD)
@options.add(options.RUN)
@options.add(options_data.RESULTS)
@click.version_option(package_name="trtllm-deploy", prog_name="llm_perf")
def command(**flags: Any) -> int:
    """Measure a server of large language models: send all prompts, time and keep every answer."""
    endpoint = _endpoint(flags)
    loads = _loads(flags)
    if flags["ray"] and flags["resume"]:
        raise UserError("a run on Ray has no journal to resume from", fix="leave --resume out")

    from client import api, export, scrape

    export_file: Path = flags["profile_export_file"]
    export.prepare_folder(export_file)
    workload = options_data.read_workload(flags)
    extent = _extent(flags, len(workload.prompts))
    metrics_url = scrape.find_metrics(flags["server_metrics_url"], endpoint)
    runs: list[Run] = []
    for load in loads:
        path = export.export_path(export_file, load.name, several=len(loads) > 1)
        if flags["resume"] and _is_finished(path, workload, load, extent):
            click.echo(f"Kept {path}: it was finished before\n")
            continue
        if runs:
            time.sleep(flags["measurement_interval"])
        settings = _options(flags, extent, path, metrics_url)
        runs.append(_measure(endpoint, workload, load, settings, path, flags))
        if runs[-1].stopped:
            break
    if len(runs) > 1:
        api.print_summary(runs)
    return _exit_code(runs, flags["strict"])


def _endpoint(flags: dict[str, Any]) -> Endpoint:
    from client.transports import Endpoint, Tls

    if flags["endpoint_type"] and flags["protocol"] != "openai":
        raise UserError("--endpoint-type is for -i openai", fix="leave it out")
    files = {name: flags[f"ssl_{name}"] for name in ("ca", "cert", "key")}
    return Endpoint(
        flags["url"],
        flags["protocol"],
        flags["model"],
        transport=flags["transport"] or flags["endpoint_type"],
        headers=flags["headers"],
        tls=Tls(**files) if any(files.values()) else None,
        api_key_env=flags["api_key_env"],
    )


def _loads(flags: dict[str, Any]) -> Sequence[Load]:
    from client.load import Rate, Trace, parse_concurrencies, parse_rates

    given = [name for name in ("concurrency", "request_rate", "trace_replay") if flags[name]]
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{names} are different loads", fix="give one of them")
    if flags["trace_replay"]:
        return (Trace(),)
    arrival, burstiness, ramp_s = flags["arrival"], flags["burstiness"], flags["ramp"]
    if flags["request_rate"] is not None:
        rates = parse_rates(flags["request_rate"])
        return tuple(Rate(rate, arrival, burstiness, flags["seed"], ramp_s) for rate in rates)
    return parse_concurrencies(
        "1" if flags["concurrency"] is None else flags["concurrency"], ramp_s
    )


def _extent(flags: dict[str, Any], prompts: int) -> Extent:
    from client.load import Extent

    requests = flags["num_requests"]
    if flags["repeat"] is not None:
        if requests is not None:
            raise UserError("--num-requests and --repeat both set a number", fix="give one of them")
        requests = flags["repeat"] * prompts
    return Extent(requests, flags["duration"], flags["warmup_requests"], flags["warmup_seconds"])


def _options(flags: dict[str, Any], extent: Extent, path: Path, metrics_url: str | None) -> Options:
    from client.api import Options
    from client.goodput import parse_goodput

    ids = {"end_id": flags["end_id"], "pad_id": flags["pad_id"]}
    return Options(
        request_timeout_s=flags["request_timeout"],
        extent=extent,
        max_in_flight=flags["max_in_flight"],
        stop_after_failures=flags["stop_after_failures"],
        journal=None if flags["ray"] else path.with_suffix(".journal.jsonl"),
        resume=flags["resume"],
        workers=flags["workers"],
        ray=flags["ray"],
        interruptible=True,
        defaults={name: value for name, value in ids.items() if value is not None},
        score=flags["score"],
        goodput=parse_goodput(flags["goodput"]) if flags["goodput"] else None,
        server_metrics_url=metrics_url,
        server_metrics_every_s=flags["server_metrics_interval"],
    )


def _is_finished(path: Path, workload: Workload, load: Load, extent: Extent) -> bool:
    """Whether an earlier run has written all of this load's results."""
    import json

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        same = document["workload"]["sha256"] == workload.sha256
        same = same and document["load"] == {**load.to_json(), **extent.to_json()}
        return bool(same and document["stopped"] is None)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _measure(
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    settings: Options,
    path: Path,
    flags: dict[str, Any],
) -> Run:
    from dataclasses import replace

    from client import api
    from client.progress import show_progress

    with show_progress(load.title) as watch:
        run = api.measure(endpoint, workload, load, replace(settings, watch=watch))
    api.print_run(run, explain=flags["explain"])
    written = api.write_run(run, path, options_data.extras(flags))
    beside = ", ".join(str(each.relative_to(path.parent)) for each in written[1:])
    click.echo(f"Wrote {written[0]} and {beside}")
    if run.stopped and settings.journal:
        click.echo(f"Kept {settings.journal}: the same command with --resume finishes the run")
    elif settings.journal:
        settings.journal.unlink(missing_ok=True)  # the results have it all
    click.echo()
    return run


def _exit_code(runs: Sequence[Run], strict: bool) -> int:
    stopped = next((run.stopped for run in runs if run.stopped), None)
    if stopped == "interrupted":
        return 130
    if stopped or (runs and not any(run.requests_ok for run in runs)):
        return 1
    return 3 if strict and any(run.health and run.health.client_bound for run in runs) else 0


def main() -> None:
    """Run the command; the one place that prints errors."""
    try:
        code = command.main(standalone_mode=False)
    except UserError as error:
        click.echo(f"llm_perf: {error}", err=True)
        code = 2
    except click.ClickException as error:
        click.echo(f"llm_perf: {error.format_message()} (see llm_perf --help)", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("llm_perf: interrupted", err=True)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()

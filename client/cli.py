"""The command ``llm_perf``: flags in, table on stdout, files beside it, exit code out.

Imports little, so that ``--help`` is quick. Exit codes: 0 measured, 1 every request failed,
2 the user can mend it (one line on stderr).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from client.errors import UserError

_DEFAULT_EXPORT = Path("artifacts/profile_export.json")


@click.command(name="llm_perf", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-u", "--url", required=True, metavar="HOST:PORT", help="Where the server listens.")
@click.option(
    "-i", "--protocol", default="grpc", show_default=True, help="What it speaks there: grpc."
)
@click.option("-m", "--model", required=True, help="The model to ask, as a rule the ensemble.")
@click.option(
    "--concurrency",
    default="1",
    show_default=True,
    metavar="N,N,…",
    help="Requests kept in flight; one load after the other for each number.",
)
@click.option(
    "--tokenizer-path",
    required=True,
    type=click.Path(path_type=Path),
    help="The model's folder, or its tokenizer.json.",
)
@click.option(
    "--input-data",
    required=True,
    type=click.Path(path_type=Path),
    help="Prompts, a JSON object a line: text_input, and max_tokens, reference, category if any.",
)
@click.option(
    "--profile-export-file",
    default=_DEFAULT_EXPORT,
    show_default=True,
    type=click.Path(path_type=Path),
    help="The JSON to write, with a line per request in a .jsonl beside it; with several "
    "concurrencies one of each per load, NAME_concurrencyN.json.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1, max=2**31 - 1),
    help="At most this many output tokens per request; overrides the prompts' own "
    "[default: the prompt's, else 512].",
)
@click.option(
    "--request-timeout",
    default=300.0,
    show_default=True,
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which a request is given up.",
)
def command(
    url: str,
    protocol: str,
    model: str,
    concurrency: str,
    tokenizer_path: Path,
    input_data: Path,
    profile_export_file: Path,
    max_tokens: int | None,
    request_timeout: float,
) -> int:
    """Measure a server of large language models: send all prompts, time and keep every answer."""
    from client.load import parse_concurrencies
    from client.transports import Endpoint

    endpoint = Endpoint(url, protocol, model)
    loads = parse_concurrencies(concurrency)

    from client import api, export
    from client.progress import show_progress

    export.prepare_folder(profile_export_file)
    workload = api.load_workload(input_data, tokenizer_path, max_tokens)
    answered = 0
    for load in loads:
        with show_progress(f"concurrency {load.n}") as watch:
            run = api.measure(endpoint, workload, load, api.Options(request_timeout, watch))
        api.print_run(run)
        path = export.export_path(profile_export_file, load.name, several=len(loads) > 1)
        written = api.write_run(run, path)
        click.echo(f"Wrote {written[0]} and {written[1].name}\n")
        answered += run.requests_ok
    return 0 if answered else 1


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
    except click.Abort:
        click.echo("llm_perf: interrupted", err=True)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()

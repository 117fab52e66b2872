"""The flags of ``llm_perf``, by theme, and how its help shows them. Imports little.

A flag is declared once, in the list of its theme; the command takes all lists and gets the values
as keywords.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click

Decorator: TypeAlias = Callable[[Any], Any]
_Function = TypeVar("_Function")

_FILE = click.Path(path_type=Path)
_SECONDS = click.FloatRange(min=0)
_SOME_SECONDS = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)


class ThemedOption(click.Option):
    """An option that knows under which heading of the help it stands."""

    def __init__(self, *args: Any, theme: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.theme = theme


class ThemedCommand(click.Command):
    """A command whose help has a heading for each theme."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the order of declaration."""
        themes: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if line is not None:
                themes.setdefault(getattr(parameter, "theme", "Other"), []).append(line)
        for theme, lines in themes.items():
            with formatter.section(theme):
                formatter.write_dl(lines)


def theme(name: str) -> Callable[..., Decorator]:
    """Give a function that declares options under the heading ``name``."""

    def option(*flags: str, **attributes: Any) -> Decorator:
        return click.option(*flags, cls=ThemedOption, theme=name, **attributes)

    return option


def add(options: Iterable[Decorator]) -> Callable[[_Function], _Function]:
    """Declare all ``options`` on a command, in their order."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(list(options)):
            function = option(function)
        return function

    return decorate


def pair(_ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> Any:
    """Read ``NAME:VALUE`` words into pairs, as curl does."""
    pairs = []
    for word in words:
        name, colon, value = word.partition(":")
        if not (colon and name.strip()) or "\n" in word or "\r" in word:
            raise click.BadParameter(f"{word!r} is no NAME:VALUE", param=parameter)
        pairs.append((name.strip(), value.strip()))
    return tuple(pairs)


def workers(_ctx: click.Context, parameter: click.Parameter, word: str) -> int | None:
    """Read a number of workers, ``None`` for ``auto``."""
    if word == "auto":
        return None
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise click.BadParameter(f"{word!r} is neither a number above 0 nor auto", param=parameter)
    return int(word)


_server = theme("Server")
SERVER = [
    _server("-u", "--url", required=True, metavar="HOST:PORT", help="Where the server listens."),
    _server("-m", "--model", required=True, help="The model to ask, as a rule the ensemble."),
    _server(
        "-i",
        "--protocol",
        default="grpc",
        show_default=True,
        help="What it speaks there: grpc or http (Triton), openai (vLLM, trtllm-serve, …).",
    ),
    _server(
        "--transport",
        help="How it is spoken: grpc (ours), tritonclient or grpc.aio.  [default: the protocol's "
        "own; tritonclient with --ssl-…]",
    ),
    _server(
        "--endpoint-type",
        type=click.Choice(["completions", "chat"]),
        help="With -i openai: what is asked.  [default: completions]",
    ),
    _server(
        "-H",
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:VALUE",
        callback=pair,
        help="Sent with every request, as HTTP header or gRPC metadata. Can be repeated.",
    ),
    _server("--api-key-env", metavar="NAME", help="Environment variable that holds the API key."),
    _server("--ssl-ca", type=_FILE, help="PEM file of the authority to trust; turns TLS on."),
    _server("--ssl-cert", type=_FILE, help="PEM file of the client's certificate."),
    _server("--ssl-key", type=_FILE, help="PEM file of the client's key."),
]

_load = theme("Load")
LOAD = [
    _load(
        "--concurrency",
        metavar="N,N,…",
        help="Closed loop: requests kept in flight; one load after the other for each number.  "
        "[default: 1]",
    ),
    _load(
        "--request-rate",
        metavar="R,R,…",
        help="Open loop: requests per second, sent whether or not the server keeps up; inf sends "
        "all at once.",
    ),
    _load("--trace-replay", is_flag=True, help="Open loop: the prompts' own timestamps."),
    _load(
        "--arrival",
        default="poisson",
        show_default=True,
        help="Gaps between requests at a rate: constant, poisson or gamma.",
    ),
    _load(
        "--burstiness",
        type=_SOME_SECONDS,
        default=1.0,
        show_default=True,
        help="Shape of gamma gaps: below 1 burstier than poisson, above 1 more even.",
    ),
    _load("--seed", default=0, show_default=True, help="Of all that is drawn."),
    _load(
        "--ramp",
        type=_SECONDS,
        default=0.0,
        metavar="S",
        help="Seconds over which concurrency or rate grows linearly from nothing.",
    ),
    _load(
        "--warmup-requests",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Requests sent ahead under the same load and left out of all figures.",
    ),
    _load(
        "--warmup-seconds",
        type=_SECONDS,
        default=0.0,
        metavar="S",
        help="The same by time: requests sent in the first S seconds.",
    ),
    _load("--num-requests", type=_COUNT, metavar="N", help="Repeats or cuts the data set."),
    _load("--repeat", type=_COUNT, metavar="K", help="The data set K times."),
    _load(
        "--duration",
        type=_SOME_SECONDS,
        metavar="S",
        help="Send for S seconds, repeating the data set, then wait for what is in flight.",
    ),
    _load(
        "--measurement-interval",
        type=_SECONDS,
        default=0.0,
        metavar="S",
        help="Pause between two loads.",
    ),
    _load(
        "--max-in-flight",
        type=_COUNT,
        default=10_000,
        show_default=True,
        metavar="N",
        help="Open loop: what is due beyond so many waits; times from the schedule show it.",
    ),
    _load(
        "--workers",
        default="auto",
        show_default=True,
        metavar="N|auto",
        callback=workers,
        help="Processes that share the load; auto takes one per 15,000 responses/s to expect.",
    ),
    _load(
        "--ray",
        metavar="ADDRESS",
        help="Let machines of a Ray cluster share the load, one worker each with --workers auto; "
        "clock offsets are measured.",
    ),
]

_run = theme("Run")
RUN = [
    _run(
        "--request-timeout",
        type=_SOME_SECONDS,
        default=300.0,
        show_default=True,
        metavar="S",
        help="Seconds after which a request is given up.",
    ),
    _run(
        "--stop-after-failures",
        type=_COUNT,
        metavar="N",
        help="End the run when so many requests have failed; the exit code is 1.",
    ),
    _run(
        "--resume",
        is_flag=True,
        help="Finish a cut run: ask only what the journal beside the export lacks.",
    ),
    _run(
        "--strict",
        is_flag=True,
        help="Exit code 3 when a load was CLIENT-BOUND: this machine could not keep up.",
    ),
]

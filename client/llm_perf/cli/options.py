"""The flags of ``llm_perf``, by theme, and how its help shows them. Imports little.

What the flags mean together is ``llm_perf.cli.flags``' affair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from llm_perf.duration import parse_duration

DEFAULT_EXPORT: Final = Path("artifacts/profile_export.json")
DEFAULT_PROMPTS: Final = 100

_FILE = click.Path(path_type=Path)
_MAYBE_NONE = click.IntRange(min=0)
_COUNT = click.IntRange(min=1)
_SCORES = click.Choice(["exact", "contains", "regex", "number", "f1", "rouge-l", "choice"])


class ThemedCommand(click.Command):
    """A command whose help has a heading for each theme."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        themed = [option for options in THEMES.values() for option in options]
        other = [each for each in self.get_params(ctx) if each not in themed]
        for theme, options in {**THEMES, "Other": other}.items():
            with formatter.section(theme):
                lines = (each.get_help_record(ctx) for each in options)
                formatter.write_dl([line for line in lines if line])


def _pairs(_ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> Any:
    """Read ``NAME:VALUE`` words into pairs, as curl does."""
    pairs = []
    for word in words:
        name, colon, value = word.partition(":")
        if not (colon and name.strip()) or "\n" in word or "\r" in word:
            raise click.BadParameter(f"{word!r} is no NAME:VALUE", param=parameter)
        pairs.append((name.strip(), value.strip()))
    return tuple(pairs)


def _workers(_ctx: click.Context, parameter: click.Parameter, word: str) -> int | None:
    """Read a number of workers, ``None`` for ``auto``."""
    if word == "auto":
        return None
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise click.BadParameter(f"{word!r} is neither a number above 0 nor auto", param=parameter)
    return int(word)


def _time(_ctx: click.Context, parameter: click.Parameter, word: str | float | None) -> Any:
    """Read a length of time in seconds; a default is one already."""
    if not isinstance(word, str):
        return word
    try:
        return parse_duration(word)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def some_time(ctx: click.Context, parameter: click.Parameter, word: str | float | None) -> Any:
    """The same, more than none."""
    if (seconds := _time(ctx, parameter, word)) is not None and seconds <= 0:
        raise click.BadParameter(f"{word!r} is not above 0", param=parameter)
    return seconds


def option(flags: str, text: str, kind: Any = None, **more: Any) -> click.Option:
    """Declare an option; a default shows in the help, unless it is nothing."""
    more = {"show_default": bool(more.get("default")), **more}
    return click.Option(flags.split(), help=text, type=kind, **more)


# fmt: off
THEMES: Final[dict[str, list[click.Parameter]]] = {
    "Server": [
        option("-u --url", "Where the server listens; over HTTP also a base URL like "
               "https://host/v1, with a query if need be. HTTP_PROXY, HTTPS_PROXY and NO_PROXY "
               "hold.  [default: localhost:8001; localhost:8000 with -i http or openai]",
               metavar="HOST:PORT|URL"),
        option("-m --model", "The model to ask, as a rule the ensemble.",
               default="ensemble"),
        option("-i --protocol", "What it speaks there: grpc or http (Triton), openai (vLLM, "
               "trtllm-serve, …).  [default: grpc; for a URL http where Triton answers, else "
               "openai]"),
        option("--transport", "How it is spoken: grpc (ours), tritonclient or grpc.aio.  "
               "[default: the protocol's own; tritonclient with --ssl-…]"),
        option("--endpoint-type", "With -i openai: what is asked.  [default: completions]",
               click.Choice(["completions", "chat"])),
        option("--max-tokens-field", "With -i openai: the key that the limit of output tokens is "
               "sent as.  [default: max_tokens]", metavar="KEY"),
        option("--no-stream-options", "With -i openai: don't ask for usage with stream_options, "
               "for servers that refuse it.", is_flag=True),
        option("-H --header headers", "Sent with every request, as HTTP header or gRPC metadata. "
               "Can be repeated.", multiple=True, metavar="NAME:VALUE", callback=_pairs),
        option("--api-key-env", "Environment variable that holds the API key.", metavar="NAME"),
        option("--insecure", "With TLS over HTTP: trust whoever answers.", is_flag=True),
        option("--ssl-ca", "PEM file of the authority to trust; turns TLS on.", _FILE),
        option("--ssl-cert", "PEM file of the client's certificate.", _FILE),
        option("--ssl-key", "PEM file of the client's key.", _FILE),
    ],
    "Data": [
        option("--tokenizer-path", "The model's folder, its tokenizer.json, tokenizer.model or "
               "tekken.json, or its Hugging Face id.  [default: none, the server counts]", _FILE),
        option("--input-data", "Prompts, a JSON object a line: text_input, and max_tokens, "
               "reference, category and sampling parameters if any; also a CSV with a header, "
               "and the files of genai-perf, vLLM, trtllm-bench, ShareGPT and mooncake.", _FILE),
        option("--isl", "Make prompts up: so many tokens each, exactly.", metavar="N[±S]"),
        option("--osl", "With --isl: output tokens of each answer, exactly.", metavar="N[±S]"),
        option("--shared-prefix-tokens", "With --isl: tokens at the start that are the same in "
               "all prompts.", _MAYBE_NONE, default=0, metavar="P"),
        option("--unique-prefix", "Begin each prompt with a tag of its own, some 5 tokens that "
               "count, so that the server knows none from before.", is_flag=True),
        option("--num-prompts", "Prompts to make up, or to take from the file.  "
               f"[default: {DEFAULT_PROMPTS}, all]", _COUNT, metavar="N"),
        option("--max-tokens", "At most this many output tokens per request; overrides the "
               "prompts' own.  [default: the prompt's, else 512]",
               click.IntRange(min=1, max=2**31 - 1)),
        option("--output-tokens", "Exactly so many output tokens per request instead, drawn from "
               "--seed where S, a standard deviation, is given (N+-S is the same).  "
               "[default: until the model ends]", metavar="N[±S]"),
        option("--chat-template", "Render each prompt as a chat of the model.", is_flag=True),
        option("--sampling", "Sampling parameter of every request, like temperature=0 or "
               "stop_words='[\"END\"]'; overrides the prompts' own. Can be repeated.",
               multiple=True, metavar="NAME=VALUE"),
        option("--extra-body", "With -i openai: put into every request's body as it is; overrides "
               "the prompts' own extra_body.", metavar="JSON"),
        option("--end-id", "Token that ends an answer, for prompts that name none.", int),
        option("--pad-id", "Token that pads, for prompts that name none.", int),
    ],
    "Load": [
        option("--concurrency", "Closed loop: requests kept in flight; one load after the other "
               "for each number.  [default: 1]", metavar="N,N,…"),
        option("--request-rate", "Open loop: requests per second, sent whether or not the server "
               "keeps up; inf sends all at once.", metavar="R,R,…"),
        option("--trace-replay", "Open loop: the prompts' own timestamps.", is_flag=True),
        option("--arrival", "Gaps between requests at a rate: constant, poisson or gamma.",
               default="poisson"),
        option("--burstiness", "Shape of gamma gaps: below 1 burstier than poisson, above 1 more "
               "even.", click.FloatRange(min=0, min_open=True), default=1.0),
        option("--seed", "Of all that is drawn.", default=0, show_default=True),
        option("--ramp", "Time over which concurrency or rate grows linearly from nothing. All "
               "times are in seconds, or with their units, like 1m30s or 500ms.",
               str, callback=_time, default=0.0, metavar="TIME"),
        option("--warmup-requests", "Requests sent ahead under the same load and left out of all "
               "figures.", _MAYBE_NONE, default=0, metavar="N"),
        option("--warmup-seconds", "The same by time: requests sent in the first TIME.",
               str, callback=_time, default=0.0, metavar="TIME"),
        option("--num-requests", "Repeats or cuts the data set.", _COUNT, metavar="N"),
        option("--repeat", "The data set K times.", _COUNT, metavar="K"),
        option("--duration", "Send for TIME, repeating the data set, then wait for what is "
               "in flight.", str, callback=some_time, metavar="TIME"),
        option("--repetitions", "All loads so many times over, with fresh arrivals each time, and "
               "fresh prompts where they are made up.", _COUNT, default=1, metavar="N"),
        option("--measurement-interval", "Pause between two loads.", str,
               callback=_time, default=0.0, metavar="TIME"),
        option("--max-in-flight", "Open loop: what is due beyond so many waits; times from the "
               "schedule show it.", _COUNT, default=10_000, metavar="N"),
        option("--workers", "Processes that share the load; auto takes one per 15,000 responses/s "
               "to expect.", default="auto", metavar="N|auto", callback=_workers),
        option("--ray", "Let machines of a Ray cluster share the load, one worker each with "
               "--workers auto; clock offsets are measured.", metavar="ADDRESS"),
    ],
    "Run": [
        option("--request-timeout request_timeout_s", "Time after which a request is given up.",
               str, callback=some_time, default=300.0, metavar="TIME"),
        option("--stop-after-failures", "End the run when so many requests have failed; the exit "
               "code is 1.", _COUNT, metavar="N"),
        option("--give-up-after give_up_after_s", "End the run when for so long every "
               "request was refused and none answered; the exit code is 1.", str,
               callback=some_time, default=10.0, metavar="TIME"),
        option("--max-failure-rate", "Exit code 1 when more than so many percent of a load's "
               "requests failed.", click.FloatRange(0, 100), default=10.0, metavar="P"),
        option("--max-answer-bytes", "Kept of one answer, beside 1 KiB for each token asked for; "
               "a longer one is cut there and counted as overlong.", _COUNT, default=2**20,
               metavar="N"),
        option("--resume", "Finish what was cut: measure the loads that ledger.jsonl beside the "
               "export lacks, and of one in its midst ask what its journal lacks.",
               is_flag=True),
        option("--resume-anyway", "The same where the server is another than before the cut: the "
               "figures mix both, and the result says so.", is_flag=True),
        option("--strict", "Exit code 3 when a load was CLIENT-BOUND: this machine could not keep "
               "up.", is_flag=True),
    ],
    "Results": [
        option("--profile-export-file", "The JSON to write, with a line per request in a .jsonl "
               "beside it and a line of figures in ledger.jsonl, where NAME is the server's; with "
               "several loads one of each per load, NAME_concurrencyN.json, and all of them in "
               "NAME.json.",
               _FILE, default=DEFAULT_EXPORT),
        option("--export", "What is written besides: NAME_answers.jsonl for graders; a folder "
               "NAME with perf_analyzer's profile_export.json and genai-perf's JSON and CSV.",
               click.Choice(["all", "answers", "genai-perf", "none"]), default="all"),
        option("--explain", "Print formula, source and n of every figure.", is_flag=True),
        option("--score", "How answers are scored against their references.", _SCORES,
               default="exact"),
        option("--goodput", "Count requests that keep limits, like "
               "'ttft<1s,itl<50ms' (or ttft:1s); of any metric that a request has, like "
               "latency, ttft_from_schedule, tokens_per_user.", metavar="LIMITS"),
        option("--server-metrics-url", "Prometheus endpoint to watch meanwhile.  [default: port "
               "8002 of the server's host, if it answers]", metavar="URL"),
        option("--server-metrics-interval server_metrics_every_s", "Time between two looks at "
               "it.", str, callback=some_time, default=1.0, metavar="TIME"),
    ],
}
# fmt: on

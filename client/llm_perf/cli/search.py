"""``llm_perf search``: limits in, the highest load within them out, and every probe in a ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_perf.cli import flags as asked
from llm_perf.cli.options import THEMES, option, some_time
from llm_perf.errors import UserError

if TYPE_CHECKING:
    from llm_perf.api import Answer, Question, Site

_SHARED: Final = (
    *(option.name for theme in ("Server", "Data") for option in THEMES[theme]),
    *("arrival", "burstiness", "seed", "max_in_flight", "workers"),
    *("request_timeout_s", "give_up_after_s", "max_answer_bytes", "score"),
    *("server_metrics_url", "server_metrics_every_s"),
)
_UNASKED: Final = {
    **dict.fromkeys(("stop_after_failures", "ray", "goodput")),
    **dict.fromkeys(("resume", "resume_anyway"), False),
}
# fmt: off
_OWN: Final = (
    option("--limit limits", "To be kept, like 'ttft.p95<1s', 'itl.avg<20ms' or ttft.p95=1s; an "
           "average or a percentile of what each request has. Can be repeated.",
           multiple=True, required=True, metavar="LIMIT"),
    option("--vary", "What is raised until a limit breaks.",
           click.Choice(["request-rate", "concurrency"]), default="request-rate"),
    option("--confirmed", "Both ends held by 5 runs each that all agree, of 1,000 requests or "
           "more: hours. [default: 3 of 500, wider]", is_flag=True),
    option("--budget budget_s", "End after so much load, with what is known then.", str,
           callback=some_time, metavar="TIME"),
    option("--ledger", "Folder that keeps every run; the same command goes on with those it has.",
           click.Path(path_type=Path, file_okay=False), default=Path("artifacts/search")),
    option("--json as_json", "Print JSON instead.", is_flag=True),
)
# fmt: on


@click.command(
    name="search",
    params=[
        *_OWN,
        *(each for options in THEMES.values() for each in options if each.name in _SHARED),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def search_command(
    limits: tuple[str, ...], vary: str, confirmed: bool, as_json: bool, **flags: Any
) -> int:
    """Find the highest rate, or concurrency, at which limits are kept, and how sure that is.

    Exit code 1 when no load was shown to keep them.
    """
    from llm_perf import api
    from llm_perf.search.drawn import to_json

    question = api.Question(
        tuple(api.Criterion(api.parse_limit(each, "--limit")) for each in limits),
        "concurrency" if vary == "concurrency" else "request_rate",
        api.CONFIRMED if confirmed else api.INDICATIVE,
        flags["seed"],
        flags["budget_s"] or math.inf,
    )
    answer = _search(question, _site(question, flags))
    if as_json:
        click.echo(json.dumps(to_json(answer), indent=2))
    else:
        api.print_answer(answer)
        click.echo(f"Every run is in {flags['ledger'] / 'ledger.jsonl'}")
    return 0 if answer.low else 1


def _site(question: Question, flags: dict[str, Any]) -> Site:
    from llm_perf import api
    from llm_perf.load.load import Extent
    from llm_perf.server.scrape import find_metrics

    endpoint = asked.read_endpoint(flags)
    workload = asked.read_workload(flags, "search")
    scored = any(prompt.reference is not None for prompt in workload.prompts)
    if not scored and any(each.limit.metric == "score" for each in question.criteria):
        raise UserError("no prompt has a reference, so there is no score", where="--limit")
    metrics_url = find_metrics(flags["server_metrics_url"], endpoint)
    ledger: Path = flags["ledger"]
    conditions = asked.read_conditions(flags | _UNASKED, Extent(), Path(), metrics_url)
    return api.Site(
        endpoint,
        asked.read_target(endpoint),
        workload,
        ledger,
        conditions,
        api.Rate(1.0, flags["arrival"], flags["burstiness"]),
        study="search",
    )


def _search(question: Question, site: Site) -> Answer:
    from dataclasses import replace

    from llm_perf import api
    from llm_perf.search.drawn import cost
    from llm_perf.search.question import Ask
    from llm_perf.search.seen import Seen

    n = len(site.workload.prompts)
    click.echo(cost(question), err=True)
    if n < question.mode.requests and not site.conditions.unique_prefix:
        click.echo(
            f"The {n} prompts repeat: a KV cache that is reused knows them from the second time on "
            "(--unique-prefix gives each request a beginning of its own)",
            err=True,
        )
    most = 0.0

    def told(ask: Ask, seen: Seen, before: bool) -> None:
        nonlocal most
        load = f"{ask.value:.4g} {'in flight' if ask.vary == 'concurrency' else 'requests/s'}"
        known = ", from the ledger" if before else ""
        click.echo(
            f"{ask.stage} {load}: {seen.attainment:.1%} within, {seen.throughput:.3g} "
            f"requests/s answered{', ' + seen.hopeless if seen.hopeless else ''}{known}",
            err=True,
        )
        if ask.stage == "capacity" and question.vary == "request_rate":
            if most and seen.throughput <= 1.1 * most:
                click.echo(cost(question, seen.throughput, ask.value / 2), err=True)
            most = max(most, seen.throughput)

    with api.show_progress("search") as watch:
        conditions = replace(site.conditions, watch=watch, journal=None)
        return api.search_limits(question, replace(site, conditions=conditions), told)

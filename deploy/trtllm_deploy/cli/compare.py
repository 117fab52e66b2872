"""The command ``compare``: cells and servers by URL in, measured in alternation, a table out.

Words become subjects here; what is measured, and what follows from it, is
:mod:`trtllm_deploy.study.compare`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_perf.duration import spell_duration
from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.cli.options import Where, where_to_run, workspace_folder
from trtllm_deploy.cli.targets import Asked, build_targets, read_targets, subjects_of
from trtllm_deploy.machine.console import console

if TYPE_CHECKING:
    from llm_perf import api
    from trtllm_deploy.study.blocks import Offer, Subject
    from trtllm_deploy.study.compare import Compared

_CHECK_FAILED: Final = 3  # exit code
_DECIDES: Final = {
    "request_throughput": ("avg",),
    "output_token_throughput": ("avg",),
    "time_to_first_token": ("avg", "p50", "p95", "p99"),
    "inter_token_latency": ("avg", "p95"),
    "request_latency": ("avg", "p95"),
    "output_token_throughput_per_user": ("p50",),
    "output_sequence_length": ("avg",),
    "score": ("avg",),
    "requests_failed": ("avg",),
}


@click.command()
@click.argument("targets", nargs=-1, required=True)
@workspace_folder
@where_to_run
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help="jsonl of prompts; default: measure.data of the first FILE.",
)
@click.option("--isl", metavar="N[±S]", help="Make prompts up, of so many tokens; with --osl.")
@click.option("--osl", metavar="N[±S]", help="Tokens of each answer, exactly.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="For servers by URL.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Output limit of each request.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests kept in flight.")
@click.option(
    "--request-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a second instead, with Poisson arrivals.",
)
@click.option("--requests", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--blocks", default=6, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Of arrivals and made-up prompts.")
@click.option("--score", default="exact", show_default=True, help="How answers are scored.")
@click.option(
    "--fail-if",
    "rules",
    multiple=True,
    metavar="RULE",
    help="Exit code 3 when the change from the first target is surely so: 'ttft.p99 > +5%',"
    " 'score < -0.01'. Can be repeated.",
)
@click.option("--again", is_flag=True, help="Measure anew what the ledger has already.")
@click.option("--all", "whole", is_flag=True, help="Show every figure, not only what decides.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead, with every figure.")
def compare(
    targets: tuple[str, ...],
    workspace: Path,
    where: Where,
    rules: tuple[str, ...],
    whole: bool,
    as_json: bool,
    again: bool,
    blocks: int,
    **given: Any,
) -> int:
    """Measure TARGETS in turns and say how they differ from the first.

    A target is a URL (grpc://HOST:PORT, http://…, openai+http://…, #MODEL behind it where there
    are several), or a deployment FILE and the CELLs of it that follow; a FILE alone is its only
    cell. Each block sends the same prompts at the same times to every target, in turns. Killed, the
    same command goes on.
    """
    from llm_perf import api
    from trtllm_deploy.builds.local import visible_gpus
    from trtllm_deploy.store.leases import Lease
    from trtllm_deploy.study.blocks import Study
    from trtllm_deploy.study.compare import compare as compare_subjects
    from trtllm_deploy.study.page import write_page
    from trtllm_deploy.study.room import fit_in_memory, folder_bytes
    from trtllm_deploy.workspace.folder import Workspace

    checks = [api.parse_limit(rule, "--fail-if", "change") for rule in rules]
    asked = list(read_targets(targets, workspace, where))
    if len(asked) < 2:
        raise UserError("there is one target", fix="name at least two to compare")
    offer = _offer(asked, given)
    build_targets(asked)
    space = Workspace(workspace.resolve())
    subjects = subjects_of(asked, given, blocks)
    study = Study("compare", space.results, lambda text: click.echo(plain(text), err=True), again)
    cells = [each.plan for each in asked if each.plan]
    gpus = visible_gpus(where.gpus) if cells else ()
    weights = [folder_bytes(space.artifact(each.checkpoint)) for each in cells]
    with Lease(space.store.root) as lease:
        lease.hold((stage.kind, stage.key) for plan in cells for stage in plan.stages)
        study.say(_price(subjects, offer, blocks))
        seen = compare_subjects(
            [replace(each, gpus=each.gpus if gpus else 0) for each in subjects],
            offer,
            blocks,
            study,
            gpus,
            fits=bool(gpus) or fit_in_memory(weights),
        )
    verdicts = [
        (pair.name, api.verdict(check, _change(seen, pair.name, check)))
        for pair in seen.pairs
        for check in checks
    ]
    if as_json:
        _print_json(seen, verdicts, subjects)
    else:
        shown = None if whole else {(each.metric, each.statistic or "avg") for each in checks}
        _print(seen, verdicts, subjects, offer, shown)
        lines = [each for measured in seen.measurements.values() for each in measured]
        write_page(lines, space.results, (), "compare", console(), "compare.html")
    if any(each.outcome == "broken" for _, each in verdicts):
        return _CHECK_FAILED
    return 1 if seen.failed else 0


def _offer(asked: Sequence[Asked], given: dict[str, Any]) -> Offer:
    from llm_perf import api
    from trtllm_deploy.study.blocks import Offer, warmup_of

    measures = [each.of.file.deployment.measure for each in asked if each.of]
    said = next((each for each in measures if each is not None), None)
    rate, number = given["request_rate"], given["concurrency"]
    if rate is not None and number is not None:
        raise UserError("--concurrency and --request-rate are two loads", fix="give one of them")
    api.check_scorer(given["score"], ())  # before anything is built
    load: api.Load = api.Concurrency(number or max((said and said.concurrency) or [1]))
    if rate is not None:
        load = api.Rate(rate)
    return Offer(
        load,
        given["requests"],
        warmup=warmup_of(given["requests"]),
        seed=given["seed"],
        request_timeout_s=said.request_timeout if said else 300.0,
        score=given["score"],
    )


def _price(subjects: Sequence[Subject], offer: Offer, blocks: int) -> str:
    """What a comparison takes, in words; in time where the load tells it."""
    from llm_perf import api

    turns = len(subjects) * blocks
    text = f"To measure: {turns} blocks of {offer.requests} requests at {offer.load.title}"
    if isinstance(offer.load, api.Rate):
        text += f", {spell_duration(turns * offer.requests / offer.load.per_s)} of load"
    return f"{text}. What the ledger has of them is not measured again."


def _change(seen: Compared, name: str, rule: api.Limit) -> api.Change | None:
    """The change that a rule is about, of a statistic that the table need not have."""
    from llm_perf import api

    changes = next(pair.changes for pair in seen.pairs if pair.name == name)
    asked = rule.metric, rule.statistic or "avg"
    found = (each for each in changes if (each.metric, each.statistic) == asked)
    a, b = (seen.measurements[each] for each in (seen.first, name))
    return next(found, None) or api.block_change(a, b, *asked)


def _print(
    seen: Compared,
    verdicts: Sequence[tuple[str, api.Verdict]],
    subjects: Sequence[Subject],
    offer: Offer,
    also: Set[tuple[str, str]] | None,
) -> None:
    """Print a table for each pair, of what decides and ``also`` that; ``None``: of everything."""
    from llm_perf import api

    names = {each.name: each for each in subjects}
    for pair in seen.pairs:
        shown = [
            each
            for each in pair.changes
            if also is None
            or each.statistic in _DECIDES.get(each.metric, ())
            or (each.metric, each.statistic) in also
        ]
        answers = next((each.n for each in pair.changes if each.metric == "score"), None)
        of_score = f", the score's of {answers} answers to the same prompts" if answers else ""
        foot = [
            f"* excludes no change; intervals are of {pair.blocks} paired blocks{of_score}, 95 %",
            *(str(said) for name, said in verdicts if name == pair.name),
        ]
        if left := len(pair.changes) - len(shown):
            foot.append(f"{left} more figures: --all")
        api.print_percent(
            f"{seen.first} {names[seen.first].target.name}  against  "
            f"{pair.name} {names[pair.name].target.name}  at {offer.load.title}",
            (seen.first, pair.name),
            shown,
            foot,
        )
    out = console()
    for remark in seen.remarks:
        out.print(plain(remark), markup=False, soft_wrap=True)
    for name, why in seen.failed.items():
        click.echo(f"trtllm-deploy: {name} {names[name].target.name}: {plain(why)}", err=True)


def _print_json(
    seen: Compared, verdicts: Sequence[tuple[str, api.Verdict]], subjects: Sequence[Subject]
) -> None:
    told = {
        "targets": {each.name: asdict(each.target) for each in subjects},
        "pairs": [asdict(each) for each in seen.pairs],
        "remarks": seen.remarks,
        "failed": seen.failed,
        "rules": [{"target": name, **asdict(said)} for name, said in verdicts],
    }
    click.echo(json.dumps(told, ensure_ascii=False, indent=2))


COMMANDS = (compare,)

"""The command ``compare``: cells and servers by URL in, measured in alternation, a table out.

Words become subjects here; what is measured, and what follows from it, is
:mod:`trtllm_deploy.study.compare`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.cli.options import Planned, Where, planned, where_to_run, workspace_folder
from trtllm_deploy.machine.console import console

if TYPE_CHECKING:
    from llm_perf import api
    from trtllm_deploy.plan.plan import CellPlan
    from trtllm_deploy.study.blocks import Offer, Subject
    from trtllm_deploy.study.compare import Compared
    from trtllm_deploy.study.up import Up

_CHECK_FAILED: Final = 3  # exit code
_FILES: Final = (".yaml", ".yml")
_PLACE: Final = re.compile(r"[\w.+-]+://.+|[^\s/]+:\d+(#.*)?")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_GREEDY: Final = {"openai": {"temperature": 0.0}}  # by protocol: servers' own defaults differ
_WARM_SHARE: Final = 10  # one of so many requests of a block goes before it, unmeasured


@dataclass(frozen=True, slots=True)
class Asked:
    """A target as a person named it: a server's URL, or a cell of a planned file."""

    url: str = ""
    of: Planned | None = None
    plan: CellPlan | None = None


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def compare(
    targets: tuple[str, ...],
    workspace: Path,
    where: Where,
    rules: tuple[str, ...],
    as_json: bool,
    again: bool,
    blocks: int,
    **given: Any,
) -> int:
    """Measure TARGETS in alternation and say what the others differ in from the first.

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
    asked = list(_targets(targets, workspace, where))
    if len(asked) < 2:
        raise UserError("there is one target", fix="name at least two to compare")
    _build(asked)
    space = Workspace(workspace.resolve())
    subjects = _subjects(asked, given, blocks)
    offer = _offer(asked, given)
    study = Study("compare", space.results, lambda text: click.echo(plain(text), err=True), again)
    cells = [each.plan for each in asked if each.plan]
    gpus = visible_gpus(where.gpus) if cells else ()
    weights = [folder_bytes(space.artifact(each.checkpoint)) for each in cells]
    with Lease(space.store.root) as lease:
        lease.hold((stage.kind, stage.key) for plan in cells for stage in plan.stages)
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
        _print(seen, verdicts, subjects, offer)
        lines = [each for measured in seen.measurements.values() for each in measured]
        write_page(lines, space.results, (), "compare", console(), "compare.html")
    if any(each.outcome == "broken" for _, each in verdicts):
        return _CHECK_FAILED
    return 1 if seen.failed else 0


def _targets(words: Sequence[str], workspace: Path, where: Where) -> Iterator[Asked]:
    """URLs as they are; a file with the cells that follow it, or its only one."""
    from trtllm_deploy.plan.plan import find_plan

    of: Planned | None = None
    named = 0
    for word in [*words, ""]:
        is_file = word.endswith(_FILES) and "://" not in word
        if (is_file or not word) and of is not None and not named:
            if len(of.plans) != 1:
                cells = ", ".join(each.cell.name for each in of.plans[:4])
                raise UserError(
                    f"{of.file.path} has {len(of.plans)} cells",
                    fix=f"name those to compare behind it: {cells}, …",
                )
            yield Asked(of=of, plan=of.plans[0])
        if is_file:
            of, named = planned(Path(word), workspace, where), 0
        elif _PLACE.fullmatch(word):
            yield Asked(url=word)
        elif word and of is None:
            raise UserError(
                f"{word!r} is no URL, and no deployment file stands before it",
                fix="write grpc://HOST:PORT, http://…, or FILE.yaml CELL",
            )
        elif word and of is not None:
            named += 1
            yield Asked(of=of, plan=find_plan(of.plans, of.file, word))


def _build(asked: Sequence[Asked]) -> None:
    """Make what cells lack. Raises UserError where one can't be made."""
    from trtllm_deploy.cli.building import build_cells

    files = {id(each.of): each.of for each in asked if each.of}
    for of in files.values():
        mine = [each.plan for each in asked if each.of is of and each.plan]
        missing = [each for each in mine if not all(map(of.workspace.has, each.stages))]
        if missing and build_cells(of, missing).unbuilt:
            raise UserError("a cell to compare can't be built", where=of.file.path)


def _subjects(asked: Sequence[Asked], given: dict[str, Any], blocks: int) -> list[Subject]:
    """Who is measured, with the prompts as its own tokenizer counts them."""
    from llm_perf import api
    from trtllm_deploy.study.blocks import Subject
    from trtllm_deploy.study.up import served, target_of

    found = []
    for place, each in enumerate(asked):
        tokenizer, most = _tokenizer(asked, each, given), _max_tokens(asked, given)
        if each.plan is not None and each.of is not None:
            target = target_of(each.plan, each.of.file)
            up = partial(served, each.plan, each.of.file, each.of.workspace)
        else:
            endpoint = api.find_endpoint(each.url)
            target = api.Target(each.url, endpoint.url, endpoint.protocol, endpoint.model)
            up = partial(_there, endpoint, api.find_metrics(None, endpoint))
        workload = _workload(asked, given, blocks, tokenizer, most, target.protocol)
        name = _LETTERS[place] if place < len(_LETTERS) else str(place)
        found.append(
            Subject(name, target, workload, up, each.plan.cell.world_size if each.plan else 0)
        )
    return found


@contextmanager
def _there(
    endpoint: api.Endpoint,
    metrics_url: str | None,
    gpus: Sequence[str],  # noqa: ARG001
) -> Iterator[Up]:
    """A server that somebody else keeps up."""
    from trtllm_deploy.study.up import Up

    yield Up(endpoint, metrics_url)


def _tokenizer(asked: Sequence[Asked], one: Asked, given: dict[str, Any]) -> Path | None:
    """A cell's own; for a server by URL the one that was given, else the first cell's."""
    for each in (one, *asked) if one.plan or not given["tokenizer"] else ():
        if each.of is not None and each.plan is not None:
            return each.of.workspace.artifact(each.plan.fetch)
    folder: Path | None = given["tokenizer"]
    return folder


def _max_tokens(asked: Sequence[Asked], given: dict[str, Any]) -> int | None:
    """The same limit for all: what was given, the first file's, the least OSL of the cells."""
    if given["max_tokens"] is not None:
        return int(given["max_tokens"])
    measures = [each.of.file.deployment.measure for each in asked if each.of]
    limits = [each.max_tokens for each in measures if each and each.max_tokens]
    return limits[0] if limits else min((x.plan.cell.osl for x in asked if x.plan), default=None)


def _workload(
    asked: Sequence[Asked],
    given: dict[str, Any],
    blocks: int,
    tokenizer: Path | None,
    max_tokens: int | None,
    protocol: str,
) -> api.Workload:
    from llm_perf import api

    if given["isl"] is not None:
        if given["osl"] is None or given["data"] is not None:
            raise UserError("--isl takes --osl, and no --data", fix="give lengths, or a file")
        return api.synthetic_workload(
            tokenizer,
            api.parse_lengths(given["isl"], "--isl"),
            api.parse_lengths(given["osl"], "--osl"),
            given["requests"] * blocks,
            sampling=_GREEDY.get(protocol),
            seed=given["seed"],
        )
    data = given["data"] or _measured_data(asked)
    osl = None if given["osl"] is None else api.parse_lengths(given["osl"], "--osl")
    limit = None if osl else max_tokens
    workload = api.load_workload(data, tokenizer, limit, output_tokens=osl, seed=given["seed"])
    if any(prompt.sampling for prompt in workload.prompts) or protocol not in _GREEDY:
        return workload
    sampling = _GREEDY[protocol]
    return api.load_workload(
        data, tokenizer, limit, output_tokens=osl, seed=given["seed"], sampling=sampling
    )


def _measured_data(asked: Sequence[Asked]) -> Path:
    for each in asked:
        if each.of is not None and each.of.file.deployment.measure is not None:
            return each.of.file.resolve(each.of.file.deployment.measure.data)
    raise UserError("there are no prompts", fix="give --data FILE.jsonl, or --isl and --osl")


def _offer(asked: Sequence[Asked], given: dict[str, Any]) -> Offer:
    from llm_perf import api
    from trtllm_deploy.study.blocks import Offer

    measures = [each.of.file.deployment.measure for each in asked if each.of]
    said = next((each for each in measures if each is not None), None)
    rate, number = given["request_rate"], given["concurrency"]
    if rate is not None and number is not None:
        raise UserError("--concurrency and --request-rate are two loads", fix="give one of them")
    load: api.Load = api.Concurrency(number or max((said and said.concurrency) or [1]))
    if rate is not None:
        load = api.Rate(rate)
    return Offer(
        load,
        given["requests"],
        warmup=max(1, given["requests"] // _WARM_SHARE),
        seed=given["seed"],
        request_timeout_s=said.request_timeout if said else 300.0,
        score=given["score"],
    )


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
) -> None:
    from llm_perf import api

    names = {each.name: each for each in subjects}
    for pair in seen.pairs:
        foot = [
            f"* excludes no change; intervals are of {pair.blocks} paired blocks, 95 %",
            *(str(said) for name, said in verdicts if name == pair.name),
        ]
        api.print_percent(
            f"{seen.first} {names[seen.first].target.name}  against  "
            f"{pair.name} {names[pair.name].target.name}  at {offer.load.title}",
            (seen.first, pair.name),
            pair.changes,
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

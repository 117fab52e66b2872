"""What ``compare`` names: words in, planned cells and servers with their prompts out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_perf.errors import UserError
from trtllm_deploy.cli.options import Planned, Where, planned

if TYPE_CHECKING:
    from llm_perf import api
    from trtllm_deploy.plan.plan import CellPlan
    from trtllm_deploy.study.blocks import Subject
    from trtllm_deploy.study.up import Up

_FILES: Final = (".yaml", ".yml")
_PLACE: Final = re.compile(r"[\w.+-]+://.+|[^\s/]+:\d+(#.*)?")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Asked:
    """A target as a person named it: a server's URL, or a cell of a planned file."""

    url: str = ""
    of: Planned | None = None
    plan: CellPlan | None = None


def read_targets(words: Sequence[str], workspace: Path, where: Where) -> Iterator[Asked]:
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


def build_targets(asked: Sequence[Asked]) -> None:
    """Make what cells lack. Raises UserError where one can't be made."""
    from trtllm_deploy.cli.building import build_cells

    files = {id(each.of): each.of for each in asked if each.of}
    for of in files.values():
        mine = [each.plan for each in asked if each.of is of and each.plan]
        missing = [each for each in mine if not all(map(of.workspace.has, each.stages))]
        if missing and build_cells(of, missing).unbuilt:
            raise UserError("a cell to compare can't be built", where=of.file.path)


def subjects_of(asked: Sequence[Asked], given: dict[str, Any], blocks: int) -> list[Subject]:
    """Who is measured, with the prompts as its own tokenizer counts them."""
    from llm_perf import api
    from trtllm_deploy.study.blocks import Subject
    from trtllm_deploy.study.up import served, target_of

    found: list[Subject] = []
    for place, each in enumerate(asked):
        tokenizer, most = _tokenizer(asked, each, given), _max_tokens(asked, given)
        if each.plan is not None and each.of is not None:
            target = target_of(each.plan, each.of.file)
            up = partial(served, each.plan, each.of.file, each.of.workspace)
        else:
            endpoint = api.find_endpoint(each.url)
            target = api.Target(each.url, endpoint.url, endpoint.protocol, endpoint.model)
            up = partial(_there, endpoint, api.find_metrics(None, endpoint))
        workload = _workload(asked, given, blocks, tokenizer, most)
        if any(other.target.identity == target.identity for other in found):
            raise UserError(f"{target.name} is named twice", fix="compare it with another one")
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
            seed=given["seed"],
        )
    data = given["data"] or _measured_data(asked)
    osl = None if given["osl"] is None else api.parse_lengths(given["osl"], "--osl")
    limit = None if osl else max_tokens
    return api.load_workload(data, tokenizer, limit, output_tokens=osl, seed=given["seed"])


def _measured_data(asked: Sequence[Asked]) -> Path:
    for each in asked:
        measure = each.of.file.deployment.measure if each.of else None
        if each.of and measure and measure.data is not None:
            return each.of.file.resolve(measure.data)
    raise UserError("there are no prompts", fix="give --data FILE.jsonl, or --isl and --osl")

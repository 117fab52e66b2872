"""``measure:``, ``study:`` and ``tune:`` of a deployment file: what is done with built cells."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llm_perf.duration import parse_duration
from llm_perf.errors import UserError
from trtllm_deploy.spec.values import Block, Count, Rate, Tokens, as_list, unique


def _limits(texts: list[str]) -> list[str]:
    """Limits that llm_perf reads."""
    from llm_perf.api import parse_limit

    for text in texts:
        try:
            parse_limit(text, "limits")
        except UserError as error:
            raise ValueError(str(error).removeprefix("limits: ")) from error
    return texts


Limits = Annotated[list[str], BeforeValidator(as_list), AfterValidator(_limits)]


def _searched(texts: list[str]) -> list[str]:
    """Limits that a search can tell."""
    from llm_perf.api import Criterion, parse_limit

    for text in unique(texts):
        try:
            Criterion(parse_limit(text, "limits"))
        except UserError as error:
            raise ValueError(str(error).removeprefix("--limit: ")) from error
    return texts


def _seconds(value: Any) -> Any:
    """``30m`` or ``90`` in seconds."""
    return parse_duration(value) if isinstance(value, str) else value


class StudySpec(Block):
    """What ``run`` searches at each cell: the highest load within limits, with ``measure``'s data.

    Every run of it is in the ledger; each cell has the same arrivals.
    """

    limits: Annotated[Limits, AfterValidator(_searched)] = Field(
        description="averages and percentiles to be kept: ttft.p95<1s, itl.avg<20ms"
    )
    vary: Literal["request_rate", "concurrency"] = Field(
        default="request_rate", description="what is raised until a limit breaks"
    )
    confirmed: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="both ends held by 5 runs of 1,000 requests or more, in place of 3 of 500",
    )
    budget: Annotated[float, BeforeValidator(_seconds), Field(gt=0)] = Field(
        default=float("inf"), description="load on a cell after which its search ends, like 30m"
    )


class MeasureSpec(Block):
    """What ``run`` measures at each cell."""

    data: str | None = Field(
        default=None,
        description="jsonl with text_input and, for a score, reference; default: made up prompts of"
        " the cell's ISL, whose answers have exactly its OSL",
    )
    concurrency: Annotated[list[Count], BeforeValidator(as_list), AfterValidator(unique)] | None = (
        Field(
            default=None,
            description="requests kept in flight; one load for each number; default: 1, or no such"
            " load beside request_rate",
        )
    )
    request_rate: Annotated[list[Rate], BeforeValidator(as_list), AfterValidator(unique)] | None = (
        Field(
            default=None,
            description="requests a second, at Poisson times; one load for each number",
        )
    )
    requests: Count | None = Field(
        default=None, description="requests of a load; default: each prompt once"
    )
    duration: (
        Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)] | None
    ) = Field(default=None, description="of a load, like 30s: nothing is sent later than that")
    warmup_requests: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=0, description="requests before each load that aren't measured"
    )
    repetitions: Count = Field(
        default=1,
        description="how often everything is measured, all loads in turn; with fresh arrivals",
    )
    seed: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=0, description="of the arrivals; the next repetition has the next one"
    )
    fresh: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="ask no prompt in two loads: the data is dealt out among them and their"
        " repetitions, so that a KV cache that is reused knows what prompts share and no more",
    )
    max_tokens: Tokens | None = Field(
        default=None, description="output limit; default: OSL of the cell"
    )
    limits: Limits = Field(
        default=[],
        description="what a cell has to keep to be the one that the report names: ttft.p95<1s,"
        " itl.avg<20ms, score>=0.98",
    )
    request_timeout: float = Field(
        default=120, gt=0, allow_inf_nan=False, description="seconds until a request counts as lost"
    )


_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


def _values(value: Any) -> Any:
    """A list of values, or ``LOW..HIGH``."""
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match and 0 < int(match[1]) < int(match[2]):
        return value
    if match or not isinstance(value, list) or any(isinstance(x, (list, dict)) for x in value):
        raise ValueError("write a list of values, the baseline's first, or LOW..HIGH to double")
    return unique(value)


TunedValues = Annotated[Any, AfterValidator(_values)]


class TuneSpec(Block):
    """What ``tune`` chooses from, and by what.

    Without a load of its own, cells compete at the baseline's highest rate within ``limits``.
    """

    settings: Annotated[dict[str, TunedValues], Field(min_length=1)] = Field(
        description="values to try of precision, max_batch_size, flags of the build, settings of"
        " triton: a list, the baseline's first, or LOW..HIGH, doubled while its limit binds"
    )
    limits: Limits = Field(
        default=[],
        description="what must hold, as in measure.limits, which hold where these are left out",
    )
    concurrency: Count | None = Field(
        default=None, description="requests in flight to compare at; of two loads give one"
    )
    request_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="requests a second to compare at"
    )
    requests: Count = Field(default=100, description="requests of a block")
    blocks: Count = Field(default=2, description="paired blocks of the first round; doubled then")
    budget: Annotated[float, BeforeValidator(_seconds)] = Field(
        default=600.0, gt=0, description="time under load of one search for a rate, as 30m"
    )
    data: str | None = Field(default=None, description="prompts; default: measure.data")
    max_tokens: Tokens | None = Field(
        default=None, description="output limit; default: that of measure, else OSL of the cell"
    )

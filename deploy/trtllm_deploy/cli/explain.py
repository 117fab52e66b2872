"""``explain scheduling``: limits and requests in, in-flight batching step by step out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from llm_perf.errors import UserError
from trtllm_deploy.machine.console import console
from trtllm_deploy.reference.scheduling import BOUNDS, POLICIES, Budget

if TYPE_CHECKING:
    from rich.console import Console

    from trtllm_deploy.reference.simulation import Asked, Iteration

_WIDTH = 36  # characters for an iteration's tokens: the table has 80 columns
_MOST_REQUESTS, _MOST_TOKENS = 100_000, 2**20
_STYLES = {"context": "bold blue", "generation": "green", "free": "dim"}
_COUNT = click.IntRange(1, _MOST_TOKENS)
_PATH = click.Path(path_type=Path, dir_okay=False)


@click.group()
def explain() -> None:
    """Show on paper which limit of a server keeps requests waiting."""


@explain.command()
@click.option("--max-batch-size", type=_COUNT, required=True, help="Requests in an iteration.")
@click.option("--max-num-tokens", type=_COUNT, required=True, help="Tokens in an iteration.")
@click.option(
    "--tokens-per-block",
    type=_COUNT,
    default=32,
    show_default=True,
    help="Tokens in a block of the KV cache; parts of prompts are whole blocks.",
)
@click.option("--kv-blocks", type=_COUNT, help="Blocks of the KV cache; default: enough.")
@click.option("--chunked-context", is_flag=True, help="Prompts may be read in parts.")
@click.option("--policy", type=click.Choice(POLICIES), default=POLICIES[0], show_default=True)
@click.option(
    "--overlap",
    is_flag=True,
    help="PyTorch's overlap scheduler: a slot is free one iteration after an end.",
)
@click.option("--requests", metavar="ISL:OSL,...", help="Requests, as 5:2,5:3.")
@click.option(
    "--workload",
    type=_PATH,
    metavar="FILE",
    help="Requests of a file of prompts, "
    "of a trace (input_length, output_length) or of trtllm-bench.",
)
@click.option("--tokenizer-path", type=click.Path(path_type=Path), help="Counts the prompts.")
@click.option("--concurrency", type=_COUNT, help="Requests that are there at a time; default: all.")
@click.option(
    "--iterations",
    type=_PATH,
    metavar="FILE",
    help="Records of a server's own (trtllm-serve's /metrics) to hold against this.",
)
@click.option(
    "--rows", type=click.IntRange(min=0), default=24, show_default=True, help="Iterations to show."
)
@click.option("--svg", type=_PATH, metavar="FILE", help="Write the picture there.")
def scheduling(
    requests: str | None,
    workload: Path | None,
    tokenizer_path: Path | None,
    concurrency: int | None,
    iterations: Path | None,
    rows: int,
    svg: Path | None,
    overlap: bool,
    kv_blocks: int | None,
    chunked_context: bool,
    **limits: Any,
) -> None:
    """Show who takes part in each iteration, and which limit keeps the others waiting.

    As TensorRT-LLM: those that generate first, a token each, then prompts in the order in which
    they came, within both limits. A letter or digit is a token of that request, blue of its
    prompt, green generated. It counts iterations, not seconds, and reuses no blocks.
    """
    from llm_perf.files import write_text
    from trtllm_deploy.reference.drawing import schedule_svg
    from trtllm_deploy.reference.simulation import simulate

    if (requests is None) == (workload is None):
        raise UserError("what is asked isn't said", fix="give --requests or --workload")
    asked = _from_text(requests) if requests else _from_file(workload, tokenizer_path)
    budget = Budget(blocks=kv_blocks, chunked=chunked_context, **limits)
    seen = _read(iterations) if iterations else None
    done = list(simulate(asked, budget, overlap=overlap, in_flight=concurrency))
    out = console()
    if rows:
        out.print(_table(done[:rows], budget))
    if len(done) > rows:
        out.print(f"{len(done) - rows:,} iterations more", style="dim")
    for line in told(done, asked, budget):
        out.print(line, soft_wrap=True)
    if seen is not None:
        _print_errors(out, done, seen, str(iterations), budget)
    if svg is not None:
        write_text(svg, schedule_svg(done, budget))
        out.print(f"Wrote {svg}", markup=False)


def _from_text(text: str) -> list[Asked]:
    from trtllm_deploy.reference.simulation import Asked

    pairs = text.split(",")
    wrong = next((each for each in pairs if not re.fullmatch(r"\s*\d{1,7}:\d{1,7}\s*", each)), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is no ISL:OSL", where="--requests", fix="write 5:2,5:3")
    return _bounded([Asked(*map(int, each.split(":"))) for each in pairs], "--requests")


def _from_file(file: Path | None, tokenizer_path: Path | None) -> list[Asked]:
    """The lengths of a file's requests: said by themselves, or counted by a tokenizer."""
    from llm_perf.api import load_workload
    from trtllm_deploy.reference.simulation import Asked

    assert file is not None
    if lengths := _lengths(file):
        return _bounded([Asked(*each) for each in lengths], str(file))
    if tokenizer_path is None:
        raise UserError(
            "its prompts are texts, which nobody has counted",
            where=file,
            fix="give --tokenizer-path, or lines with input_length and output_length",
        )
    prompts = load_workload(file, tokenizer_path).prompts
    limits = sorted({p.max_tokens for p in prompts})
    most = f" to {limits[-1]:,}" if limits[1:] else ""
    console().print(f"answers are taken to be as long as they may, {limits[0]:,}{most} tokens")
    return _bounded([Asked(p.input_tokens or 0, p.max_tokens) for p in prompts], str(file))


def _lengths(file: Path) -> list[tuple[int, int]]:
    """What lines say themselves; nothing where they are prompts, or no JSON."""
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        if all("input_ids" in line for line in lines):
            return [(len(line["input_ids"]), int(line["output_tokens"])) for line in lines]
        return [(int(line["input_length"]), int(line["output_length"])) for line in lines]
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=file) from error
    except (ValueError, TypeError, LookupError, RecursionError):
        return []


def _bounded(asked: list[Asked], where: str) -> list[Asked]:
    if not asked or len(asked) > _MOST_REQUESTS:
        raise UserError(f"holds {len(asked):,} requests, not 1 to {_MOST_REQUESTS:,}", where=where)
    for number, each in enumerate(asked, 1):
        if not (1 <= each.prompt <= _MOST_TOKENS and 1 <= each.output <= _MOST_TOKENS):
            raise UserError(
                f"request {number} has {each.prompt}:{each.output} tokens, "
                f"not 1 to {_MOST_TOKENS:,} of each",
                where=where,
            )
    return asked


def _table(iterations: Sequence[Iteration], budget: Budget) -> Table:
    from trtllm_deploy.reference.drawing import BOUNDS_SHORT, strip, symbol

    table = Table(box=None, pad_edge=False)
    table.add_column("step", justify="right")
    table.add_column(f"tokens of {budget.max_num_tokens:,}", width=_WIDTH, no_wrap=True)
    table.add_column("sum", justify="right")
    table.add_column("batch", justify="right")
    table.add_column("waits for", no_wrap=True, overflow="ellipsis", max_width=20)
    for number, each in enumerate(iterations, 1):
        drawn = strip(each, budget.max_num_tokens, _WIDTH)
        waits = ""
        if each.bound:
            who = "".join(symbol(name) for name in each.waiting[:8])
            waits = f"{BOUNDS_SHORT[each.bound]}{f': {who}' if who else ''}"
        waits += f" paused {''.join(map(symbol, each.paused))}" if each.paused else ""
        table.add_row(
            str(number),
            Text.assemble(*((text, _STYLES[kind]) for text, kind in drawn)),
            f"{each.tokens:,}",
            f"{each.requests}/{budget.max_batch_size}",
            waits.strip(),
        )
    return table


def told(done: Sequence[Iteration], asked: Sequence[Asked], budget: Budget) -> Iterator[str]:
    """What a simulation comes to, a line each."""
    requests, tokens = fmean(e.requests for e in done), fmean(e.tokens for e in done)
    yield (
        f"{len(asked):,} requests in {len(done):,} iterations; a mean of {requests:.1f} of "
        f"{budget.max_batch_size:,} requests ({requests / budget.max_batch_size:.0%}) and "
        f"{tokens:,.1f} of {budget.max_num_tokens:,} tokens ({tokens / budget.max_num_tokens:.0%})"
    )
    counts = Counter(each.bound for each in done)
    held = [
        f"{bound} in {counts[bound]:,} ({counts[bound] / len(done):.0%})"
        for bound in BOUNDS
        if counts[bound]
    ]
    yield f"requests waited for: {', '.join(held) or 'nothing: no limit was met'}"
    if budget.blocks is not None:
        most = max(each.used for each in done)
        yield f"KV cache: at most {most:,} of {budget.blocks:,} blocks used"
    pauses = sum(len(each.paused) for each in done)
    if pauses:
        yield f"{pauses:,} times a request was paused and its prompt read again"
    yield from _chunking(done, budget)


def _chunking(done: Sequence[Iteration], budget: Budget) -> Iterator[str]:
    """What reading in parts did, or why it did nothing."""
    if not budget.chunked:
        return
    parts = sum(p.end - p.begin < p.prompt for each in done for p in each.context)
    lost = [each.rounded for each in done if each.rounded]
    if parts:
        yield f"chunking: {parts:,} parts of prompts were read"
    elif not lost:
        yield "chunking was idle: every prompt fitted whole into the tokens that were left"
    if lost:
        yield (
            f"chunking was{'' if parts else ' idle:'} kept from {sum(lost):,} tokens in "
            f"{len(lost):,} iterations: a part is whole blocks of {budget.tokens_per_block}"
        )


def _read(file: Path) -> list[Any]:
    from trtllm_deploy.reference.iterations import read_iterations

    try:
        steps = read_iterations(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=file) from error
    if not steps:
        raise UserError("has no iteration in which a request ran", where=file)
    return steps


def _print_errors(
    out: Console, done: Sequence[Iteration], seen: list[Any], where: str, budget: Budget
) -> None:
    from trtllm_deploy.reference.iterations import apart, compare, predicted

    ours = predicted(done)
    table = Table("", box=None, pad_edge=False)
    for title in ("predicted", "seen", "error"):
        table.add_column(title, justify="right")
    for each in compare(ours, seen, budget.max_batch_size, budget.max_num_tokens):
        error = "-" if each.error is None else f"{each.error:+.1%}"
        table.add_row(each.name, f"{each.predicted:,.2f}", f"{each.seen:,.2f}", error)
    out.print(f"\nAgainst {where}:", markup=False)
    out.print(table)
    out.print(f"step by step they are {apart(ours, seen):.2f} requests apart in the mean")


COMMANDS = (explain,)

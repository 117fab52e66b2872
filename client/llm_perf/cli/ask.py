"""``llm_perf ask``: one question in, its answer on the screen as it comes, then its figures.

The same transports, clock and counts as in a run. The answer goes to stdout, all else to stderr.
"""

from __future__ import annotations

import asyncio
import codecs
import sys
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from llm_perf.cli import flags as asked
from llm_perf.cli.options import THEMES
from llm_perf.screen import plain

if TYPE_CHECKING:
    from llm_perf.record import Exchange, Record
    from llm_perf.transports import Dialect, Endpoint, Transport
    from llm_perf.workload.tokens import Tokenizer
    from llm_perf.workload.workload import Prompt

_LOOK_EVERY_S: Final = 0.03
_ROOM: Final = 2**24  # bytes of an answer
_SHARED: Final = (
    *(option.name for option in THEMES["Server"]),
    *(
        "tokenizer_path",
        "max_tokens",
        "chat_template",
        "sampling",
        "extra_body",
        "end_id",
        "pad_id",
    ),
    "request_timeout_s",
)


@click.command(
    name="ask",
    params=[
        click.Argument(["question"]),
        *(each for options in THEMES.values() for each in options if each.name in _SHARED),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def ask_command(question: str, **flags: Any) -> int:
    """Ask one QUESTION (- reads it from stdin) and show the answer as it comes.

    Exit code 1 when the server doesn't answer it.
    """
    from llm_perf.loop import run_loop
    from llm_perf.record import UNCOUNTED, read_records
    from llm_perf.workload.tokens import load_tokenizer, stop_ids

    endpoint = asked.read_endpoint(flags)
    path = flags["tokenizer_path"]
    tokenizer = load_tokenizer(path) if path else None
    text = sys.stdin.buffer.read().decode(errors="surrogateescape") if question == "-" else question
    prompt = _prompt(text, tokenizer, flags)
    ids = {**(stop_ids(tokenizer.path) if tokenizer else {}), **asked.read_ids(flags)}
    seen, dialect = run_loop(_ask(endpoint, prompt, ids, flags["request_timeout_s"]))
    (record,) = read_records([(prompt, seen)], dialect.parse, tokenizer)
    click.echo()
    if record.error not in (None, UNCOUNTED):
        click.echo(f"llm_perf ask: {record.status.value}: {plain(record.error)}", err=True)
        return 1
    click.echo(_figures(record), err=True)
    return 0


def _prompt(text: str, tokenizer: Tokenizer | None, flags: dict[str, Any]) -> Prompt:
    from llm_perf.workload.datasets import read_object
    from llm_perf.workload.workload import workload_of

    line = read_object({"text_input": text}, "QUESTION")
    workload = workload_of(
        [line] if line else [],
        "QUESTION",
        tokenizer,
        flags["max_tokens"],
        **asked.read_shape(flags),
        chat_template=flags["chat_template"],
    )
    return workload.prompts[0]


async def _ask(
    endpoint: Endpoint, prompt: Prompt, ids: Mapping[str, int], timeout_s: float
) -> tuple[Exchange, Dialect]:
    from llm_perf.record import Exchange
    from llm_perf.transports import connect

    transport = await connect(endpoint, 1, ids)
    try:
        seen = Exchange(str(uuid.uuid4()), room=_ROOM)
        request = transport.dialect.request(prompt, seen.request_id)
        streaming = asyncio.create_task(_hear(transport, request, seen, timeout_s))
        await _show(transport, streaming, seen)
    finally:
        await transport.close()
    return seen, transport.dialect


async def _hear(transport: Transport, request: bytes, seen: Exchange, timeout_s: float) -> None:
    await transport.stream(request, seen, timeout_s)
    transport.read(seen)


async def _show(transport: Transport, streaming: asyncio.Task[None], seen: Exchange) -> None:
    """Print the answer's text while it comes: whole characters, the unprintable spelt out."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    shown, over = 0, False
    while not over:
        await asyncio.wait({streaming}, timeout=_LOOK_EVERY_S)
        over = streaming.done()
        messages = [each for _, each in seen.messages] if over else transport.so_far(seen)
        new = b"".join(transport.dialect.parse(each).text for each in messages[shown:])
        click.echo(plain(decode(new, final=over), keep="\n\t"), nl=False)
        shown = len(messages)
    streaming.result()


def _figures(record: Record) -> str:
    """One line: the times, and the tokens by who counted them."""
    times = {"TTFT": record.ttft_ns, "ITL": record.itl_ns, "latency": record.latency_ns}
    told = ", ".join(f"{name} {ns / 1e6:,.1f} ms" for name, ns in times.items() if ns is not None)
    counts = {
        "in": {"tokenizer": record.prompt.input_tokens, "server": record.server_input_tokens},
        "out": {"server": record.server_tokens, "tokenizer": record.tokenizer_tokens},
    }
    tokens = [
        next((f"{n} {way} ({who}'s count)" for who, n in by.items() if n is not None), f"? {way}")
        for way, by in counts.items()
    ]
    return f"{told}; tokens: {', '.join(tokens)}"

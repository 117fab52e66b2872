"""How exact and how fast this machine is as a client: no server of anybody's in, two figures out.

The same transport and clock that measure are pointed at a null server whose messages carry the
time at which they were written. What lies between that and our stamp is the timing error; the CPU
that a response costs bounds how many a core can take.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from llm_perf.background import child
from llm_perf.errors import UserError
from llm_perf.loop import run_loop

_CLICK_PATH = click.Path(path_type=Path, dir_okay=False)
_PACES = ((8, 64, 20_000), (32, 64, 20_000), (128, 64, 20_000))  # streams, messages, µs between
_FLOOD = (64, 1500, 0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Write → stamp at one pace. Errors in ms over all responses; rate in responses/s."""

    streams: int
    responses: int
    responses_per_s: float
    error_p50_ms: float
    error_p99_ms: float
    loop_lag_p99_ms: float | None
    cpu_us_per_response: float


@contextmanager
def null_server() -> Iterator[str]:
    """Run a null server in a process of its own; gives its HOST:PORT."""
    from llm_perf.selftest.nullserver import serve

    with child(serve) as pipe:
        try:
            port = pipe.recv()
        except EOFError as error:
            raise UserError("the null server did not start", fix="see the message above") from error
        yield f"127.0.0.1:{port}"


def _time(url: str, streams: int, messages: int, gap_us: int) -> Timing:
    import numpy as np

    from llm_perf.load.arrivals import plan
    from llm_perf.load.health import judge
    from llm_perf.load.load import ONCE, Concurrency, Conditions
    from llm_perf.load.runner import Job, carry_out
    from llm_perf.selftest.nullserver import MODEL
    from llm_perf.transports import Endpoint
    from llm_perf.workload.workload import Prompt

    prompts = tuple(Prompt(i, f"{messages} {gap_us}", 1, messages) for i in range(streams))
    job = Job(
        endpoint=Endpoint(url, "grpc", MODEL),
        prompts=prompts,
        order=plan(Concurrency(streams), ONCE, streams),
        conditions=Conditions(request_timeout_s=60.0),
    )
    outcome = run_loop(carry_out(job))
    exchanges = outcome.exchanges.values()
    failed = next((seen.failure for seen in exchanges if seen.failure), None)
    if failed is not None:
        raise UserError(f"the null server was not heard out: {failed[1]}")
    seen = [stamped for each in exchanges for stamped in each.messages]
    errors = [at - int(outcome.dialect.parse(message).text) for at, message in seen]
    span = max(at for at, _ in seen) - min(each.sent_ns for each in exchanges)
    p50, p99 = (float(value) / 1e6 for value in np.percentile(errors, (50, 99)))
    return Timing(
        streams=streams,
        responses=len(seen),
        responses_per_s=len(seen) / span * 1e9,
        error_p50_ms=p50,
        error_p99_ms=p99,
        loop_lag_p99_ms=judge([outcome.sample], []).loop_lag_p99_ms,
        cpu_us_per_response=outcome.sample.cpu_ns / len(seen) / 1e3,
    )


@click.command(name="selftest")
@click.option("--json", "json_file", type=_CLICK_PATH, help="Write the figures there as well.")
def selftest_command(json_file: Path | None) -> int:
    """Measure this machine as a client: timing error and response rate, in a few seconds.

    The null server runs beside the client, so both share the cores; a busy machine looks worse.
    """
    with null_server() as url:
        timings = [_time(url, *pace) for pace in _PACES]
        flood = _time(url, *_FLOOD)
    limit = 1e6 / flood.cpu_us_per_response
    click.echo("Timing error, from the server's write to our stamp:")
    for timing in timings:
        click.echo(
            f"  {timing.streams:4} streams, {timing.responses_per_s:7,.0f} responses/s: "
            f"p50 {timing.error_p50_ms:.3f} ms, p99 {timing.error_p99_ms:.3f} ms; "
            f"{timing.cpu_us_per_response:.1f} µs of CPU each"
        )
    click.echo(
        f"Response rate limit: {limit:,.0f}/s a core, where reads are full "
        f"({flood.cpu_us_per_response:.1f} µs of CPU each at {flood.responses_per_s:,.0f}/s)"
    )
    if json_file is not None:
        document = {
            "timings": [asdict(timing) for timing in timings],
            "flood": asdict(flood),
            "responses_per_core_s": limit,
            "python": platform.python_version(),
        }
        try:
            json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"can't be written: {error.strerror}", where=json_file) from error
    return 0

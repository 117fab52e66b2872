"""What the flags of ``llm_perf`` ask for: their values in; endpoint, loads, extent, workload,
options and the files to write out.

Raises ``UserError`` where flags make no sense together. Imports little until a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llm_perf.cli.options import DEFAULT_EXPORT, DEFAULT_PROMPTS
from llm_perf.errors import UserError

if TYPE_CHECKING:
    from llm_perf.api import Conditions, Endpoint, Extent, Load, Planned, Target, Workload

Flags = dict[str, Any]
_AS_THEY_ARE: Final = (
    *("request_timeout_s", "max_in_flight", "stop_after_failures", "resume", "workers", "ray"),
    "unique_prefix",
    *("give_up_after_s", "resume_anyway", "max_answer_bytes", "score", "server_metrics_every_s"),
)
_LOADS: Final = ("concurrency", "request_rate", "trace_replay")
_OPENAI: Final = ("endpoint_type", "extra_body", "max_tokens_field", "no_stream_options")
_TOGETHER: Final = (
    ("input_data", "isl"),
    ("max_tokens", "output_tokens"),
    ("isl", "output_tokens"),
    ("isl", "max_tokens"),
    ("isl", "chat_template"),
    ("input_data", "osl"),
    ("input_data", "shared_prefix_tokens"),
)


def read_endpoint(flags: Flags) -> Endpoint:
    """Say where the server is and how it is spoken to.

    Where a URL stands and no protocol, the server is asked whether it is Triton.
    """
    from llm_perf.transports import Endpoint, Tls

    files = {name: flags[f"ssl_{name}"] for name in ("ca", "cert", "key")}
    tls = Tls(**files, insecure=flags["insecure"])
    protocol, url = flags["protocol"], flags["url"]
    by_url = protocol is None and url is not None and url.startswith(("http://", "https://"))
    spoken = protocol or ("openai" if by_url else "grpc")
    given = [_flag(name) for name in _OPENAI if flags[name]]
    if given and spoken != "openai":
        raise UserError(f"{given[0]} is for -i openai", fix="leave it out")
    endpoint = Endpoint(
        url or f"localhost:{8001 if spoken == 'grpc' else 8000}",
        spoken,
        flags["model"],
        transport=flags["transport"] or flags["endpoint_type"],
        headers=flags["headers"],
        tls=tls if tls != Tls() else None,
        api_key_env=flags["api_key_env"],
        max_tokens_field=flags["max_tokens_field"] or "max_tokens",
        stream_options=not flags["no_stream_options"],
    )
    if by_url and not given and not urlsplit(endpoint.base).path and _is_triton(endpoint):
        return replace(endpoint, protocol="http")
    return endpoint


def _is_triton(endpoint: Endpoint) -> bool:
    from llm_perf.loop import run_loop
    from llm_perf.server.identity import identify

    return run_loop(identify(replace(endpoint, protocol="http"))).get("name") == "triton"


def read_loads(flags: Flags) -> Sequence[Load]:
    """Say under which loads to measure, one after the other."""
    from llm_perf.load.load import Rate, Trace, parse_concurrencies, parse_rates

    if len(given := [_flag(name) for name in _LOADS if flags[name]]) > 1:
        raise UserError(f"{' and '.join(given)} are different loads", fix="give one of them")
    if flags["trace_replay"]:
        return (Trace(),)
    ramp_s = flags["ramp"]
    if flags["request_rate"] is not None:
        drawn = (flags["arrival"], flags["burstiness"], flags["seed"])
        return [Rate(rate, *drawn, ramp_s) for rate in parse_rates(flags["request_rate"])]
    concurrency = flags["concurrency"]
    return parse_concurrencies("1" if concurrency is None else concurrency, ramp_s)


def read_extent(flags: Flags, prompts: int) -> Extent:
    """Say how much of a load to offer, over so many ``prompts``."""
    from llm_perf.load.load import Extent

    requests = flags["num_requests"]
    if flags["repeat"] is not None:
        if requests is not None:
            raise UserError("--num-requests and --repeat both set a number", fix="give one of them")
        requests = flags["repeat"] * prompts
    return Extent(requests, flags["duration"], flags["warmup_requests"], flags["warmup_seconds"])


def read_workload(flags: Flags, turn: str = "") -> Workload:
    """Load the prompts, or make them up: other ones for each ``turn``."""
    from llm_perf.workload.synthetic import parse_lengths
    from llm_perf.workload.workload import load_workload, synthetic_workload

    _check_data(flags)
    shape = read_shape(flags)
    if flags["isl"] is not None:
        return synthetic_workload(
            flags["tokenizer_path"],
            parse_lengths(flags["isl"], "--isl"),
            parse_lengths(flags["osl"], "--osl"),
            flags["num_prompts"] or DEFAULT_PROMPTS,
            shared_prefix_tokens=flags["shared_prefix_tokens"],
            **shape,
            seed=flags["seed"],
            turn=turn,
        )
    fixed = flags["output_tokens"]
    return load_workload(
        flags["input_data"],
        flags["tokenizer_path"],
        flags["max_tokens"],
        flags["num_prompts"],
        output_tokens=None if fixed is None else parse_lengths(fixed, "--output-tokens"),
        **shape,
        chat_template=flags["chat_template"],
        seed=flags["seed"],
    )


def read_shape(flags: Flags) -> dict[str, Any]:
    """Say what every request has besides, as ``load_workload`` takes it."""
    from llm_perf.workload.fields import parse_extra_body, parse_sampling

    extra = flags["extra_body"]
    return {
        "sampling": parse_sampling(flags["sampling"]),
        "extra_body": None if extra is None else parse_extra_body(extra),
    }


def _check_data(flags: Flags) -> None:
    for one, other in _TOGETHER:
        if flags[one] and flags[other]:
            raise UserError(f"{_flag(one)} and {_flag(other)} exclude each other", fix="drop one")
    if flags["input_data"] is None and flags["isl"] is None:
        raise UserError("there are no prompts", fix="give --input-data, or --isl and --osl")
    if flags["isl"] is not None and flags["osl"] is None:
        raise UserError("--isl needs --osl", fix="say how many tokens each answer has")


def read_conditions(
    flags: Flags, extent: Extent, journal: Path, metrics_url: str | None
) -> Conditions:
    """Say how to measure."""
    from llm_perf.api import Conditions
    from llm_perf.figures.goodput import parse_goodput

    return Conditions(
        **{name: flags[name] for name in _AS_THEY_ARE},
        extent=extent,
        journal=None if flags["ray"] else journal,
        interruptible=True,
        defaults=read_ids(flags),
        goodput=parse_goodput(flags["goodput"]) if flags["goodput"] else None,
        server_metrics_url=metrics_url,
    )


def read_planned(
    flags: Flags,
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    extent: Extent,
    repetition: int,
) -> Planned:
    """Say what a load's line in the ledger is; each repetition has arrivals of its own.

    The server is called as the results' file is, by its URL where the user named none.
    """
    from llm_perf.api import Planned, Rate

    file: Path = flags["profile_export_file"]
    seed = flags["seed"] + repetition
    return Planned(
        read_target(endpoint, None if file == DEFAULT_EXPORT else file.stem),
        replace(load, seed=seed) if isinstance(load, Rate) else load,
        workload,
        extent,
        seed,
        repetition,
        unique_prefix=flags["unique_prefix"],
        study=file.stem,
    )


def read_target(endpoint: Endpoint, name: str | None = None) -> Target:
    """Say who is measured, as the ledger knows a server that was there: by its URL, or by name."""
    from llm_perf.api import Target

    place = (endpoint.url, endpoint.protocol, endpoint.model)
    return Target(name or endpoint.url, *place, transport=endpoint.transport)


def read_ids(flags: Flags) -> dict[str, int]:
    """Name the tokens that end and pad, as far as they are given."""
    return {name: flags[name] for name in ("end_id", "pad_id") if flags[name] is not None}


def read_extras(flags: Flags) -> tuple[str, ...]:
    """Name the files to write besides, as ``llm_perf.results.export.write_run`` takes them."""
    from llm_perf.results.export import EXTRAS

    return {"all": EXTRAS, "none": ()}.get(flags["export"], (flags["export"],))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

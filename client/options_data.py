"""The flags of ``llm_perf`` that say what is asked and what becomes of the answers.

Flags in, a workload and the files' kinds out. Imports little until a function is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from client.errors import UserError
from client.options import theme

if TYPE_CHECKING:
    from client.workload import Workload

DEFAULT_EXPORT: Final = Path("artifacts/profile_export.json")
_FILE: Final = click.Path(path_type=Path)
_DEFAULT_PROMPTS: Final = 100

_data = theme("Data")
DATA: Final = [
    _data(
        "--tokenizer-path",
        required=True,
        type=_FILE,
        help="The model's folder, or its tokenizer.json.",
    ),
    _data(
        "--input-data",
        type=_FILE,
        help="Prompts, a JSON object a line: text_input, and max_tokens, reference, category and "
        "sampling parameters if any; also the files of genai-perf, trtllm-bench, ShareGPT and "
        "mooncake.",
    ),
    _data("--isl", metavar="N[±S]", help="Make prompts up: so many tokens each, exactly."),
    _data("--osl", metavar="N[±S]", help="With --isl: output tokens of each answer, exactly."),
    _data(
        "--shared-prefix-tokens",
        type=click.IntRange(min=0),
        default=0,
        metavar="P",
        help="With --isl: tokens at the start that are the same in all prompts.",
    ),
    _data(
        "--num-prompts",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Prompts to make up, or to take from the file.  [default: {_DEFAULT_PROMPTS}, all]",
    ),
    _data(
        "--max-tokens",
        type=click.IntRange(min=1, max=2**31 - 1),
        help="At most this many output tokens per request; overrides the prompts' own.  "
        "[default: the prompt's, else 512]",
    ),
    _data(
        "--output-tokens",
        metavar="N[±S]",
        help="Exactly so many output tokens per request instead, drawn from --seed where S, a "
        "standard deviation, is given (N+-S is the same).  [default: until the model ends]",
    ),
    _data("--chat-template", is_flag=True, help="Render each prompt as a chat of the model."),
    _data(
        "--sampling",
        multiple=True,
        metavar="NAME=VALUE",
        help="Sampling parameter of every request, like temperature=0 or stop_words='[\"END\"]'; "
        "overrides the prompts' own. Can be repeated.",
    ),
    _data("--end-id", type=int, help="Token that ends an answer, for prompts that name none."),
    _data("--pad-id", type=int, help="Token that pads, for prompts that name none."),
]

_results = theme("Results")
RESULTS: Final = [
    _results(
        "--profile-export-file",
        default=DEFAULT_EXPORT,
        show_default=True,
        type=_FILE,
        help="The JSON to write, with a line per request in a .jsonl beside it; with several "
        "loads one of each per load, NAME_concurrencyN.json.",
    ),
    _results(
        "--export",
        type=click.Choice(["all", "answers", "genai-perf", "none"]),
        default="all",
        show_default=True,
        help="What is written besides: NAME_answers.jsonl for graders; a folder NAME with "
        "perf_analyzer's profile_export.json and genai-perf's JSON and CSV.",
    ),
    _results("--explain", is_flag=True, help="Print formula, source and n of every figure."),
    _results(
        "--score",
        type=click.Choice(["exact", "contains", "regex", "number", "f1", "rouge-l", "choice"]),
        default="exact",
        show_default=True,
        help="How answers are scored against their references.",
    ),
    _results(
        "--goodput",
        metavar="LIMITS",
        help="Count requests that keep limits, like ttft:1s,itl:50ms; also latency, "
        "ttft_from_schedule, latency_from_schedule.",
    ),
    _results(
        "--server-metrics-url",
        metavar="URL",
        help="Prometheus endpoint to watch meanwhile.  [default: port 8002 of the server's host, "
        "if it answers]",
    ),
    _results(
        "--server-metrics-interval",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        metavar="S",
        help="Seconds between two looks at it.",
    ),
]


def read_workload(flags: dict[str, Any]) -> Workload:
    """Load or make up the prompts that the flags ask for; raises ``UserError``."""
    from client.datasets import parse_sampling
    from client.lengths import parse_lengths
    from client.workload import load_workload, synthetic_workload

    _check(flags)
    sampling = parse_sampling(flags["sampling"])
    if flags["isl"] is not None:
        return synthetic_workload(
            flags["tokenizer_path"],
            parse_lengths(flags["isl"], "--isl"),
            parse_lengths(flags["osl"], "--osl"),
            flags["num_prompts"] or _DEFAULT_PROMPTS,
            shared_prefix_tokens=flags["shared_prefix_tokens"],
            sampling=sampling,
            seed=flags["seed"],
        )
    fixed = flags["output_tokens"]
    return load_workload(
        flags["input_data"],
        flags["tokenizer_path"],
        flags["max_tokens"],
        flags["num_prompts"],
        output_tokens=None if fixed is None else parse_lengths(fixed, "--output-tokens"),
        sampling=sampling,
        chat_template=flags["chat_template"],
        seed=flags["seed"],
    )


def extras(flags: dict[str, Any]) -> tuple[str, ...]:
    """Name the files to write besides, as ``client.export.write_run`` takes them."""
    everything = ("answers", "genai-perf")
    return {"all": everything, "none": ()}.get(flags["export"], (flags["export"],))


_TOGETHER: Final = (
    ("input_data", "isl"),
    ("max_tokens", "output_tokens"),
    ("isl", "output_tokens"),
    ("isl", "max_tokens"),
    ("isl", "chat_template"),
    ("input_data", "osl"),
    ("input_data", "shared_prefix_tokens"),
)


def _check(flags: dict[str, Any]) -> None:
    """See that the flags make sense together."""
    for one, other in _TOGETHER:
        if flags[one] and flags[other]:
            raise UserError(f"{_flag(one)} and {_flag(other)} exclude each other", fix="drop one")
    if flags["input_data"] is None and flags["isl"] is None:
        raise UserError("there are no prompts", fix="give --input-data, or --isl and --osl")
    if flags["isl"] is not None and flags["osl"] is None:
        raise UserError("--isl needs --osl", fix="say how many tokens each answer has")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

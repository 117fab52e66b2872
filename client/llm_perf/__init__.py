"""Measure a server of large language models: load, clock, records, metrics, scores.

What this module names is public, the rest isn't. :mod:`llm_perf.api` says how it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_perf.api import (
        CONFIRMED,
        INDICATIVE,
        Answer,
        Concurrency,
        Conditions,
        Criterion,
        Endpoint,
        Extent,
        Limit,
        Load,
        Measurement,
        Planned,
        Progress,
        Prompt,
        Question,
        Rate,
        Record,
        Run,
        Site,
        Status,
        Target,
        Trace,
        Workload,
        append_measurement,
        finished,
        lines_of,
        load_workload,
        measure,
        parse_limit,
        print_answer,
        print_run,
        print_summary,
        read_lines,
        read_measurements,
        read_results,
        search_limits,
        searched,
        show_progress,
        stop_ids,
        write_report,
        write_run,
    )
    from llm_perf.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "CONFIRMED",
    "INDICATIVE",
    "Answer",
    "Concurrency",
    "Conditions",
    "Criterion",
    "Endpoint",
    "Extent",
    "Limit",
    "Load",
    "Measurement",
    "Planned",
    "Progress",
    "Prompt",
    "Question",
    "Rate",
    "Record",
    "Run",
    "Site",
    "Status",
    "Target",
    "Trace",
    "UserError",
    "Workload",
    "__version__",
    "append_measurement",
    "finished",
    "lines_of",
    "load_workload",
    "measure",
    "parse_limit",
    "print_answer",
    "print_run",
    "print_summary",
    "read_lines",
    "read_measurements",
    "read_results",
    "search_limits",
    "searched",
    "show_progress",
    "stop_ids",
    "write_report",
    "write_run",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: ``--help`` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        import_module("llm_perf.errors" if name == "UserError" else "llm_perf.api"), name
    )

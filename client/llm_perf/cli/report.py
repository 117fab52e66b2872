"""``llm_perf report RESULTS… -o report.html``: results in, one page that can be mailed out."""

from __future__ import annotations

from pathlib import Path

import click

from llm_perf.errors import UserError

_PATH = click.Path(path_type=Path)


@click.command(
    name="report",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("results", nargs=-1, required=True)
@click.option("-o", "--output", type=_PATH, default=Path("report.html"), show_default=True,
              help="The page.")  # fmt: skip
@click.option("--limit", "limits", multiple=True, metavar="LIMIT",
              help="What a point has to keep, like ttft.p95<1s, itl.avg<20ms, "
              "tokens_per_user.p50>=50 or score>=0.98. Can be repeated.")  # fmt: skip
@click.option("--baseline", metavar="TARGET",
              help="Whom the best is compared with.  [default: the first target]")  # fmt: skip
@click.option("--gpus", type=click.IntRange(min=1), metavar="N",
              help="GPUs of a server, where results don't say.")  # fmt: skip
@click.option("--title", default="llm_perf report", show_default=True, help="Stands at its top.")
@click.option("--svg", "svg_folder", type=_PATH, metavar="FOLDER",
              help="Write each chart as SVG too, for a document.")  # fmt: skip
def report_command(
    results: tuple[str, ...],
    output: Path,
    limits: tuple[str, ...],
    baseline: str | None,
    gpus: int | None,
    title: str,
    svg_folder: Path | None,
) -> int:
    """Draw what was measured, the decision first, as one page that loads nothing.

    RESULTS are JSON files that llm_perf or trtllm-bench wrote, or folders of them, or with a
    ledger.jsonl; NAME=RESULT names what was measured there. Prompts and answers stay out of the
    page.
    """
    from llm_perf.figures.limits import parse_limits
    from llm_perf.report.page import write_report
    from llm_perf.report.read import read_results

    asked = [each for text in limits for each in parse_limits(text, "--limit")]
    if output.suffix not in (".html", ".htm"):
        raise UserError("is no page", where=output, fix="give -o a path ending in .html")
    decision, charts = write_report(
        output, read_results(results), asked, baseline=baseline, gpus=gpus, title=title,
        svg_folder=svg_folder,
    )  # fmt: skip
    click.echo(decision.sentence)
    click.echo(f"Wrote {output} with {charts} charts")
    return 0

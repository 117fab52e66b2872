"""How often the interval of ``llm_perf search`` holds the truth, and what it takes.

    python benchmarks/search.py [--seeds 40] [--json FILE]

In virtual time, against a queue before 16 servers with lognormal service times (and 4, with more
spread, and 64): what is right is known from runs of 300,000 requests. Beside each search stands a
linear sweep: evenly spaced rates between the same bounds, with the same runs at each, and as many
rates as make its interval as narrow. Then searches with budgets, on a server that takes 3 s for a
request and on one that takes 0.2 s. Then two servers 10 % apart are compared in paired blocks, of
one workload in alternation under a common drift, and for contrast by whole runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parent.parent)  # this file has the name of what it measures

from llm_perf.figures.blocks import paired
from llm_perf.figures.limits import parse_limit
from llm_perf.search.probe import Probe
from llm_perf.search.question import CONFIRMED, INDICATIVE, Ask, Mode, Question, Vary
from llm_perf.search.seen import Criterion
from tests.client.search.simulated import Server, solve

SERVERS = {
    "16 slots": Server(),
    "4 slots, spread 1": Server(slots=4, mean_s=1.0, spread=1.0),
    "64 slots": Server(slots=64),
}
LIMITS = ("ttft.p95<1s", "ttft.p99<1s", "ttft.avg<1s")
BUDGETED = {
    "120 slots, 3 s": Server(slots=120, mean_s=3.0, spread=0.1),
    "16 slots, 0.2 s": Server(mean_s=0.2),
}
BUDGETS_S = (60, 180, 600, 1800)
FASTER = 1.1


def searched(server: Server, limit: str, mode: Mode, vary: Vary, seeds: int) -> dict[str, Any]:
    criterion = Criterion(parse_limit(limit, "LIMITS"))
    closed = vary == "concurrency"
    truth = server.true_concurrency(criterion) if closed else server.true_rate(criterion)
    answers = [
        solve(server, Question((criterion,), vary, mode, 1000 * seed)) for seed in range(seeds)
    ]
    ends = [each.interval for each in answers if each.interval]
    widths = [each.width for each in answers if each.width]
    return {
        "truth": truth,
        "held": sum(low <= truth <= high for low, high in ends),
        "of": seeds,
        "width_mean": fmean(widths),
        "width_most": max(widths),
        "promised": mode.promise,
        "wider_than_promised": sum(each > mode.promise for each in widths),
        "about_by_truth": fmean(each.about / truth for each in answers if each.about),
        "requests": fmean(each.requests for each in answers),
        "load_s": fmean(each.spent_s for each in answers),
    }


def budgeted(server: Server, budget_s: float, seeds: int) -> dict[str, Any]:
    """What a budget pays for: answers by their kind, and how many of them are wrong."""
    criterion = Criterion(parse_limit(LIMITS[0], "LIMITS"))
    truth = server.true_rate(criterion)
    answers = [
        solve(server, Question((criterion,), seed=1000 * seed, budget_s=budget_s))
        for seed in range(seeds)
    ]
    widths = [each.width for each in answers if each.width]
    wrong = [each for each in answers if each.least and each.least > truth]
    wrong += [each for each in answers if each.high and each.high.value < truth]
    return {
        "truth": truth,
        "budget_s": budget_s,
        "intervals": len(widths),
        "at_least": sum(each.low is not None and each.high is None for each in answers),
        "less_than": sum(each.low is None and each.high is not None for each in answers),
        "single_runs": sum(each.low is each.high is None for each in answers),
        "wrong": len(wrong),
        "of": seeds,
        "width_mean": fmean(widths) if widths else None,
        "load_s": fmean(each.spent_s for each in answers),
        "most_load_s": max(each.spent_s for each in answers),
    }


def swept(
    server: Server, limit: str, mode: Mode, seeds: int, width: float, length: int
) -> dict[str, Any]:
    """The smallest sweep whose interval is as narrow on average."""
    criterion = Criterion(parse_limit(limit, "LIMITS"))
    truth = server.true_rate(criterion)
    for points in range(4, 41):
        found = [
            one
            for seed in range(seeds)
            if (one := _sweep(server, criterion, mode, points, length, seed))
        ]
        widths = [(high / low) ** 0.5 - 1 for low, high, _ in found]
        if found and fmean(widths) <= width:
            break
    return {
        "points": points,
        "width_mean": fmean(widths),
        "held": sum(low <= truth <= high for low, high, _ in found),
        "of": seeds,
        "requests": fmean(requests for _, _, requests in found),
    }


def _sweep(
    server: Server, criterion: Criterion, mode: Mode, points: int, length: int, seed: int
) -> tuple[float, float, int] | None:
    probes, number, requests = [], 10_000 * seed, 0
    for rate in np.linspace(0.5 * server.capacity, 1.05 * server.capacity, points).tolist():
        probe = Probe(rate, [criterion], mode.runs, open_loop=True)
        while not probe.finished:
            ask = Ask("request_rate", rate, length, number, len(probe.seen), "ends", number)
            probe.seen.append(server.show([criterion], ask))
            number, requests = number + 1, requests + length
        probes.append(probe)
    high = min((each.value for each in probes if each.verdict == "fail"), default=None)
    held = [each.value for each in probes if each.verdict == "pass" and each.value < (high or 0)]
    return (max(held) / (1 + mode.opened), high, requests) if high and held else None


def apart(seeds: int, blocks: int = 8, requests: int = 500) -> dict[str, Any]:
    """Throughput of two servers, one 10 % faster, in paired blocks and each on its own."""
    together, alone = [], []
    for seed in range(seeds):
        a = _blocks(Server(), seed, blocks, requests, own=1)
        found = paired(a, _blocks(Server(faster=FASTER), seed, blocks, requests, own=2))
        assert found is not None
        together.append(found)
        other = _blocks(Server(faster=FASTER), seed + seeds, blocks, requests, own=2)
        alone.append(100 * (fmean(other) / fmean(a) - 1))
    truth = 100 * (FASTER - 1)
    return {
        "truth_percent": truth,
        "right_sign": sum(each.percent > 0 for each in together),
        "sure": sum(each.sure for each in together),
        "within_2_points": sum(abs(each.percent - truth) <= 2 for each in together),
        "held": sum(each.low <= truth <= each.high for each in together),
        "of": seeds,
        "sd_points": float(np.std([each.percent for each in together])),
        "alone_right_sign": sum(each > 0 for each in alone),
        "alone_sd_points": float(np.std(alone)),
    }


def _blocks(server: Server, seed: int, blocks: int, requests: int, own: int) -> list[float]:
    """Requests a second of each block: prompts and a drift of the machine are the seed's.

    What a request takes differs by 5 % from turn to turn, which is a server's ``own``.
    """
    random, drawn = np.random.default_rng((9, seed)), np.random.default_rng((seed, own))
    drift = np.exp(0.2 * np.cumsum(random.standard_normal(blocks)) / blocks**0.5)
    found = []
    for block, slower in enumerate(drift.tolist()):
        at, _, services = server.closed(server.slots, requests, 100 * seed + block)
        ends = at + services * drawn.normal(1, 0.05, requests)
        found.append(requests / (float(ends.max()) * slower))
    return found


def studies(seeds: int) -> Iterator[dict[str, Any]]:
    varied: tuple[Vary, ...] = ("request_rate", "concurrency")
    for vary, (name, server), limit, mode in product(
        varied, SERVERS.items(), LIMITS, (INDICATIVE, CONFIRMED)
    ):
        asked = {"server": name, "limit": limit, "vary": vary, "mode": mode.name}
        yield {**asked, **searched(server, limit, mode, vary, seeds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = []
    for each in studies(asked.seeds):
        found.append(each)
        print(
            f"{each['server']:<18}{each['limit']:<13}{each['vary']:<13}{each['mode']:<11}"
            f"held {each['held']} of {each['of']}, ±{each['width_mean']:.1%} (at most "
            f"{each['width_most']:.1%}, promised {each['promised']:.0%}), "
            f"{each['requests']:,.0f} requests, {each['load_s']:,.0f} s",
            flush=True,
        )
    sweeps = []
    for each in found[:4:2]:
        mode = INDICATIVE
        sweep = swept(Server(), each["limit"], mode, asked.seeds, each["width_mean"], 1000)
        sweeps.append({"limit": each["limit"], "mode": mode.name, **sweep})
        print(
            f"linear sweep of {each['limit']}: {sweep['points']} rates, "
            f"±{sweep['width_mean']:.1%}, held {sweep['held']} of {sweep['of']}, "
            f"{sweep['requests']:,.0f} requests",
            flush=True,
        )
    budgets = []
    for (name, server), budget_s in product(BUDGETED.items(), BUDGETS_S):
        each = {"server": name, **budgeted(server, budget_s, asked.seeds)}
        budgets.append(each)
        width = each["width_mean"] and f" (±{each['width_mean']:.1%})"
        print(
            f"{name}, budget {budget_s} s: {each['intervals']} intervals{width or ''}, "
            f"{each['at_least']} at least, {each['less_than']} less than, {each['single_runs']} by "
            f"single runs; wrong {each['wrong']} of {each['of']}; {each['load_s']:,.0f} s of load, "
            f"at most {each['most_load_s']:,.0f}",
            flush=True,
        )
    servers = apart(asked.seeds)
    print(
        f"two servers {servers['truth_percent']:.0f} % apart: right sign {servers['right_sign']}, "
        f"within 2 points {servers['within_2_points']}, interval held {servers['held']} of "
        f"{servers['of']}; sd {servers['sd_points']:.2f} points; measured apart: right sign "
        f"{servers['alone_right_sign']}, sd {servers['alone_sd_points']:.1f} points"
    )
    if asked.json:
        document = {"searches": found, "sweeps": sweeps, "budgets": budgets, "two_servers": servers}
        asked.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

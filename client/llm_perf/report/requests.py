"""The requests of a run as columns: the jsonl beside a result in, arrays out.

Of each line only numbers are kept: prompts and answers are nobody's who gets the report.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llm_perf.errors import UserError

Numbers = NDArray[np.float64]

LATENCIES: Final = {
    "time_to_first_token": "TTFT",
    "inter_token_latency": "ITL",
    "request_latency": "request latency",
}
_METRICS: Final = (
    *LATENCIES,
    *("output_token_throughput_per_user", "output_token_throughput_per_user_e2e"),
    *("server_queue_time", "server_prefill_time"),
)


@dataclass(frozen=True, slots=True)
class Requests:
    """A run's requests in the order they were sent; what a request hasn't got is NaN.

    ``sent_s``, ``first_s`` (first token) and ``end_s`` count from the first send, at ``origin_ns``
    of the client's clock. ``values`` are metrics per request, in their own units.
    """

    origin_ns: int
    sent_s: Numbers
    first_s: Numbers
    end_s: Numbers
    ok: NDArray[np.bool_]
    tokens: Numbers
    index: Numbers  # of the prompt
    score: Numbers
    values: dict[str, Numbers]
    failures: tuple[tuple[str, int], ...]  # status and error, and how often

    def __len__(self) -> int:
        return len(self.sent_s)

    def of(self, metric: str) -> Numbers:
        """The values of a metric that requests have, sorted."""
        values = self.values[metric]
        return np.sort(values[~np.isnan(values)])


def read_requests(path: Path) -> Requests | None:
    """Read a run's jsonl; ``None`` where there is none. Raises ``UserError`` for another file."""
    rows: list[tuple[float, ...]] = []
    failures: Counter[str] = Counter()
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                number += 1
                if line.strip():
                    rows.append(_row(json.loads(line), failures))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"is no line of a request ({error!r})",
            where=path,
            line=number,
            fix="give the files as llm_perf wrote them",
        ) from error
    if not rows:
        return None
    rows.sort()
    sent, first, end, *others = np.array(rows, dtype=np.float64).T
    ok, tokens, index, score, *values = others
    return Requests(
        origin_ns=int(sent[0]),
        sent_s=(sent - sent[0]) * 1e-9,
        first_s=(first - sent[0]) * 1e-9,
        end_s=(end - sent[0]) * 1e-9,
        ok=ok == 1,
        tokens=tokens,
        index=index,
        score=score,
        values=dict(zip(_METRICS, values, strict=True)),
        failures=tuple(failures.most_common()),
    )


def _row(line: dict[str, Any], failures: Counter[str]) -> tuple[float, ...]:
    """The numbers of one line, as columns are made of them."""
    came = line.get("chunk_ns") or ()
    ok = line["status"] == "ok"
    sent = line["sent_ns"] or line["scheduled_ns"]  # what found no connection was never sent
    if not ok:
        failures[f"{line['status']}: {line.get('error') or 'no reason given'}"] += 1
    end = came[-1] if ok and came else max(line["end_ns"], sent)
    known = line["metrics"]
    own = (line["index"], line.get("score"), *(known.get(key) for key in _METRICS))
    figures = (np.nan if each is None else float(each) for each in own)
    return (sent, came[0] if came else np.nan, end, ok, line.get("output_tokens") or 0, *figures)

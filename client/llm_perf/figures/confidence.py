"""How sure a figure is: intervals and tests on plain numbers. Pure, and seeded where it draws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Z95: Final = 1.959963984540054  # 97.5 % quantile of the normal distribution
RESAMPLES: Final = 1000
_SEED: Final = 20240229  # the same data has the same interval
_CELLS: Final = 4_000_000  # numbers drawn at once

Numbers = NDArray[np.float64]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def bootstrap(
    rows: Sequence[Sequence[float]], statistic: Callable[[Numbers], Numbers]
) -> tuple[Any, Any]:
    """95 % percentile interval (low, high) of a statistic (Efron 1979), rows drawn together.

    ``rows`` are k equally long sequences, paired by index; ``statistic`` takes an array
    (resamples, k, n) and gives one number per resample, or an array (resamples, m): then low and
    high have m numbers.
    """
    data = np.asarray(rows, dtype=np.float64)
    n = data.shape[1]
    random = np.random.default_rng(_SEED)
    step = max(1, _CELLS // (n * len(data)))
    found: list[Numbers] = []
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(n, size=(min(step, RESAMPLES - start), n))
        found.append(statistic(np.moveaxis(data[:, drawn], 0, 1)))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5), axis=0).tolist()
    return low, high


def discordant(differences: Iterable[tuple[int, float]]) -> tuple[int, int]:
    """Count the prompts whose differences (prompt, first − second) favour the first, the second.

    The answers to one prompt are one piece of evidence, however often it was asked.
    """
    sums: defaultdict[int, float] = defaultdict(float)
    for prompt, difference in differences:
        sums[prompt] += difference
    return sum(each > 0 for each in sums.values()), sum(each < 0 for each in sums.values())


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: are the two discordant counts one coin's tosses?

    Source: McNemar 1947, doi:10.1007/BF02295996, with the binomial distribution.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / (1 << n))

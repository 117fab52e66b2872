"""How sure a figure is: intervals and tests on plain numbers. Pure, and seeded where it draws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Z95: Final = 1.959963984540054  # 97.5 % quantile of the normal distribution
RESAMPLES: Final = 1000
_SEED: Final = 20240229  # the same data has the same interval
_CELLS: Final = 4_000_000  # numbers drawn at once

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share_interval(outcomes: Sequence[float], prompts: Sequence[int]) -> tuple[float, float]:
    """Wilson's interval of the share of ones among 0/1 ``outcomes``, each of one of ``prompts``.

    Repeats of a prompt are worth as many requests as the spread between prompts says, at least one
    for each prompt (Rao and Scott 1992, doi:10.2307/2532311: n over the design effect).
    """
    n = len(outcomes)
    if n == 0:
        return wilson(0, 0)
    values, (of, sizes) = np.asarray(outcomes, dtype=np.float64), _clusters(prompts)
    share, many = float(values.mean()), len(sizes)
    worth = float(many)
    if many > 1 and 0 < share < 1:
        off = np.bincount(of, weights=values) - share * sizes
        variance = many / (many - 1) * float(off @ off) / n**2
        worth = min(max(share * (1 - share) / variance, many), n) if variance else float(n)
    return wilson(share * worth, worth)


def paired_shares(
    first: Sequence[float], second: Sequence[float], prompts: Sequence[int]
) -> tuple[float, float]:
    """95 % interval of the share of ones in ``second`` less that in ``first``, 0/1 paired.

    Bonett and Price 2012, doi:10.3102/1076998611411915, over prompts: equal answers to a few don't
    make it certain that nothing changed. Repeats of a prompt count by their mean.
    """
    of, sizes = _clusters(prompts)
    change = np.bincount(of, weights=np.asarray(second) - np.asarray(first)) / sizes
    n = len(sizes) + 2
    up, down = (float(np.maximum(each, 0).sum() + 1) / n for each in (change, -change))
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / n)
    return max(up - down - half, -1.0), min(up - down + half, 1.0)


def bootstrap(
    rows: Sequence[Sequence[float]],
    statistic: Callable[[Numbers], Numbers],
    prompts: Sequence[int] | None = None,
) -> tuple[Any, Any]:
    """95 % percentile interval (low, high) of a statistic (Efron 1979), rows drawn together.

    ``rows`` are k equally long sequences, paired by index; ``statistic`` takes an array
    (resamples, k, n) and gives one number per resample, or an array (resamples, m): then low and
    high have m numbers. What is of the same one of ``prompts`` is drawn together (cluster
    bootstrap, Davison and Hinkley 1997, section 3.8).
    """
    data = np.asarray(rows, dtype=np.float64)
    random = np.random.default_rng(_SEED)
    drawn = _draws(data.shape[1], len(data), prompts, random)
    found = [statistic(np.moveaxis(data[:, each], 0, 1)) for each in drawn]
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5), axis=0).tolist()
    return low, high


def _draws(
    n: int, k: int, prompts: Sequence[int] | None, random: np.random.Generator
) -> Iterator[Indices]:
    """Draw ``RESAMPLES`` times which of ``n`` are taken; arrays (resamples, taken)."""
    of, sizes = _clusters(range(n) if prompts is None else prompts)
    many, members = len(sizes), np.argsort(of, kind="stable")
    if (sizes == sizes[0]).all():  # as a rule
        groups = members.reshape(many, -1)
        step = max(1, _CELLS // (n * k))
        for start in range(0, RESAMPLES, step):
            drawn = random.integers(many, size=(min(step, RESAMPLES - start), many))
            yield groups[drawn].reshape(len(drawn), n)
        return
    starts = np.cumsum(sizes) - sizes
    for _ in range(RESAMPLES):
        drawn = random.integers(many, size=many)
        ends = np.cumsum(sizes[drawn])
        shifts = np.repeat(starts[drawn] - ends + sizes[drawn], sizes[drawn])
        yield members[shifts + np.arange(ends[-1])][None]


def _clusters(prompts: Sequence[int]) -> tuple[Indices, Indices]:
    """Number the prompts: which each one is, and how often each occurs."""
    _, of, sizes = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    return of.reshape(-1), sizes


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

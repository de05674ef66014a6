"""What several seeds say: how far a mean may be off, whether two can be told apart, and how many seeds that would take.

    mean ± t(n − 1)·s/√n        s the standard deviation with n − 1: a 95 % interval where seeds are normal

Two architectures that ran with the same seeds saw the same data, so their differences are taken seed by seed.

Source: Student 1908, https://doi.org/10.1093/biomet/6.1.1
"""

from collections.abc import Mapping, Sequence
from math import isfinite, prod, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MOST_SEEDS = 1000
"""More seeds than this nobody trains."""


class Interval(NamedTuple):
    """A mean with half its 95 % interval; None where one value gives no interval. n: how many values."""

    mean: float
    half: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def t_interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean."""
    n = len(values)
    if n < 2:
        return Interval(fmean(values), None, n)
    return Interval(fmean(values), float(stats.t.ppf(0.975, n - 1)) * stdev(values) / sqrt(n), n)


def differences(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """A − b for every seed that both have."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def probability_positive(values: Sequence[float]) -> float | None:
    """How probable a mean above zero is, given `values` of one normal law and no prior opinion; None for one value.

    The t distribution at mean/(s/√n), which is also one minus the one-sided p value.
    """
    if len(values) < 2:
        return None
    spread = stdev(values) / sqrt(len(values))
    if spread == 0:
        return 0.5 if fmean(values) == 0 else float(fmean(values) > 0)
    return float(stats.t.cdf(fmean(values) / spread, len(values) - 1))


def seeds_needed(values: Sequence[float], power: float = 0.8) -> int | None:
    """Seeds at which a two-sided 5 % t test finds the mean of `values` (paired differences) not to be zero.

    With probability `power`, if mean and standard deviation are what they look like. None when more than
    `MOST_SEEDS` are needed, or when one value does not tell.
    """
    if len(values) < 2 or fmean(values) == 0:
        return None
    if stdev(values) == 0:
        return 2
    effect = abs(fmean(values)) / stdev(values)
    low, high = 2, MOST_SEEDS
    if _power(effect, high) < power:
        return None
    while low < high:  # more seeds never have less power
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle) >= power else (middle + 1, high)
    return low


def _power(effect: float, n: int) -> float:
    """Power of the two-sided 5 % t test: `effect` is the mean in standard deviations."""
    beyond = float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * sqrt(n)))
    return beyond if isfinite(beyond) else 1.0


class Comparison(NamedTuple):
    """What the seeds that two have in common say of the first being the better one.

    difference: None without a common seed. probability: None with fewer than two. seeds_needed: see there.
    """

    difference: Interval | None
    probability: float | None
    told_apart: bool
    seeds_needed: int | None


def compare(a: Mapping[int, float], b: Mapping[int, float]) -> Comparison:
    """A against B, values by seed, more is better."""
    apart = differences(a, b)
    interval = t_interval(apart) if apart else None
    told_apart = interval is not None and interval.excludes_zero
    return Comparison(interval, probability_positive(apart), told_apart, seeds_needed(apart))


def dominance(exact: Sequence[float], measured: Sequence[Sequence[float]]) -> float | None:
    """How probable it is that A dominates B: that it is nowhere worse and somewhere better.

    exact: A's advantage in each objective that is counted. measured: its advantages by seed in each that is trained
    and scored; the product of their `probability_positive`, as if measured objectives erred independently.
    Where all seeds agree to the digit, a measured objective is as good as a counted one. None when it takes more than
    one seed to tell; what costs more dominates nothing, whatever the seeds.
    """
    agreed = [gains for gains in measured if len(gains) > 1 and len(set(gains)) == 1]
    certain = [*exact, *(gains[0] for gains in agreed)]
    if min(certain, default=0.0) < 0:
        return 0.0
    open_ones = [gains for gains in measured if gains not in agreed]
    if not open_ones:
        return float(max(certain, default=0.0) > 0)
    chances = [chance for gains in open_ones if (chance := probability_positive(gains)) is not None]
    return prod(chances) if len(chances) == len(open_ones) else None


class Agreement(NamedTuple):
    """Kendall's tau between two orders of the same `n` things: 1 the same order, -1 the reverse, 0 no relation.

    low, high: its 95 % interval over seeds, None with one seed. chance: how probable so high a tau is when neither
    order has to do with the other, None where every value is the same.
    """

    tau: float
    low: float | None
    high: float | None
    n: int
    chance: float | None


def agreement(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], draws: int = 500) -> Agreement:
    """How far the order by mean of `before` is that of `after`; both hold a list of values by seed for each thing.

    The interval: each mean is drawn anew from its Student law, and reaches as far to both sides of tau as 95 % of the
    draws are off. Noise only ever takes agreement away, so that the draws alone would leave out a tau above the one
    seen. What no seed can show is how other things would have come out.
    Source: Kendall 1938, https://doi.org/10.1093/biomet/30.1-2.81
    """
    tables = [np.array(table, dtype=float) for table in (before, after)]
    first, second = (table.mean(axis=1) for table in tables)
    tau = float(_tau(first, second))
    low = high = None
    if all(table.shape[1] > 1 for table in tables):
        generator = np.random.default_rng(0)
        off = np.abs(_tau(*(_drawn_means(table, draws, generator) for table in tables)) - tau)
        half = float(np.percentile(off, 95))
        low, high = max(-1.0, tau - half), min(1.0, tau + half)
    return Agreement(tau, low, high, len(first), _chance(first, second))


def _drawn_means(table: NDArray[np.float64], draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """What the means may be [draws, things]: Student's law around each, as in `probability_positive`."""
    things, seeds = table.shape
    error = table.std(axis=1, ddof=1) / sqrt(seeds)
    drawn: NDArray[np.float64] = table.mean(axis=1) + error * generator.standard_t(seeds - 1, size=(draws, things))
    return drawn


def _chance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """How probable so high a tau is: by all orders of up to six things, by 2,000 random ones of more."""
    if min(len(set(first)), len(set(second))) < 2:
        return None
    found = stats.permutation_test(
        (first,),
        lambda order: _tau(order, second),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=2000,
        rng=np.random.default_rng(0),
        vectorized=False,
    )
    return float(found.pvalue)


def _tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau-b over the last axis; 0 where all of one side is the same, which orders nothing."""
    one, other = np.triu_indices(first.shape[-1], 1)
    signs = [np.sign(side[..., one] - side[..., other]) for side in (first, second)]
    ordered = np.sqrt(np.prod([np.abs(sign).sum(axis=-1) for sign in signs], axis=0))
    tau: NDArray[np.float64] = (signs[0] * signs[1]).sum(axis=-1) / np.maximum(ordered, 1.0)
    return np.round(tau, 12)  # roots of ties leave a last digit

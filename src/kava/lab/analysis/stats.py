"""Tests, intervals and effect sizes. A spread is always the sample's (n - 1); what is undefined is None, never 0.

Distributions and standard tests are scipy's, imported late: McNemar's test, which the demo needs, does without.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_SEEDS = 3  # fewer say nothing about the spread of training
MOST_FLIPPED = 20  # seeds whose signs are enumerated: 2**20 sums at most
SPIKE = 3.0  # a gradient norm above so many medians of its run


class McNemarTest(NamedTuple):
    """Numbers of items that only the first or only the second gets right, and McNemar's exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Iterable[bool], second: Iterable[bool]) -> McNemarTest:
    """p = min(1, 2 P(X <= min(b, c))), X binomial(b + c, 1/2): items on which both agree say nothing."""
    pairs = list(zip(first, second, strict=True))
    b = sum(bool(right and not other) for right, other in pairs)
    c = sum(bool(other and not right) for right, other in pairs)
    tail = Fraction(sum(comb(b + c, k) for k in range(min(b, c) + 1)), 2 ** (b + c))
    return McNemarTest(b, c, float(min(Fraction(1), 2 * tail)))


class Interval(NamedTuple):
    low: float
    high: float


def bootstrap(first: ArrayLike, second: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile interval of mean(first - second) over paired items that are resampled with replacement.

    An item may be right or wrong (one run) or a mean over seeds. A resample is drawn as the count of each distinct
    difference, multinomial(n, their shares): the same distribution as drawing items one by one.
    """
    values, counts = np.unique(_floats(first) - _floats(second), return_counts=True)
    n = int(counts.sum())
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values / n
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Interval(float(low), float(high))


def wilson(correct: int, total: int) -> Interval:
    """Wilson's score interval of the accuracy of one run over its items (runs share items, so runs are never pooled)."""
    from scipy.stats import binomtest

    return Interval(*map(float, binomtest(correct, total).proportion_ci(CONFIDENCE, "wilson")))


def cohens_h(first: float, second: float) -> float:
    """2 asin sqrt(p1) - 2 asin sqrt(p2): 0.2 is called small, 0.5 medium, 0.8 large."""
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))


def spread(values: Sequence[float]) -> float | None:
    """The sample's standard deviation (n - 1); None for fewer than two."""
    return float(np.std(_floats(values), ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class PairedComparison:
    """first - second over the seeds that both members have. error, interval and p are None below three seeds."""

    seeds: tuple[int, ...]
    items: int | None  # None: one number a seed, not a set of items
    differences: tuple[float, ...]  # one a seed
    difference: float | None  # their mean
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_flip: float | None = None  # exact: signs of the seeds' differences flipped; no smaller than 2 / 2**seeds

    @property
    def d_z(self) -> float | None:
        """The effect size: mean / sample sd of the seeds' differences."""
        sd = spread(self.differences)
        return self.difference / sd if self.difference is not None and sd else None


def compare_items(first: Mapping[int, ArrayLike], second: Mapping[int, ArrayLike]) -> PairedComparison:
    """Difference of two students' accuracies, paired by seed number and by item, for new seeds and new items at once.

    With d[s, i] in {-1, 0, 1}, S seeds and n items, the squared error of the mean is

        V = max(V_seed + V_item - V_cell, V_seed, V_item)

    V_seed = var(seed means) / S, V_item = var(item means) / n, V_cell = var(what neither explains) / (S n): each of
    the first two contains the third once. V_item adds one item for and one against (Bonett and Price 2012), so
    that a few items that all agree are not taken for certainty. t with min(S, n) - 1 degrees of freedom: conservative
    where the items are the uncertain part. Satterthwaite's would have more power, but with three seeds that differ widely
    support a false claim in 6 % of whole analyses.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    rows = [_floats(first[seed]) - _floats(second[seed]) for seed in seeds]
    if not rows:
        return PairedComparison((), None, (), None)
    d = np.stack(rows)
    count, items = d.shape
    by_seed, by_item, mean = d.mean(1), d.mean(0), float(d.mean())
    comparison = PairedComparison(seeds, items, tuple(by_seed.tolist()), mean)
    if count < FEWEST_SEEDS or items < 2:
        return comparison
    v_seed = float(by_seed.var(ddof=1)) / count
    v_item = ((float(by_item @ by_item) + 2) / (items + 2) - (float(by_item.sum()) / (items + 2)) ** 2) / (items + 2)
    rest = d - by_seed[:, None] - by_item[None, :] + mean
    v_cell = float((rest * rest).sum()) / ((count - 1) * (items - 1)) / (count * items)
    error = math.sqrt(max(v_seed + v_item - v_cell, v_seed, v_item))
    return _tested(comparison, mean, error, min(count, items) - 1)


def compare_values(first: Mapping[int, float], second: Mapping[int, float]) -> PairedComparison:
    """The paired t test of one number per run, paired by seed number."""
    seeds = tuple(sorted(set(first) & set(second)))
    differences = tuple(float(first[seed]) - float(second[seed]) for seed in seeds)
    mean = float(np.mean(differences)) if seeds else None
    comparison = PairedComparison(seeds, None, differences, mean)
    sd = spread(differences)
    if mean is None or sd is None or len(seeds) < FEWEST_SEEDS:
        return comparison
    return _tested(comparison, mean, sd / math.sqrt(len(seeds)), len(seeds) - 1)


def _tested(comparison: PairedComparison, mean: float, error: float, freedom: int) -> PairedComparison:
    """`comparison` with its t interval and p values."""
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(mean) / error)) if error > 0 else float(mean == 0)
    p_flip = sign_flip(comparison.differences)
    return replace(comparison, error=error, low=mean - half, high=mean + half, p=p, p_flip=p_flip)


def sign_flip(differences: Sequence[float]) -> float | None:
    """Exact p of the sum: the share of all 2**n choices of signs whose sum is at least as far from 0; None above n = 20.

    scipy's permutation_test enumerates the same signs in Python: about ten seconds for 20 seeds.
    """
    if not 1 <= len(differences) <= MOST_FLIPPED:
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    rounding = 1e-12 * sum(map(abs, differences))
    return float((np.abs(sums) >= abs(sum(differences)) - rounding).mean())


def brown_forsythe(groups: Sequence[Sequence[float]]) -> float | None:
    """p of equal spreads (Levene's test about the median); None for few values, or where no distance to a median varies."""
    from scipy.stats import levene

    if len(groups) < 2 or min(map(len, groups)) < FEWEST_SEEDS:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        test = levene(*groups, center="median")
    return float(test.pvalue) if math.isfinite(test.statistic) else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p, in their order: the k-th smallest of n times (n - k + 1), never falling, at most 1. None stays."""
    known = {i: p for i, p in enumerate(p_values) if p is not None}
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(known, key=known.__getitem__)):
        highest = adjusted[place] = max(highest, min(1.0, (len(known) - rank) * known[place]))
    return adjusted


class Instability(NamedTuple):
    """How much a training's loss jumps, and how often its gradient spikes; see `instability`."""

    jumps: float
    spikes: float | None


def instability(lines: Sequence[Mapping[str, Any]], term: str = "loss") -> Instability | None:
    """Of the log lines of one run that hold `term`:

    jumps = mean |d - mean(d)|, d the differences of consecutive log(term) over the later half of the logged updates: a
    share of the loss, so that its size does not matter, less its steady fall, so that learning is not counted as
    instability. spikes = share of all logged updates whose grad_norm is above three times the run's median, None where no
    norm was logged. None for fewer than three values in that half, or one that is not above 0.
    """
    logged = [line for line in lines if isinstance(line.get(term), int | float)]
    values = [float(line[term]) for line in logged[len(logged) // 2 :]]
    if len(values) < 3 or not all(0 < value < math.inf for value in values):
        return None
    steps = np.diff(np.log(values))
    norms = [float(line["grad_norm"]) for line in logged if isinstance(line.get("grad_norm"), int | float)]
    spikes = float(np.mean(_floats(norms) > SPIKE * np.median(norms))) if norms else None
    return Instability(float(np.abs(steps - steps.mean()).mean()), spikes)


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)

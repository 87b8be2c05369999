"""Every statistic against a slow loop or a value from a textbook."""

from __future__ import annotations

import math
import random
from itertools import product
from statistics import median, stdev

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kava.lab.analysis.stats import (
    bootstrap,
    brown_forsythe,
    cohens_h,
    compare_items,
    compare_values,
    holm,
    instability,
    mcnemar,
    sign_flip,
    spread,
    wilson,
)

SEEDS = (42, 123, 456)


def runs(seed: int, seeds=SEEDS, items: int = 12, share: float = 0.5) -> dict[int, list[bool]]:
    draw = random.Random(seed)
    return {one: [draw.random() < share for _ in range(items)] for one in seeds}


@pytest.mark.parametrize(("b", "c", "both"), [(0, 0, 5), (5, 0, 3), (0, 7, 0), (12, 30, 100), (200, 230, 50)])
def test_mcnemar_is_the_exact_binomial_test(b, c, both):
    first = [True] * b + [False] * c + [True] * both
    second = [False] * b + [True] * c + [True] * both
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p == pytest.approx(scipy_stats.binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_published_intervals(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_cohens_h_is_cohens_example():
    assert cohens_h(0.65, 0.50) == pytest.approx(0.305, abs=1e-3)  # Cohen (1988), table 6.2.2: 1.875 - 1.571
    assert cohens_h(0.2, 0.7) == -cohens_h(0.7, 0.2)


def test_a_spread_is_the_samples():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(stdev([1.0, 2.0, 4.0]))
    assert spread([1.0]) is None


def test_bootstrap_agrees_with_drawing_items_one_by_one():
    first, second = runs(1, items=80, share=0.7)[42], runs(2, items=80)[42]
    draw = random.Random(5)
    slow = []
    for _ in range(4000):
        total = 0
        for _ in range(80):
            i = draw.randrange(80)
            total += first[i] - second[i]
        slow.append(total / 80)
    slow.sort()
    found = bootstrap(first, second)
    assert found == bootstrap(first, second)  # seeded
    assert found.low == pytest.approx(slow[100], abs=0.02)
    assert found.high == pytest.approx(slow[-101], abs=0.02)


def two_way(first, second) -> tuple[float, float, float]:
    """Mean, error and degrees of freedom of first - second over seeds and items, in loops over both."""
    seeds = sorted(seed for seed in first if seed in second)
    n = len(first[seeds[0]])
    d = {(s, i): int(first[s][i]) - int(second[s][i]) for s in seeds for i in range(n)}
    mean = sum(d.values()) / len(d)
    seed_mean = {s: sum(d[s, i] for i in range(n)) / n for s in seeds}
    item_mean = {i: sum(d[s, i] for s in seeds) / len(seeds) for i in range(n)}
    v_seed = stdev(seed_mean.values()) ** 2 / len(seeds)
    smoothed = [*item_mean.values(), 1, -1]
    centre = sum(smoothed) / (n + 2)
    v_item = sum((one - centre) ** 2 for one in smoothed) / (n + 2) / (n + 2)
    v_cell = 0.0
    for s in seeds:
        for i in range(n):
            v_cell += (d[s, i] - seed_mean[s] - item_mean[i] + mean) ** 2
    v_cell /= (len(seeds) - 1) * (n - 1) * len(seeds) * n
    total = max(v_seed + v_item - v_cell, v_seed, v_item)
    return mean, math.sqrt(total), min(len(seeds), n) - 1


@pytest.mark.parametrize(
    ("items", "seed", "shares"),
    [(12, 0, (0.8, 0.8, 0.8)), (40, 1, (1.0, 0.6, 0.2)), (7, 2, (0.9, 0.1, 0.5)), (2, 3, (0.8, 0.8, 0.8))],
)
def test_the_seed_level_comparison_is_the_loop(items, seed, shares):
    first = {one: runs(seed, (one,), items, share)[one] for one, share in zip(SEEDS, shares, strict=True)}
    second = runs(seed + 50, items=items)
    mean, error, freedom = two_way(first, second)
    found = compare_items(first, second)
    assert (found.difference, found.error) == (pytest.approx(mean), pytest.approx(error))
    half = scipy_stats.t.ppf(0.975, freedom) * error
    assert (found.low, found.high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(abs(mean) / error, freedom))
    assert found.items == items


def test_seeds_are_paired_by_number_not_by_place():
    first, second = runs(3, seeds=(456, 42, 123, 7)), runs(4, seeds=(9, 123, 456, 42))
    found = compare_items(first, second)
    assert found.seeds == (42, 123, 456)
    expected = [sum(first[s]) / 12 - sum(second[s]) / 12 for s in (42, 123, 456)]
    assert found.differences == pytest.approx(expected)
    back = compare_items(second, first)
    assert back.difference == pytest.approx(-found.difference)
    assert back.p == pytest.approx(found.p)


@pytest.mark.parametrize("seeds", [(), (42,), (42, 123)])
def test_fewer_than_three_seeds_have_no_interval(seeds):
    for found in (
        compare_items(runs(1, seeds), runs(2, seeds)),
        compare_values(dict.fromkeys(seeds, 1.0), dict.fromkeys(seeds, 2.0)),
    ):
        assert (found.low, found.high, found.p, found.p_flip) == (None, None, None, None)
        assert (found.difference is None) == (not seeds)


def test_three_items_that_agree_are_no_certainty_and_a_thousand_are():
    def found(items: int):
        return compare_items(dict.fromkeys(SEEDS, [True] * items), dict.fromkeys(SEEDS, [False] * items))

    assert found(3).p > 0.05
    assert found(1000).p < 1e-4
    same = compare_items(dict.fromkeys(SEEDS, [True] * 3), dict.fromkeys(SEEDS, [True] * 3))
    assert same.p == 1
    assert same.high > 0.5


def test_one_number_a_run_is_the_paired_t_test():
    first, second = {1: 0.3, 2: 0.5, 3: 0.1, 4: 0.35}, {4: 0.2, 3: 0.15, 2: 0.2, 1: 0.25, 5: 9.0}
    found = compare_values(first, second)
    expected = scipy_stats.ttest_rel([first[s] for s in (1, 2, 3, 4)], [second[s] for s in (1, 2, 3, 4)])
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.d_z == pytest.approx(found.difference / stdev(found.differences))


@pytest.mark.parametrize("differences", [[0.1, 0.2, 0.3], [0.1, -0.2, 0.05, 0.4, 0.0], [0.0, 0.0, 0.0], [1.0]])
def test_sign_flips_are_counted_one_by_one(differences):
    far, observed = 0, abs(sum(differences))
    signs = list(product((1, -1), repeat=len(differences)))
    for choice in signs:
        far += abs(sum(s * d for s, d in zip(choice, differences, strict=True))) >= observed - 1e-12
    assert sign_flip(differences) == far / len(signs)
    assert sign_flip([0.1] * 21) is None


def test_brown_forsythe_is_the_analysis_of_variance_of_distances_from_the_median():
    groups = [[1.0, 2.0, 4.0, 9.0], [1.0, 1.1, 1.2], [3.0, 8.0, 2.0, 4.0, 4.5]]
    apart = [[abs(value - median(group)) for value in group] for group in groups]
    assert brown_forsythe(groups) == pytest.approx(scipy_stats.f_oneway(*apart).pvalue)
    assert brown_forsythe(groups) == pytest.approx(scipy_stats.levene(*groups, center="median").pvalue)
    assert brown_forsythe([[1.0, 2.0], [1.0, 2.0, 3.0]]) is None
    assert brown_forsythe([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]) is None


def test_holm_is_the_step_down_rule():
    # Holm (1979): compare the smallest p with alpha / n, the next with alpha / (n - 1), stop at the first failure
    p = [0.011, 0.04, 0.005, 0.9, 0.02, 0.02]
    adjusted = holm(p)
    for alpha in np.linspace(0.001, 1.0, 997):
        rejected, left = set(), len(p)
        for i in sorted(range(len(p)), key=lambda i: p[i]):
            if p[i] > alpha / left:
                break
            rejected.add(i)
            left -= 1
        assert rejected == {i for i, one in enumerate(adjusted) if one <= alpha}
    assert holm([]) == []


def logged(losses, norms=None) -> list[dict[str, float]]:
    norms = norms or [1.0] * len(losses)
    lines = [{"step": i, "loss": a, "grad_norm": b} for i, (a, b) in enumerate(zip(losses, norms, strict=True))]
    return [*lines[:2], {"step": 1, "eval_accuracy": 0.5}, *lines[2:], {"step": len(lines), "train_loss": 1.0}]


def test_instability_is_the_mean_jump_of_the_later_half_less_its_drift():
    losses = [5.0, 0.1, 7.0, 0.2, 2.0, 1.0, 2.0, 4.0]
    found = instability(logged(losses, [1.0, 1.0, 1.0, 3.0, 3.1, 1.0, 2.0, 0.5]))
    jumps = [math.log(1 / 2), math.log(2 / 1), math.log(4 / 2)]
    assert found.jumps == pytest.approx(sum(abs(jump - sum(jumps) / 3) for jump in jumps) / 3)
    assert found.spikes == 1 / 8  # one norm of eight above 3 x the median 1.0
    assert instability(logged([100 * loss for loss in losses])).jumps == pytest.approx(found.jumps)
    falling = [loss * 0.7**i for i, loss in enumerate(losses)]
    assert instability(logged(falling)).jumps == pytest.approx(found.jumps)


@pytest.mark.parametrize("losses", [[], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0], [1.0] * 5 + [math.nan]])
def test_instability_is_unknown_rather_than_guessed(losses):
    assert instability(logged(losses)) is None

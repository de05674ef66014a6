"""Statistics: intervals cover what they claim, tests have the power they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from doge_lab.stats import compare, differences, dominance, probability_positive, seeds_needed, t_interval

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_95_percent_interval_covers_95_percent(n):
    draws = np.random.default_rng(n).normal(7.0, 2.0, size=(2000, n))
    hit = [abs(mean - 7.0) <= half for mean, half, _ in (t_interval(list(row)) for row in draws)]
    assert 0.935 < np.mean(hit) < 0.965


def test_of_skewed_seeds_an_interval_covers_less():
    """What docs/experiments.md says of three exponential seeds."""
    draws = np.random.default_rng(0).exponential(1.0, size=(20_000, 3))
    hit = [abs(mean - 1.0) <= half for mean, half, _ in (t_interval(list(row)) for row in draws)]
    assert np.mean(hit) == pytest.approx(0.89, abs=0.01)


def test_one_value_has_no_interval():
    assert t_interval([3.0]) == (3.0, None, 1)
    assert not t_interval([3.0]).excludes_zero
    assert probability_positive([3.0]) is None
    assert seeds_needed([3.0]) is None


@given(VALUES)
def test_the_probability_is_the_t_tests_and_mirrors(values):
    said = probability_positive(values)
    if np.std(values) > 1e-6:
        tested = scipy_stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
        assert said == pytest.approx(1 - tested, abs=1e-9)
    assert said + probability_positive([-value for value in values]) == pytest.approx(1.0)


def test_an_interval_without_zero_and_the_two_sided_test_agree():
    for row in np.random.default_rng(0).normal(1.0, 1.0, size=(200, 4)):
        assert t_interval(list(row)).excludes_zero == (scipy_stats.ttest_1samp(row, 0.0).pvalue < 0.05)


def test_differences_are_paired_by_seed():
    assert differences({1: 5.0, 2: 7.0, 3: 1.0}, {2: 4.0, 1: 5.0, 9: 0.0}) == [0.0, 3.0]


def test_so_many_seeds_have_the_promised_power():
    observed = [0.2, 1.0, 1.8]  # mean 1, standard deviation 0.8
    n = seeds_needed(observed)
    draws = np.random.default_rng(1).normal(1.0, 0.8, size=(4000, n))
    found = scipy_stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert 0.78 < found.mean() < 0.95
    fewer = scipy_stats.ttest_1samp(draws[:, :-1], 0.0, axis=1).pvalue < 0.05
    assert fewer.mean() < 0.82


def test_what_cannot_be_told_apart_says_so():
    assert seeds_needed([1.0, -1.0]) is None
    assert seeds_needed([1e-4, 2.0, -2.0]) is None
    assert seeds_needed([2.0, 2.0]) == 2
    assert probability_positive([0.0, 0.0]) == 0.5


def test_two_are_compared_by_the_seeds_they_share():
    found = compare({1: 5.0, 2: 7.0, 3: 6.1, 4: 99.0}, {1: 3.0, 2: 5.1, 3: 4.0})
    assert found.difference == pytest.approx(t_interval([2.0, 1.9, 2.1]))
    assert found.told_apart
    assert found.probability > 0.99
    assert compare({1: 5.0}, {2: 5.0}) == (None, None, False, None)
    assert not compare({1: 5.0}, {1: 3.0}).told_apart


SEEDS = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=2), st.lists(SEEDS, max_size=2))
def test_of_two_models_at_most_one_dominates(exact, measured):
    ahead = dominance(exact, measured)
    behind = dominance([-gain for gain in exact], [[-gain for gain in gains] for gains in measured])
    assert 0.0 <= ahead <= 1.0
    assert ahead + behind <= 1.0 + 1e-9
    spread = len(measured) == 1 and np.std(measured[0]) > 0
    if spread and not any(exact):
        assert ahead + behind == pytest.approx(1.0)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=4), st.integers(0, 4))
def test_without_noise_dominance_is_certain(gains, counted):
    """The definition itself: nowhere worse and somewhere better."""
    measured = [[gain] * 3 for gain in gains[counted:]]
    assert dominance(gains[:counted], measured) == float(min(gains) >= 0 and max(gains) > 0)


def test_a_price_settles_what_one_seed_cannot():
    assert dominance([1.0], [[3.0]]) is None
    assert dominance([1.0], [[3.0, 3.1, 2.9], []]) is None
    assert dominance([-1.0], [[3.0]]) == 0.0
    assert dominance([1.0, 0.0], []) == 1.0


def test_dominance_is_the_share_of_draws_from_both_posteriors():
    generator = np.random.default_rng(0)
    gains = [[0.3, 1.2, 0.1], [2.0, -0.5, 1.0, 0.7]]
    draws = [
        np.mean(row) + np.std(row, ddof=1) / len(row) ** 0.5 * generator.standard_t(len(row) - 1, size=200_000)
        for row in gains
    ]
    assert dominance([1.0], gains) == pytest.approx(np.mean((draws[0] > 0) & (draws[1] > 0)), abs=0.005)


def test_dominance_is_seldom_claimed_for_an_equal():
    """Far better in one objective and just equal in the other: 95 % is said wrongly in 5 % of searches."""
    generator = np.random.default_rng(2)
    rows = zip(generator.normal(50.0, 1.0, (2000, 3)), generator.normal(0.0, 1.0, (2000, 3)), strict=True)
    claimed = [dominance([0.0], [list(better), list(equal)]) >= 0.95 for better, equal in rows]
    assert np.mean(claimed) == pytest.approx(0.05, abs=0.015)

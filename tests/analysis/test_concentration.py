"""What a sample proves about a mean or an entropy: coverage by enumeration, and optimality of the parts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom, multinomial

from theodolite.analysis.binomial import clopper_pearson_lower, clopper_pearson_upper
from theodolite.analysis.concentration import (
    empirical_bernstein,
    entropy_lower_bound,
    plug_in_entropy,
)

# the mean


def test_bernstein_by_its_formula():
    values, log_term = [0.0, 1.0, 1.0, 0.0], math.log(2.0 / 0.1)
    expected = math.sqrt(2.0 / 3.0 * log_term / 4.0) + 7.0 * log_term / 9.0
    assert empirical_bernstein(values, 1.0, 0.1) == pytest.approx(expected, rel=1e-12)
    # it scales with the unit, and ignores where zero is
    scaled = [-5.0 + 3.0 * v for v in values]
    assert empirical_bernstein(scaled, 3.0, 0.1) == pytest.approx(3.0 * expected, rel=1e-12)


@pytest.mark.parametrize("n", [2, 40, 300])
def test_bernstein_covers_a_coin(n):
    """All outcomes of n coins are enumerated; the sample mean by itself does not cover."""
    delta, k = 0.1, np.arange(n + 1)
    width = np.array([empirical_bernstein(np.arange(n) < j, 1.0, delta) for j in k])
    above, below, bare = [], [], []
    for p in np.linspace(0.005, 0.995, 100):
        weight = binom.pmf(k, n, p)
        above.append(weight[k / n + width >= p].sum())
        below.append(weight[k / n - width <= p].sum())
        bare.append(weight[k / n >= p].sum())
    assert min(above) >= 1.0 - delta
    assert min(below) >= 1.0 - delta
    assert min(bare) < 1.0 - delta


def test_bernstein_covers_a_skewed_loss():
    """A rare large value: where the sample variance says nothing, the term in the width must."""
    generator = np.random.default_rng(0)
    n, delta = 50, 0.05
    values = np.where(generator.random((2000, n)) < 0.02, 1.0, 0.01 * generator.random((2000, n)))
    truth = 0.02 + 0.98 * 0.005
    means = values.mean(1)
    half = np.array([empirical_bernstein(row, 1.0, delta) for row in values])
    variance_term = np.sqrt(2.0 * values.var(1, ddof=1) * math.log(2.0 / delta) / n)
    assert (means + half >= truth).mean() >= 1.0 - delta
    assert (means + variance_term >= truth).mean() < 1.0 - delta


def test_bernstein_gains_from_a_small_variance():
    flat, spread = np.full(1000, 0.3), np.arange(1000) % 2
    assert empirical_bernstein(flat, 1.0, 0.05) < 0.3 * empirical_bernstein(spread, 1.0, 0.05)


@pytest.mark.parametrize(
    ("values", "width", "delta", "words"),
    [
        ([1.0], 1.0, 0.1, "values: expected at least two draws, got 1"),
        ([0.0, 2.0], 1.0, 0.1, "width: expected at least the range of the draws, 2.0, got 1.0"),
        ([0.0, 1.0], 1.0, 0.0, r"delta: expected a number in \(0, 1\), got 0.0"),
    ],
)
def test_bernstein_arguments_are_named(values, width, delta, words):
    with pytest.raises(ValueError, match=words):
        empirical_bernstein(values, width, delta)


# the entropy


def entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def test_plug_in_entropy():
    assert plug_in_entropy([5, 5]) == pytest.approx(math.log(2.0))
    assert plug_in_entropy([3, 0, 0]) == 0.0
    assert plug_in_entropy([1, 2, 1]) == pytest.approx(1.5 * math.log(2.0))
    # it does not notice classes that were not drawn
    assert plug_in_entropy([5, 5, 0, 0]) == plug_in_entropy([5, 5])


def outcomes(n: int, classes: int) -> np.ndarray:
    """All count vectors of n draws."""
    bars = itertools.combinations(range(n + classes - 1), classes - 1)
    return np.array([np.diff([-1, *places, n + classes - 1]) - 1 for places in bars])


@pytest.mark.parametrize(
    ("n", "p"),
    [
        (1, [0.5, 0.5]),
        (12, [0.5, 0.5]),
        (150, [0.5, 0.5]),
        (40, [0.9, 0.1]),
        (60, [0.99, 0.01]),
        (25, [0.6, 0.3, 0.1]),
        (12, [0.7, 0.1, 0.1, 0.1]),
    ],
)
def test_entropy_bound_covers(n, p):
    delta, counts = 0.1, outcomes(n, len(p))
    weight = multinomial.pmf(counts, n, p)
    assert weight.sum() == pytest.approx(1.0)
    truth = entropy(np.array(p))
    bound = np.array([entropy_lower_bound(row, delta) for row in counts])
    assert weight[bound <= truth].sum() >= 1.0 - delta
    assert bool((bound >= 0.0).all())
    assert bool((bound <= [plug_in_entropy(row) for row in counts]).all())


def test_plug_in_entropy_alone_does_not_cover():
    counts, p = outcomes(25, 3), np.array([0.6, 0.3, 0.1])
    weight = multinomial.pmf(counts, 25, p)
    plug_in = np.array([plug_in_entropy(row) for row in counts])
    # on average it is below the truth, yet far too often above it
    assert weight @ plug_in < entropy(p)
    assert weight[plug_in <= entropy(p)].sum() < 0.9


def test_entropy_bound_converges_to_the_truth():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    gaps = [entropy(p) - entropy_lower_bound((p * n).round().astype(int), 0.05) for n in (100, 10**4, 10**6)]
    assert gaps[0] > gaps[1] > gaps[2] > 0.0
    assert gaps[2] < 0.01


def chord_program(counts: list[int], delta: float) -> float:
    """The least sum of chords over the intervals with sum one, as a linear program."""
    n, side = sum(counts), delta / (2 * len(counts))
    low = np.array([clopper_pearson_lower(c, n, side) for c in counts])
    high = np.array([clopper_pearson_upper(c, n, side) for c in counts])

    def term(p: np.ndarray) -> np.ndarray:
        return -p * np.log(np.where(p > 0.0, p, 1.0))

    slope = (term(high) - term(low)) / (high - low)
    program = linprog(
        slope, A_eq=np.ones((1, len(low))), b_eq=[1.0], bounds=list(zip(low, high, strict=True))
    )
    assert program.success
    return float(program.fun + (term(low) - slope * low).sum())


@pytest.mark.parametrize("counts", [[30, 5, 0], [400, 3, 2, 1], [50, 50], [7], [1000, 0, 0, 0, 0, 1]])
def test_intervals_give_the_optimum_of_the_linear_program(counts):
    delta = 0.05
    n = sum(counts)
    differences = plug_in_entropy(counts) - math.log(n) * math.sqrt(2.0 * math.log(2.0 / delta) / n)
    expected = max(0.0, differences, chord_program(counts, delta / 2.0))
    assert entropy_lower_bound(counts, delta) == pytest.approx(expected, abs=1e-9)


def test_no_distribution_in_the_intervals_has_less_entropy():
    """The chords lie below the concave entropy: a search over the box stays above them."""
    counts, delta = [300, 40, 3], 0.05
    bound, n = chord_program(counts, delta / 2.0), sum(counts)
    side = delta / 2.0 / 6.0
    low = np.array([clopper_pearson_lower(c, n, side) for c in counts])
    high = np.array([clopper_pearson_upper(c, n, side) for c in counts])
    generator = np.random.default_rng(0)
    found = []
    for _ in range(5000):
        p = low + (high - low) * generator.integers(0, 3, 3) / 2.0
        i = generator.integers(3)
        p[i] = 1.0 - (p.sum() - p[i])
        if low[i] <= p[i] <= high[i]:
            found.append(entropy(p))
    assert len(found) > 100
    assert bound <= min(found)
    # the box meets the simplex in a corner that the chords share, so little is given away
    assert bound > 0.8 * min(found)


def test_entropy_arguments_are_named():
    with pytest.raises(ValueError, match="counts: expected at least one draw, got none"):
        entropy_lower_bound([0, 0], 0.1)
    with pytest.raises(ValueError, match="delta: expected a number"):
        entropy_lower_bound([1, 2], 1.5)

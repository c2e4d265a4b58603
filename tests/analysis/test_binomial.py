"""Intervals for a probability: known answers, exact coverage by enumeration, and the safe side."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import binom, binomtest

from theodolite.analysis.binomial import (
    bernoulli_kl,
    clopper_pearson_lower,
    clopper_pearson_upper,
    kl_inverse_upper,
)

# Clopper-Pearson


@pytest.mark.parametrize(
    ("errors", "n", "delta", "expected"),
    [
        (20, 400, 0.035, 0.0741098),
        (0, 400, 0.05, 0.00746136),
        (0, 400, 0.05, 1.0 - 0.05 ** (1 / 400)),
        (25, 1000, 0.05, 0.0347425),
        (7, 7, 0.05, 1.0),
    ],
)
def test_upper_known_answers(errors, n, delta, expected):
    assert clopper_pearson_upper(errors, n, delta) == pytest.approx(expected, rel=1e-6)


def test_both_sides_are_those_of_scipy():
    for errors, n in ((0, 5), (3, 10), (13, 400), (40, 41), (9, 9)):
        for delta in (0.2, 0.025, 1e-6):
            interval = binomtest(errors, n).proportion_ci(1.0 - 2.0 * delta, method="exact")
            assert clopper_pearson_lower(errors, n, delta) == pytest.approx(interval.low, rel=1e-6)
            assert clopper_pearson_upper(errors, n, delta) == pytest.approx(interval.high, rel=1e-6)


def test_sides_mirror_each_other():
    for errors, n, delta in ((0, 8, 0.1), (3, 8, 0.01), (8, 8, 0.1)):
        mirrored = 1.0 - clopper_pearson_upper(n - errors, n, delta)
        assert clopper_pearson_lower(errors, n, delta) == pytest.approx(mirrored, abs=1e-12)


def log_tail(k: int, n: int, p: float) -> float:
    """log P(Bin(n, p) <= k), with no underflow."""
    j = np.arange(k + 1)
    terms = gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1) + j * math.log(p) + (n - j) * math.log1p(-p)
    return float(logsumexp(terms))


@pytest.mark.parametrize("delta", [1e-20, 1e-100, 1e-199, 1e-201, 1e-300, 5e-324])
def test_tiny_delta_is_not_lost(delta):
    # with no error the bound is 1 - delta^(1/n)
    expected = -math.expm1(math.log(delta) / 1000)
    assert clopper_pearson_upper(0, 1000, delta) == pytest.approx(expected, rel=1e-12)
    assert clopper_pearson_lower(1000, 1000, delta) == pytest.approx(1.0 - expected, rel=1e-12)
    # the tail at the bound is delta, or less where Chernoff's bound stands in
    for k, n in ((30, 5000), (3, 40), (200, 1000)):
        tails = [
            log_tail(k, n, clopper_pearson_upper(k, n, delta)),
            log_tail(k, n, 1.0 - clopper_pearson_lower(n - k, n, delta)),
        ]
        for tail in tails:
            assert tail <= math.log(delta) * (1 - 1e-9)
            assert tail >= math.log(delta) * (1 + (0.02 if delta < 1e-200 else 1e-9))


@pytest.mark.parametrize("n", [1, 4, 30, 150])
@pytest.mark.parametrize("delta", [0.3, 0.05])
def test_coverage_of_both_sides(n, delta):
    """Enumerated over all outcomes, so exact; the observed rate by itself does not cover."""
    k = np.arange(n + 1)
    upper = np.array([clopper_pearson_upper(int(j), n, delta) for j in k])
    lower = np.array([clopper_pearson_lower(int(j), n, delta) for j in k])
    worst = {"upper": 1.0, "lower": 1.0, "rate": 1.0}
    for p in np.linspace(0.001, 0.999, 200):
        weight = binom.pmf(k, n, p)
        worst["upper"] = min(worst["upper"], weight[upper >= p].sum())
        worst["lower"] = min(worst["lower"], weight[lower <= p].sum())
        worst["rate"] = min(worst["rate"], weight[k / n >= p].sum())
    assert worst["upper"] >= 1.0 - delta - 1e-12
    assert worst["lower"] >= 1.0 - delta - 1e-12
    assert worst["rate"] < 1.0 - delta


def test_bounds_are_no_wider_than_they_must_be():
    # the next smaller bound would fail with more than delta
    for errors, n, delta in ((0, 10, 0.05), (3, 10, 0.2), (13, 400, 0.05)):
        upper = clopper_pearson_upper(errors, n, delta)
        assert binom.cdf(errors, n, upper) == pytest.approx(delta, rel=1e-9)
        assert binom.cdf(errors, n, upper * 0.99) > delta


@pytest.mark.parametrize("function", [clopper_pearson_lower, clopper_pearson_upper])
@pytest.mark.parametrize(
    ("errors", "n", "delta", "words"),
    [
        (0, 0, 0.05, "n: expected at least one draw, got 0"),
        (5, 4, 0.05, "errors: expected a number between 0 and n=4, got 5"),
        (-1, 4, 0.05, "errors: expected a number between 0 and n=4, got -1"),
        (1, 4, 0.0, r"delta: expected a number in \(0, 1\), got 0.0"),
        (1, 4, 1.0, r"delta: expected a number in \(0, 1\), got 1.0"),
        (1, 4, math.nan, r"delta: expected a number in \(0, 1\), got nan"),
    ],
)
def test_arguments_are_named(function, errors, n, delta, words):
    with pytest.raises(ValueError, match=words):
        function(errors, n, delta)


# the Bernoulli divergence and its inverse


@pytest.mark.parametrize(
    ("q", "c", "expected"),
    [
        (0.0, 0.01, 0.00995017),
        (0.05, 0.02, 0.1057499),
        (0.1, 0.05, 0.2200786),
        # 2000 bits on 10,000 points with 200 errors
        (0.02, (2000 * math.log(2.0) + math.log(20.0)) / 1e4, 0.1875018),
        # KL = 10, n = 1000, delta = 0.05 with the factor 2 sqrt(n)
        (0.05, 0.01714276, 0.1007819),
    ],
)
def test_inverse_known_answers(q, c, expected):
    assert kl_inverse_upper(q, c) == pytest.approx(expected, rel=1e-6)


def test_the_complexity_of_the_known_answer():
    c = (10.0 + math.log(2.0 * math.sqrt(1000.0) / 0.05)) / 1000.0
    assert c == pytest.approx(0.01714276, rel=1e-6)
    # the relaxations are looser
    assert 0.05 + math.sqrt(c / 2.0) == pytest.approx(0.1425817, rel=1e-6)
    assert (math.sqrt(0.05 + c / 2.0) + math.sqrt(c / 2.0)) ** 2 == pytest.approx(0.1119551, rel=1e-6)
    assert kl_inverse_upper(0.05, c) < 0.1119551


def test_divergence_by_its_definition_and_at_the_ends():
    assert bernoulli_kl(0.3, 0.6) == pytest.approx(0.3 * math.log(0.5) + 0.7 * math.log(0.7 / 0.4))
    assert bernoulli_kl(0.25, 0.25) == 0.0
    assert bernoulli_kl(0.0, 0.0) == bernoulli_kl(1.0, 1.0) == 0.0
    assert bernoulli_kl(0.1, 0.0) == bernoulli_kl(0.9, 1.0) == math.inf
    assert bernoulli_kl(0.0, 0.3) == pytest.approx(-math.log(0.7))
    assert bernoulli_kl(1.0, 0.3) == pytest.approx(-math.log(0.3))


def test_inverse_agrees_with_a_root_finder():
    for q in (0.0, 1e-9, 0.02, 0.5, 0.9):
        for c in (1e-6, 0.01, 0.3):
            root = brentq(lambda r, q=q, c=c: bernoulli_kl(q, r) - c, q + 1e-15, 1.0 - 1e-15, xtol=1e-15)
            assert kl_inverse_upper(q, c) == pytest.approx(root, rel=1e-9)


def exact_kl(q: float, p: float) -> object:
    """The divergence of two floats to sixty digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        a, b = mpmath.mpf(q), mpmath.mpf(p)
        hit = a * mpmath.log(a / b) if q > 0.0 else mpmath.mpf(0)
        return hit + ((1 - a) * mpmath.log((1 - a) / (1 - b)) if q < 1.0 else 0)


@given(st.floats(0.0, 1.0) | st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.floats(-16.0, 2.0))
def test_inverse_is_rounded_to_the_safe_side(q, exponent):
    c = 10.0**exponent
    r = kl_inverse_upper(q, c)
    assert q <= r <= 1.0
    # never an inner end of the bisection: the divergence there exceeds c, rounding and all
    assert r == 1.0 or exact_kl(q, r) > c
    # and not by much
    if c > 1e-6 and q < r < 1.0 - 1e-9:
        assert bernoulli_kl(q, r) <= c * (1.0 + 1e-6)


def test_inverse_at_the_ends():
    assert kl_inverse_upper(1.0, 0.3) == 1.0
    assert kl_inverse_upper(0.2, math.inf) == 1.0
    assert kl_inverse_upper(0.2, 0.0) == pytest.approx(0.2, abs=1e-7)
    assert kl_inverse_upper(0.0, 1e4) == 1.0
    assert kl_inverse_upper(0.0, 0.0) < 1e-12


@pytest.mark.parametrize("n", [20, 200])
def test_coverage_of_the_chernoff_bound(n):
    """By Chernoff the bound with c = log(1/delta)/n fails with at most delta; with c = 0 it fails."""
    delta, k = 0.05, np.arange(n + 1)
    upper = np.array([kl_inverse_upper(j / n, math.log(1.0 / delta) / n) for j in k])
    plain = np.array([kl_inverse_upper(j / n, 0.0) for j in k])
    exact = np.array([clopper_pearson_upper(int(j), n, delta) for j in k])
    assert bool((upper >= exact * (1 - 1e-12)).all())
    covered = [binom.pmf(k, n, p)[upper >= p].sum() for p in np.linspace(0.01, 0.99, 99)]
    bare = [binom.pmf(k, n, p)[plain >= p].sum() for p in np.linspace(0.01, 0.99, 99)]
    assert min(covered) >= 1.0 - delta
    assert min(bare) < 1.0 - delta


def test_inverse_arguments_are_named():
    with pytest.raises(ValueError, match=r"q: expected a probability, got 1\.5"):
        kl_inverse_upper(1.5, 0.1)
    with pytest.raises(ValueError, match=r"c: expected a number >= 0, got -0\.1"):
        kl_inverse_upper(0.5, -0.1)
    with pytest.raises(ValueError, match="c: expected a number >= 0, got nan"):
        kl_inverse_upper(0.5, math.nan)

"""The one-dimensional search: as good as it claims, in few evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures import loss_cases
from hypothesis import given
from hypothesis import strategies as st

from theodolite.losses.concave import maximize_concave

FUNCTIONS = {
    "parabola": (lambda t: 3.0 * t - t * t, math.inf, 1.5, 2.25),
    "parabola far away": (lambda t: 3e9 * t - t * t, math.inf, 1.5e9, 2.25e18),
    "parabola near zero": (lambda t: 3e-6 * t - t * t, 1.0, 1.5e-6, 2.25e-12),
    "rising": (lambda t: math.sqrt(t), 0.7, 0.7, math.sqrt(0.7)),
    "falling": (lambda t: 1.0 - t * t - t, math.inf, 0.0, 1.0),
    "falling from the start": (lambda t: -math.exp(t), 5.0, 0.0, -1.0),
    "corner": (lambda t: 1.0 - abs(t - 0.3), 2.0, 0.3, 1.0),
    "walled": (lambda t: t if t <= 0.6 else -math.inf, 1.0, 0.6, 0.6),
    "entropy": (lambda t: -t * math.log(t) if t > 0 else 0.0, 1.0, math.exp(-1), math.exp(-1)),
    "logarithm": (lambda t: math.log1p(t) - 0.001 * t, math.inf, 999.0, math.log(1000) - 0.999),
    "steep end": (
        lambda t: 1e6 * t + (math.log(1 - t) if t < 1 else -math.inf),
        1.0,
        1 - 1e-6,
        1e6 - 1 + math.log(1e-6),
    ),
    "constant": (lambda t: 2.0, math.inf, None, 2.0),
    "empty": (lambda t: 1.0 + t, 0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_maximum(name):
    function, top, where, maximum = FUNCTIONS[name]
    seen = []

    def counted(t):
        seen.append(t)
        return function(t)

    t, value = maximize_concave(counted, top)
    assert value == function(t)
    assert value == pytest.approx(maximum, rel=1e-9, abs=1e-300)
    assert where is None or t == pytest.approx(where, rel=1e-3, abs=1e-12)
    assert min(seen) >= 0.0
    assert max(seen) <= top
    assert len(seen) <= 100


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 3))
def test_log_barriers(a, b, c):
    """Maxima of a polynomial of degree 1 and two logarithms, by their quadratic equation."""
    slope, left, width = 10**a, 10**b, c
    _, value = maximize_concave(
        lambda t: -slope * t + math.log(left + t) + math.log1p(-t / width), width * (1 - 1e-9)
    )
    grid = np.linspace(0, width * (1 - 1e-9), 2001)
    best = (-slope * grid + np.log(left + grid) + np.log1p(-grid / width)).max()
    assert value >= best - 1e-10 * max(abs(value), abs(math.log(left)))


@pytest.mark.parametrize("name", ["logistic", "cross-entropy", "poisson", "poisson identity"])
def test_dual_rays_need_few_evaluations_for_full_precision(name):
    loss = loss_cases.make_cases(60, 3, 1.0)[name].loss
    spent = []
    for seed in range(10):
        R = -loss.gradient(0.1 * loss_cases.normal(60, 3, seed=seed))
        for upper in (math.inf, 0.3):
            calls = 0

            def counted(t, R=R):
                nonlocal calls
                calls += 1
                return loss.dual(t * R)

            top = min(upper, loss.t_range(R)[1])
            t, value = maximize_concave(counted, top)
            spent.append(calls)
            near = t * (1.0 + np.linspace(-1e-3, 1e-3, 41))
            best = max(loss.dual(float(s) * R) for s in near if s <= top)
            assert value >= best - 1e-11 * abs(best)
            assert loss.best_t(R, upper=upper) == (t, value)
    assert max(spent) <= 25


@pytest.mark.parametrize("name", loss_cases.NAMES)
def test_smallest_t_is_where_the_dual_value_gets_there(name):
    loss = loss_cases.make_cases(8, 2, 0.5)[name].loss
    R = -loss.gradient(loss.zeros() + 0.2)
    best, maximum = loss.best_t(R)
    wanted = 0.5 * (maximum + max(loss.dual(0.0 * R), maximum - 1.0))
    t = loss.smallest_t(R, wanted)
    assert loss.dual(t * R) >= wanted
    assert loss.dual((t - 2e-6 * best) * R) < wanted
    assert loss.smallest_t(R, maximum + 1e-6) is None


def test_unbounded_search_ends():
    t, value = maximize_concave(lambda t: math.log1p(t), math.inf, limit=30)
    assert value == math.log1p(t)
    assert t > 1e6


def test_endless_rays_of_the_identity_link_are_finite():
    loss = loss_cases.PoissonLoss([5.0], link="identity", offset=0.1)
    R = -loss.gradient(torch.zeros(1, 1))  # 1 - y / 0.1 = -49, so that q grows without a wall
    t, value = loss.best_t(R)
    assert t == pytest.approx(1.0, rel=1e-4)
    assert value == pytest.approx(loss.value(torch.zeros(1, 1)), rel=1e-12)

"""L-BFGS over tensors: minima, bounds, deadlines, and points outside the domain."""

from __future__ import annotations

import math
import time

import pytest
import torch

from theodolite.optim.lbfgs import minimize


def quadratic(point):
    a, b = point
    return float((a - 1).square().sum() + (b + 2).square().sum()), [2 * (a - 1), 2 * (b + 2)]


START = (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))


def test_finds_the_minimum_over_several_tensors():
    (a, b), value = minimize(quadratic, START)
    torch.testing.assert_close(a, torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(b, torch.full((4,), -2.0, dtype=torch.float64))
    assert value == pytest.approx(0.0, abs=1e-12)


def test_nonnegative():
    (a, b), value = minimize(quadratic, START, nonnegative=True)
    torch.testing.assert_close(a, torch.ones(3, 2, dtype=torch.float64))
    assert not b.any()
    assert value == pytest.approx(16.0)


def test_deadline_returns_the_best_so_far():
    (a, _), value = minimize(quadratic, START, deadline=time.monotonic() - 1)
    assert torch.equal(a, START[0])
    assert value == 22.0


def test_progress_sees_points_that_get_better():
    seen = []
    minimize(quadratic, START, progress=lambda p: seen.append(quadratic(p)[0]))
    assert seen
    assert seen == sorted(seen, reverse=True)


def test_points_outside_the_domain_are_left():
    def barrier(point):
        (x,) = point
        if float(x) <= 0:
            return math.inf, [x]
        return float(x - x.log()), [1 - 1 / x]

    (x,), value = minimize(barrier, (torch.tensor([5.0], dtype=torch.float64),))
    assert float(x) == pytest.approx(1.0, rel=1e-6)
    assert value == pytest.approx(1.0)


def test_a_start_outside_the_domain_is_returned():
    (x,), value = minimize(lambda p: (math.inf, [p[0]]), (torch.ones(2, dtype=torch.float64),))
    assert torch.equal(x, torch.ones(2, dtype=torch.float64))
    assert value == math.inf

"""A masked loss with decayed biases of rows and columns: a minimum over those, and its dual."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from theodolite.atoms import MatrixAtom
from theodolite.core.problem import Problem
from theodolite.losses import HuberLoss, LogisticLoss, MaskedLoss, MaskedSquaredLoss, PoissonLoss, SquaredLoss
from theodolite.losses.row_column_biased import RowColumnBiasedLoss
from theodolite.testing import check_loss

NAMES = ["squared", "huber", "logistic", "poisson"]


def masked(name: str, n: int, m: int, seed: int = 0, density: float = 0.6, scale: float = 1.0) -> MaskedLoss:
    g = np.random.default_rng(seed)
    rows, cols = np.nonzero(g.random((n, m)) < density)
    y = g.normal(size=len(rows)) + 2.0 * g.normal(size=n)[rows] + g.normal(size=m)[cols]
    entries = {
        "squared": lambda: SquaredLoss(y[:, None], scale),
        "huber": lambda: HuberLoss(y, 0.7, scale),
        "logistic": lambda: LogisticLoss(np.where(y < 0, -1.0, 1.0), scale),
        "poisson": lambda: PoissonLoss(g.poisson(np.exp(np.clip(y, -2, 2))).astype(float), scale),
    }
    return MaskedLoss(entries[name](), rows, cols, (n, m))


def point(loss, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        loss.prediction_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


LOSSES = pytest.mark.parametrize("name", NAMES)
DECAYS = pytest.mark.parametrize("decay", [1e-3, 1.0, 100.0])


@LOSSES
def test_keeps_every_promise_of_a_loss(name):
    # accuracy 0: as near as rounding lets it, whatever the start, so that two evaluations may be compared
    check_loss(RowColumnBiasedLoss(masked(name, 5, 4, scale=0.5), 0.3, accuracy=0.0), trials=1)


def as_cvxpy(name: str, loss: MaskedLoss, Z, b, c):
    rows, cols = loss.support.rows.numpy(), loss.support.cols.numpy()
    predicted = Z + b[rows] + c[cols]
    y = loss.entries.Y[:, 0].numpy()
    if name == "squared":
        return 0.5 * cp.sum_squares(y - predicted)
    if name == "huber":
        return 0.5 * cp.sum(cp.huber(y - predicted, 0.7))
    if name == "logistic":
        return cp.sum(cp.logistic(-cp.multiply(y, predicted)))
    return cp.sum(cp.exp(predicted) - cp.multiply(y, predicted))


@LOSSES
@DECAYS
def test_value_is_the_least_over_the_biases(name, decay):
    inner = masked(name, 8, 6)
    loss = RowColumnBiasedLoss(inner, decay)
    Z = point(loss)
    b, c = cp.Variable(8), cp.Variable(6)
    objective = as_cvxpy(name, inner, Z.numpy(), b, c)
    least = cp.Problem(cp.Minimize(objective + decay / 2 * (cp.sum_squares(b) + cp.sum_squares(c)))).solve(
        solver=cp.CLARABEL
    )
    assert loss.value(Z) == pytest.approx(least, rel=1e-6, abs=1e-6)
    assert loss.value(Z) <= least + 1e-6 * abs(least)
    assert loss.at(Z, *loss.biases(Z)) == loss.value(Z)


@LOSSES
def test_fit_equals_the_joint_convex_problem(name):
    n, m, lam, decay = 9, 7, 1.5, 0.5
    inner = masked(name, n, m, seed=3)
    solution = Problem(RowColumnBiasedLoss(inner, decay), MatrixAtom((n, m)), lam).solve(tol=1e-8)
    X, b, c = cp.Variable((n, m)), cp.Variable(n), cp.Variable(m)
    Z = X[inner.support.rows.numpy(), inner.support.cols.numpy()]
    objective = as_cvxpy(name, inner, Z, b, c) + lam * cp.normNuc(X)
    objective += decay / 2 * (cp.sum_squares(b) + cp.sum_squares(c))
    least = cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL)
    certificate = solution.certificate
    assert certificate.verdict == "closed"
    assert certificate.objective == pytest.approx(least, rel=1e-6)
    assert certificate.dual_bound <= least + 1e-7 * abs(least)


@LOSSES
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), t=st.floats(0.0, 1.0))
def test_weak_duality_at_any_biases_and_any_dual_point(name, seed, t):
    loss = RowColumnBiasedLoss(masked(name, 6, 5, seed % 7 + 1, 0.7), 0.2)
    g = torch.Generator().manual_seed(seed)
    Z = torch.randn(loss.prediction_shape, generator=g, dtype=torch.float64)
    b, c = (torch.randn(size, generator=g, dtype=torch.float64) for size in loss.shape)
    Q = -t * loss.loss.gradient(torch.randn(loss.prediction_shape, generator=g, dtype=torch.float64))
    assert loss.at(Z, b, c) >= loss.dual(Q) - float((Q * Z).sum()) - 1e-10
    assert loss.value(Z) <= loss.at(Z, b, c) + 1e-10


@LOSSES
def test_the_dual_fails_without_its_new_term(name):
    loss = RowColumnBiasedLoss(masked(name, 8, 6), 0.5)
    Z = point(loss)
    R = -loss.gradient(Z)
    assert loss.loss.dual(R) - float((R * Z).sum()) > loss.value(Z) + 1e-3


@LOSSES
def test_poor_biases_leave_both_ends_valid(name):
    inner = masked(name, 30, 20, density=0.4)
    poor, fine = RowColumnBiasedLoss(inner, 0.1, accuracy=1e-3), RowColumnBiasedLoss(inner, 0.1)
    problem, exact = (Problem(loss, MatrixAtom((30, 20)), 2.0) for loss in (poor, fine))
    least = exact.solve(tol=1e-9).certificate
    loose = problem.solve(tol=1e-2)
    assert loose.certificate.dual_bound <= least.objective
    assert loose.certificate.objective >= least.dual_bound
    zero = MatrixAtom((30, 20)).init(0)
    lam = problem.lambda_max().high
    certificate = Problem(poor, MatrixAtom((30, 20)), 1.01 * lam).certify(zero)
    best = Problem(fine, MatrixAtom((30, 20)), 1.01 * lam).certify(zero)
    assert certificate.gap == 0.0
    assert certificate.dual_bound <= best.objective  # what the minimization left is taken off


def test_costs_a_few_products_when_started_near():
    inner = masked("squared", 300, 200, density=0.1)
    loss = RowColumnBiasedLoss(inner, 1.0)
    Z = point(loss)
    loss.value(Z)
    products = 0
    forward = loss._system.forward

    def counted(x):
        nonlocal products
        products += 1
        return forward(x)

    loss._system.forward = counted
    loss.gradient(Z + 1e-3 * point(loss, 2))
    assert 0 < products <= 20


def test_another_factor_and_another_device():
    loss = RowColumnBiasedLoss(masked("logistic", 8, 6), 0.5)
    Z = point(loss)
    assert loss.rescaled(3.0).value(Z) == pytest.approx(3.0 * loss.value(Z), rel=1e-12)
    assert loss.to("cpu").value(Z) == pytest.approx(loss.value(Z), rel=1e-14)
    assert loss.prediction_shape == Z.shape


def test_a_row_without_entries_gets_no_bias():
    loss = RowColumnBiasedLoss(MaskedSquaredLoss([0, 0, 2], [0, 1, 1], [1.0, 2.0, 3.0], (4, 3)), 0.1)
    b, c = loss.biases(loss.zeros())
    assert b[1] == b[3] == 0.0
    assert c[2] == 0.0
    assert b[0] != 0.0


def test_wrong_arguments():
    inner = masked("squared", 3, 3)
    for decay in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="decay: expected a finite number > 0"):
            RowColumnBiasedLoss(inner, decay)
    with pytest.raises(TypeError, match="loss: expected a MaskedLoss, got SquaredLoss"):
        RowColumnBiasedLoss(SquaredLoss(torch.zeros(2, 1)), 1.0)


def test_a_tiny_decay_still_gives_a_valid_certificate():
    for name in NAMES:
        loss = RowColumnBiasedLoss(masked(name, 12, 8), 1e-14)
        certificate = Problem(loss, MatrixAtom((12, 8)), 1e-2).certify(MatrixAtom((12, 8)).init(1))
        assert certificate.dual_bound <= certificate.objective


@LOSSES
def test_the_smallest_t_on_a_ray(name):
    loss = RowColumnBiasedLoss(masked(name, 8, 6), 0.5)
    R = -loss.gradient(point(loss))
    best, top = loss.best_t(R)
    for share in (0.2, 0.9, 1.0):
        wanted = loss.dual(0.0 * R) + share * (top - loss.dual(0.0 * R))
        t = loss.smallest_t(R, wanted - 1e-9)
        assert 0.0 < t <= best
        assert loss.dual(t * R) >= wanted - 1e-8
        assert loss.dual((t - 1e-3 * best) * R) < wanted
    assert loss.smallest_t(R, top + 1.0) is None

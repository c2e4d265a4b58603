"""Closed forms in the squared nuclear and k-support norms, against search and a convex solver."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from theodolite.analysis.squared_norms import (
    ksupport_dual_norm,
    shrink,
    shrink_ksupport,
    squared_ksupport_norm,
    squared_ksupport_prox,
    squared_nuclear_prox,
)

DIAGONAL = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def third_matrix() -> Tensor:
    """Y of the known answers: drawn after U 6 x 4 and V 5 x 4."""
    generator = np.random.default_rng(0)
    generator.normal(size=(6, 4)), generator.normal(size=(5, 4))
    return torch.from_numpy(generator.normal(size=(6, 5)))


def test_known_answer_of_the_diagonal():
    best = squared_nuclear_prox(DIAGONAL, 0.5)
    assert (best.rank, best.threshold) == (2, pytest.approx(1.25, rel=1e-10))
    torch.testing.assert_close(
        best.matrix, torch.diag(torch.tensor([1.75, 0.75, 0.0]).double()), atol=1e-10, rtol=0
    )
    assert best.value == pytest.approx(7.25, rel=1e-10)


def test_known_answer_of_width_one():
    best = squared_nuclear_prox(DIAGONAL, 0.5, 1)
    torch.testing.assert_close(best.matrix, torch.diag(torch.tensor([2.0, 0.0, 0.0]).double()))
    assert best.value == pytest.approx(8.0, rel=1e-10)


def test_known_answer_of_the_drawn_matrix():
    best = squared_nuclear_prox(third_matrix(), 0.3)
    assert best.rank == 3
    assert best.threshold == pytest.approx(1.5287642563, abs=1e-10)
    assert best.value == pytest.approx(15.84065355104407, rel=1e-10)


def test_known_answer_of_the_ksupport_minimizer():
    best = squared_ksupport_prox(DIAGONAL, 0.5, 2)
    assert best.singular.tolist() == pytest.approx([2.0, 1.25, 0.25], abs=1e-10)
    assert best.value == pytest.approx(5.25, abs=1e-10)
    Q = 2.0 * (DIAGONAL - best.matrix)
    dual = float((Q * DIAGONAL).sum() - 0.25 * Q.square().sum()) - ksupport_dual_norm(Q, 2).value ** 2 / 2.0
    assert dual == pytest.approx(5.25, abs=1e-10)


@pytest.mark.parametrize(
    ("sigma", "k", "value"),
    [
        ((5, 1, 0.5, 0.3, 0.1), 2, 28.61),
        ((5, 1, 0.5, 0.3, 0.1), 3, 26.81),
        ((4, 3, 1, 0.2, 0.1), 2, 34.445),
        ((4, 3, 1, 0.2, 0.1), 3, 26.69),
    ],
)
def test_known_answers_of_the_ksupport_norm(sigma, k, value):
    assert squared_ksupport_norm(np.diag(sigma), k).value == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_the_norm_is_the_dual_of_its_dual(k):
    """<X, Q> <= |X| |Q|*, with equality at the Q that the formula's partition gives."""
    for seed in range(20):
        X = normal(5, 6, seed=seed)
        norm = squared_ksupport_norm(X, k).value ** 0.5
        for other in range(5):
            Q = normal(5, 6, seed=100 + other)
            assert float((X * Q).sum()) <= norm * ksupport_dual_norm(Q, k).value * (1.0 + 1e-12)
        W, s, Zt = torch.linalg.svd(X, full_matrices=False)
        # the gradient of half the squared norm by differences of the singular values attains it
        h = 1e-6
        gradient = [
            (
                squared_ksupport_norm(torch.diag(s + h * e), k).value
                - squared_ksupport_norm(torch.diag(s - h * e), k).value
            )
            / (4.0 * h)
            for e in torch.eye(len(s), dtype=torch.float64)
        ]
        Q = (W * torch.tensor(gradient)) @ Zt
        assert float((X * Q).sum()) == pytest.approx(norm * ksupport_dual_norm(Q, k).value, rel=1e-5)


def test_limits_of_the_ksupport_norm():
    X = normal(4, 6)
    s = torch.linalg.svdvals(X)
    assert squared_ksupport_norm(X, 1).value == pytest.approx(float(s.sum()) ** 2, rel=1e-12)
    for k in (4, 7):
        assert squared_ksupport_norm(X, k).value == pytest.approx(float(s.square().sum()), rel=1e-12)
    values = [squared_ksupport_norm(X, k).value for k in range(1, 6)]
    assert values == sorted(values, reverse=True)
    assert ksupport_dual_norm(X, 1).value == pytest.approx(float(s[0]))
    for ties in (torch.eye(5), torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))):
        for k in (1, 2, 3):
            total = float(torch.trace(ties)) ** 2
            assert float(ties.square().sum()) <= squared_ksupport_norm(ties, k).value <= total
    assert squared_ksupport_norm(torch.eye(5), 2).value == pytest.approx(25.0 / 2.0)
    assert squared_ksupport_norm(torch.zeros(3, 3), 2).value == 0.0


def test_the_rule_keeps_a_prefix():
    """Once a value fails the test all later ones do, so that the largest k and the first failure agree."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        s = torch.from_numpy(np.sort(generator.exponential(size=7))[::-1].copy())
        L = float(generator.exponential())
        k = torch.arange(1, 8)
        kept = s > L * s.cumsum(0) / (1.0 + L * k)
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
        x, threshold = shrink(s, L)
        assert int(kept.sum()) == int((x > 0).sum())
        assert threshold == pytest.approx(
            L * float(x.sum()), rel=1e-12
        )  # the fixed point that optimality asks


@pytest.mark.parametrize("L", [0.0, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_vector_problems_against_random_search(L, k):
    generator = np.random.default_rng(k)
    s = torch.from_numpy(np.sort(generator.exponential(size=6))[::-1].copy())
    x, _ = shrink_ksupport(s, L, k)

    def objective(z: Tensor) -> float:
        return float((s - z).square().sum()) + L * squared_ksupport_norm(torch.diag(z), k).value

    best = objective(x)
    if k == 1:
        assert objective(shrink(s, L)[0]) == pytest.approx(best, rel=1e-12)
    for size in (1e-6, 1e-4, 1e-2, 1.0):
        for _ in range(50):
            z = (x + size * torch.from_numpy(generator.normal(size=6))).clamp_min(0.0)
            assert objective(z) >= best * (1.0 - 1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 40])
def test_closed_form_against_descent_from_many_starts(width):
    """Known at every fixed width, also below the rank that the unrestricted problem chooses."""
    Y, L, rng = normal(6, 7, seed=3), 0.1, np.random.default_rng(0)
    best = squared_nuclear_prox(Y, L, width)

    def objective(flat: Tensor) -> Tensor:
        U, V = flat[: 6 * width].reshape(6, width), flat[6 * width :].reshape(7, width)
        penalty = (U.square().sum(0) * V.square().sum(0)).sum()
        return (Y - U @ V.T).square().sum() + L * width * penalty

    found = [descend(objective, rng.normal(size=13 * width)) for _ in range(4)]
    assert min(found) == pytest.approx(best.value, rel=1e-9)
    assert min(found) >= best.value * (1.0 - 1e-12)


def descend(objective: Callable[[Tensor], Tensor], start: np.ndarray, steps: int = 2000) -> float:
    """Return the value at which L-BFGS ends."""

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(x).requires_grad_()
        value = objective(leaf)
        value.backward()
        return float(value.detach()), leaf.grad.numpy()

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    return float(minimize(both, start, jac=True, method="L-BFGS-B", options=options).fun)


def test_closed_form_against_a_convex_solver():
    cvxpy = pytest.importorskip("cvxpy")
    Y = normal(6, 5, seed=5)
    X = cvxpy.Variable((6, 5))
    cost = cvxpy.sum_squares(Y.numpy() - X) + 0.3 * cvxpy.square(cvxpy.normNuc(X))
    value = cvxpy.Problem(cvxpy.Minimize(cost)).solve(solver="CLARABEL")
    assert squared_nuclear_prox(Y, 0.3).value == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("blocks", [3, 4, 6])
def test_blocks_of_units_reach_the_ksupport_norm(blocks):
    """The least penalty of B blocks of two units, over factors of one matrix, is the squared norm over B."""
    found = least_over_blocks(DIAGONAL, 2, blocks)
    assert blocks * found == pytest.approx(squared_ksupport_norm(DIAGONAL, 2).value, rel=1e-5)


def test_two_blocks_of_two_cannot_share_three_equal_values():
    """Two planes cannot average to two thirds of the identity of 3-space: the norm is a strict lower bound."""
    X = torch.eye(3, dtype=torch.float64)
    norm = squared_ksupport_norm(X, 2).value
    assert norm == pytest.approx(4.5)
    assert 2.0 * least_over_blocks(X, 2, 2) >= 1.05 * norm
    assert 3.0 * least_over_blocks(X, 2, 3) == pytest.approx(norm, rel=1e-5)


def least_over_blocks(X: Tensor, block: int, blocks: int) -> float:
    """Return the least sum of |U_b V_b'|^2 over U V' = X: V is eliminated, a linear least-norm problem.

    With P_b the projector on the columns of U_b, the X_b = P_b Z whose sum is X have the least squares at
    Z = (sum P_b)^-1 X, namely <X, (sum P_b)^-1 X>.
    """
    m, rng = len(X), np.random.default_rng(0)

    def objective(flat: Tensor) -> Tensor:
        Q = torch.linalg.qr(flat.reshape(blocks, m, block)).Q
        return (X * torch.linalg.solve((Q @ Q.mT).sum(0), X)).sum()

    return min(descend(objective, rng.normal(size=m * block * blocks)) for _ in range(4))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ksupport_prox_of_a_matrix_against_its_dual(k):
    for seed, L in itertools.product(range(3), (0.05, 0.4, 3.0)):
        Y = normal(5, 4, seed=seed)
        best = squared_ksupport_prox(Y, L, k)
        Q = 2.0 * (Y - best.matrix)
        dual = float((Q * Y).sum() - 0.25 * Q.square().sum())
        dual -= ksupport_dual_norm(Q, k).value ** 2 / (4.0 * L)
        assert dual == pytest.approx(best.value, rel=1e-10)


def test_degenerate_matrices():
    zero = squared_nuclear_prox(torch.zeros(3, 4), 0.5)
    assert (zero.rank, zero.value, zero.threshold) == (0, 0.0, 0.0)
    assert squared_ksupport_prox(torch.zeros(3, 4), 0.5, 2).rank == 0
    assert squared_nuclear_prox(DIAGONAL, 0.0).value == pytest.approx(0.0, abs=1e-20)
    assert squared_ksupport_prox(DIAGONAL, 0.0, 1).value == pytest.approx(0.0, abs=1e-20)
    assert squared_nuclear_prox(torch.ones(1, 1), 1.0).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_nuclear_prox(DIAGONAL, -1.0), "L: expected a finite number >= 0"),
        (lambda: squared_nuclear_prox(DIAGONAL, 1.0, 0), "rank: expected at least 1"),
        (lambda: squared_ksupport_prox(DIAGONAL, 1.0, 0), "k: expected at least 1"),
        (lambda: squared_ksupport_prox(DIAGONAL, float("inf"), 1), "L: expected a finite number"),
        (lambda: squared_ksupport_norm(DIAGONAL, 0), "k: expected at least 1"),
        (lambda: ksupport_dual_norm(torch.ones(3), 1), "matrix: expected a matrix"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

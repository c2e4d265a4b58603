"""Norms of factors: proximal maps and dual norms against a convex solver, and the differences against a matrix."""

import cvxpy as cp
import pytest
import torch

from theodolite.polar.factor_norm import FactorNorm
from theodolite.polar.total_variation import (
    differences,
    differences_adjoint,
    prox_total_variation,
    squared_norm_bound,
)

NORMS = {
    "l2": FactorNorm(),
    "l2, nonnegative": FactorNorm(nonnegative=True),
    "l1": FactorNorm(l2=0.0, l1=2.0),
    "l2 l1": FactorNorm(l2=0.7, l1=0.4),
    "image": FactorNorm(l1=0.3, tv=0.5, grid=(3, 4)),
    "signal, nonnegative": FactorNorm(l1=0.3, tv=0.5, nonnegative=True),
    "volume without l2": FactorNorm(l2=0.0, l1=0.3, tv=1.0, grid=(2, 3, 2)),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(grid):
    size = torch.Size(grid).numel()
    return differences(torch.eye(size, dtype=torch.float64), grid, 0)


def convex(norm, u):
    D = matrix(norm.grid or (u.size,)).numpy()
    value = norm.l2 * cp.norm(u) + norm.l1 * cp.norm1(u) + norm.tv * cp.norm1(D @ u)
    return value, [u >= 0] * norm.nonnegative


@pytest.mark.parametrize("grid", [(12,), (3, 4), (2, 3, 2), (12, 1), (1, 1, 12)])
def test_differences_are_a_matrix_and_its_transpose(grid):
    D, X = matrix(grid), normal(3, 12)
    Z = normal(3, len(D), seed=1)
    assert set(D.abs().sum(1).tolist()) <= {2.0}
    assert not D.sum(1).any()
    assert torch.allclose(differences(X, grid), X @ D.T)
    assert torch.allclose(differences(X.T, grid, 0), D @ X.T)
    assert torch.allclose(differences_adjoint(Z, grid), Z @ D)
    assert torch.allclose(differences_adjoint(Z.T, grid, 0), D.T @ Z.T)
    assert float(torch.linalg.matrix_norm(D, 2)) ** 2 <= squared_norm_bound(grid)


@pytest.mark.parametrize("name", NORMS)
def test_proximal_map_and_dual_norm_are_those_of_a_convex_solver(name):
    norm, X = NORMS[name], normal(2, 12, seed=3)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    found, _ = norm.prox(X, t, tol=1e-14)
    best, _ = norm.maximizers(X)
    assert torch.allclose(norm(best), torch.ones(2, dtype=torch.float64))
    for i in range(2):
        u, x = cp.Variable(12), X[i].numpy()
        value, signs = convex(norm, u)
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(u - x) + float(t[i]) * value), signs).solve("CLARABEL")
        assert abs(u.value - found[i].numpy()).max() < 1e-4
        dual = cp.Problem(cp.Maximize(x @ u), [value <= 1, *signs]).solve("CLARABEL")
        assert float(best[i] @ X[i]) == pytest.approx(dual, rel=2e-4 if norm.tv else 1e-5)


def test_a_proximal_map_from_the_dual_of_another_is_the_same():
    X, t = normal(4, 30), torch.full((4,), 0.8, dtype=torch.float64)
    cold, dual = prox_total_variation(X, t, (5, 6), tol=1e-14, max_iterations=5000)
    warm, _ = prox_total_variation(X, t, (5, 6), dual=5.0 * dual + 1.0, tol=1e-14, max_iterations=5000)
    assert torch.allclose(cold, warm, atol=1e-6)
    flat, _ = prox_total_variation(X, 1e3 * t, (5, 6), tol=1e-14, max_iterations=5000)
    assert torch.allclose(flat, X.mean(1, keepdim=True).expand_as(X), atol=1e-5)


def test_nonpositive_gradients_of_nonnegative_factors_give_their_largest_entry():
    best, _ = FactorNorm(l1=1.0, nonnegative=True).maximizers(torch.tensor([[-3.0, -1.0, -2.0]]).double())
    assert best.tolist() == [[0.0, 0.5, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": 0.0, "tv": 1.0}, "l2, l1: expected a positive weight"),
        ({"l1": -1.0}, "l1: expected a finite number"),
        ({"tv": float("nan")}, "tv: expected a finite number"),
        ({"grid": (3, 0)}, "grid: expected a tuple"),
        ({"grid": 3}, "grid: expected a tuple"),
    ],
)
def test_other_norms_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FactorNorm(**options)

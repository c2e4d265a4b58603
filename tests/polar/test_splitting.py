"""Splittings: any of them is an upper end, the best one that of a convex solver, and known polars come out."""

import math

import cvxpy as cp
import pytest
import torch

from theodolite.polar.factor_norm import FactorNorm
from theodolite.polar.splitting import Splitting, best_split, evaluate, lifted_split
from theodolite.polar.total_variation import differences

PAIRS = {
    "l1, l2": (FactorNorm(l1=0.3), FactorNorm()),
    "l1, l1": (FactorNorm(l1=0.3), FactorNorm(l2=0.5, l1=0.6)),
    "image, l2": (FactorNorm(l1=0.1, tv=0.3, grid=(2, 3)), FactorNorm()),
    "image, signal": (FactorNorm(l2=0.0, l1=1.0, tv=0.3, grid=(2, 3)), FactorNorm(tv=0.2)),
    "signs": (FactorNorm(nonnegative=True), FactorNorm(nonnegative=True)),
    "image and signs": (
        FactorNorm(l1=0.2, tv=0.3, grid=(2, 3), nonnegative=True),
        FactorNorm(l1=0.2, nonnegative=True),
    ),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attained(Q, left, right, seed=0):
    """The largest <Q, u v^T> over norms 1 that alternating ascent from 20 random factors finds."""
    V = right.effective(normal(20, Q.shape[1], seed=seed))
    for _ in range(8):
        U, _ = left.maximizers((Q @ V.T).T, iterations=4, tol=1e-5)
        V, _ = right.maximizers(U @ Q, iterations=4, tol=1e-5)
    return float(((U @ Q) * V).sum(1).max())


def operator(term, size):
    eye = torch.eye(size, dtype=torch.float64)
    return (eye if term.grid is None else differences(eye, term.grid, 0)).numpy()


def oracle(Q, left, right):
    """The least upper end of all splittings, by a convex solver."""
    t, total, limits = cp.Variable(), 0, []
    for a in left.terms(Q.shape[0]):
        for b in right.terms(Q.shape[1]):
            A, B, c = operator(a, Q.shape[0]), operator(b, Q.shape[1]), t * a.weight * b.weight
            X = cp.Variable((len(A), len(B)))
            total = total + A.T @ X @ B
            if (a.order, b.order) == ("l2", "l2"):
                limits.append(cp.sigma_max(X) <= c)
            elif (a.order, b.order) == ("l1", "l1"):
                limits.append(cp.abs(X) <= c)
            else:
                limits.append(cp.norm(X, 2, axis=1 if a.order == "l1" else 0) <= c)
    slack = cp.Variable(Q.shape, nonneg=True) if left.nonnegative and right.nonnegative else 0
    return cp.Problem(cp.Minimize(t), [total == Q.numpy() + slack, *limits]).solve("CLARABEL")


@pytest.mark.parametrize("name", PAIRS)
def test_the_best_splitting_is_that_of_a_convex_solver(name):
    (left, right), Q = PAIRS[name], normal(6, 5, seed=4)
    truth, lower = oracle(Q, left, right), attained(Q, left, right)
    found = best_split(Q, left, right, lower=lower, tol=2e-3, max_iterations=1500)
    assert lower <= truth * (1 + 1e-6)
    assert truth * (1 - 1e-6) <= found.upper <= truth * (1 + 6e-3)
    assert found.relaxed <= truth * (1 + 1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_no_splitting_lies_below_what_ascent_attains(name):
    left, right = PAIRS[name]
    signs = left.nonnegative and right.nonnegative
    for seed in range(30 if left.tv == 0.0 else 8):
        Q = normal(6, 5, seed=seed) * torch.exp(2.0 * normal(6, 1, seed=seed + 100))
        lower = attained(Q, left, right, seed)
        parts = [normal(*X.shape, seed=seed + i) for i, X in enumerate(Splitting(left, right, (6, 5)).blocks)]
        size = float(Q.abs().mean()) * 10.0 ** (seed % 5 - 3)
        blocks, slack = [size * X for X in parts[: len(parts) - signs]], size * parts[-1] if signs else None
        assert evaluate(Q, left, right, blocks, slack) >= lower
        found = best_split(Q, left, right, lower=0.5 * lower, max_iterations=seed * 5)
        assert found.upper >= lower
        if right.plain:
            assert lifted_split(Q, left, right, lower=0.0, max_iterations=seed * 5).upper >= lower


def test_euclidean_norms_give_the_largest_singular_value():
    Q = normal(7, 4)
    sigma = float(torch.linalg.svdvals(Q)[0])
    found = best_split(Q, FactorNorm(l2=2.0), FactorNorm(l2=3.0), lower=0.0)
    assert found.iterations == 0
    assert sigma <= 6.0 * found.upper <= sigma * (1 + 1e-8)
    assert lifted_split(Q, FactorNorm(l2=2.0), FactorNorm(l2=3.0), lower=0.0).upper * 6.0 <= sigma * (
        1 + 1e-7
    )


def test_sums_of_absolute_values_give_the_largest_entry_and_the_longest_row():
    Q, one, two = normal(7, 4), FactorNorm(l2=0.0, l1=1.0), FactorNorm()
    assert best_split(Q, one, one, lower=0.0).upper == pytest.approx(float(Q.abs().max()), rel=1e-12)
    assert best_split(Q, one, two, lower=0.0).upper == pytest.approx(float(Q.norm(dim=1).max()), rel=1e-12)
    assert best_split(Q, two, one, lower=0.0).upper == pytest.approx(float(Q.norm(dim=0).max()), rel=1e-12)


def test_nonnegative_factors():
    signs = FactorNorm(nonnegative=True)
    Q = normal(6, 5).abs()
    sigma = float(torch.linalg.svdvals(Q)[0])
    assert best_split(Q, signs, signs, lower=0.9 * sigma).upper == pytest.approx(sigma, rel=1e-3)
    assert best_split(-Q, signs, signs, lower=0.0).upper <= 1e-12
    # one nonnegative factor: max ||Q^T u|| over u >= 0, here by enumeration of the supports of u
    Q, best = normal(6, 2, seed=2) @ normal(2, 5, seed=3), 0.0
    for code in range(1, 2**6):
        rows = [i for i in range(6) if code >> i & 1]
        values, vectors = torch.linalg.eigh(Q[rows] @ Q[rows].T)
        for value, vector in zip(values, vectors.T, strict=True):
            if bool((vector >= -1e-12).all() | (vector <= 1e-12).all()):
                best = max(best, math.sqrt(max(float(value), 0.0)))
    found = lifted_split(Q, signs, FactorNorm(), lower=0.9 * best)
    assert best <= found.upper <= 1.002 * best
    assert float(torch.linalg.svdvals(Q)[0]) > 1.01 * best


def test_an_error_of_the_matrix_is_added():
    Q, one = normal(4, 3), FactorNorm(l1=0.5)
    plain, wrong = (best_split(Q, one, one, lower=0.0, error=e, max_iterations=20).upper for e in (0.0, 1.0))
    assert wrong >= plain + 0.9


def test_slack_and_lifting_are_refused_where_they_prove_nothing():
    one = FactorNorm(nonnegative=True)
    with pytest.raises(ValueError, match="slack: expected None"):
        evaluate(normal(3, 2), one, FactorNorm(), [], torch.ones(3, 2).double())
    with pytest.raises(ValueError, match="right: expected a Euclidean norm"):
        lifted_split(normal(3, 2), one, FactorNorm(l1=1.0), lower=0.0)

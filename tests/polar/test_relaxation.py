"""Upper bounds for any number of inputs: known answers, validity against ascent, rounding."""

from __future__ import annotations

import math

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from theodolite.polar import relaxation
from theodolite.polar.ascent import relu_ascent
from theodolite.polar.harmonic import gegenbauer, harmonic_coefficients, harmonic_moments, kernel_error
from theodolite.polar.relaxation import harmonic_bound, relaxation_bound, shor_bound
from theodolite.reference.arrangements import harmonic_kernel

X4 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
Q4 = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)


@pytest.mark.parametrize(("degree", "answer"), [(6, 2.4424), (20, 2.4404)])
def test_known_answers_of_the_harmonic_bound(degree: int, answer: float) -> None:
    plain = harmonic_bound(X4, Q4, degree, envelope=False)
    assert plain.upper == pytest.approx(answer, abs=1e-3)
    better = harmonic_bound(X4, Q4, degree)
    assert 5.0**0.5 <= better.upper <= plain.upper * (1 + 1e-6)


def test_known_answer_of_the_shor_bound() -> None:
    assert shor_bound(X4, Q4).upper == pytest.approx(8.0**0.5, rel=1e-4)


@pytest.mark.parametrize(("n", "d", "K"), [(12, 3, 2), (15, 4, 1)])
def test_shor_bound_reaches_the_semidefinite_optimum(n: int, d: int, K: int) -> None:
    """Its dual: max of sum_i sqrt(Q_i' W11 Q_i  x_i' W22 x_i) + <Q'X, W12> over density matrices W."""
    generator = torch.Generator().manual_seed(n)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Q = torch.randn(n, K, generator=generator, dtype=torch.float64)
    W = cp.Variable((K + d, K + d), PSD=True)
    x, q = X.numpy(), Q.numpy()
    terms = [cp.geo_mean(cp.vstack([q[i] @ W[:K, :K] @ q[i], x[i] @ W[K:, K:] @ x[i]])) for i in range(n)]
    problem = cp.Problem(cp.Maximize(sum(terms) + cp.trace(x.T @ q @ W[:K, K:])), [cp.trace(W) == 1])
    problem.solve(solver=cp.CLARABEL)
    bound = shor_bound(X, Q).upper
    assert problem.value <= bound * (1 + 1e-7)
    assert bound <= problem.value * (1 + 1e-3)


def case(seed: int) -> tuple[Tensor, Tensor]:
    """Return a small problem, one of: normal, heavy-tailed, sparse, repeated rows, rank-deficient, positive."""
    generator = torch.Generator().manual_seed(seed)
    n, d, K = (int(torch.randint(1, k, (1,), generator=generator)) for k in (40, 9, 5))
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Q = torch.randn(n, K, generator=generator, dtype=torch.float64)
    kind = seed % 6
    if kind == 1:
        X = X / torch.rand(n, 1, generator=generator, dtype=torch.float64) ** 2
        Q = Q / torch.rand(n, 1, generator=generator, dtype=torch.float64)
    elif kind == 2:
        X = X * (torch.rand(n, d, generator=generator) < 0.3)
        Q = Q * (torch.rand(n, K, generator=generator) < 0.5)
    elif kind == 3:
        X = X.round()[torch.randint(n, (n,), generator=generator)]
        X = X * torch.randint(1, 4, (n, 1), generator=generator)
    elif kind == 4:
        X = X[:, :1] @ X[:1] + (X[:, 1:2] @ X[1:2] if n > 1 and d > 1 else 0.0)
    elif kind == 5:
        X = X.abs()
        Q = Q * torch.logspace(-6, 3, n, dtype=torch.float64)[:, None]
    return X, Q


def test_dominate_ascent_in_500_random_cases() -> None:
    tight = 0
    for seed in range(500):
        X, Q = case(seed)
        best = float(relu_ascent(X, Q, n_starts=24, seed=seed, max_steps=25)[1].max())
        shor = shor_bound(X, Q).upper
        harmonic = harmonic_bound(X, Q, degree=1 + seed % 9, envelope=seed % 2 == 0).upper
        assert best <= shor * (1 + 1e-15), seed
        assert best <= harmonic * (1 + 1e-15), seed
        tight += min(shor, harmonic) < 1.5 * best
    assert tight > 100  # the bounds are not idle


def test_least_of_all_and_its_note() -> None:
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    Q = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    value = relaxation_bound(X, Q, degree=8)
    assert value.kind == "bound"
    assert value.upper <= min(shor_bound(X, Q).upper, harmonic_bound(X, Q, 8).upper) * (1 + 1e-9)
    assert "harmonic bound of degree 8" in value.note
    crude = relaxation_bound(X, Q, budget=0.0)
    assert crude.upper == pytest.approx(float((X.norm(dim=1) * Q.norm(dim=1)).sum()), rel=1e-12)
    assert "sum of |Q_i| |x_i|" in crude.note
    hurried = relaxation_bound(X, Q, budget=0.05)
    assert 0.99 * value.upper <= hurried.upper <= crude.upper
    zero = relaxation_bound(X, torch.zeros_like(Q))
    assert zero.upper == 0.0
    assert relaxation_bound(X[:, :0], Q).upper == 0.0
    one = torch.tensor([[2.0]], dtype=torch.float64)
    assert relaxation_bound(one, 3.0 * one).upper == pytest.approx(12.0, rel=1e-9)
    with pytest.raises(ValueError, match="Q: expected 60 rows"):
        relaxation_bound(X, Q[1:])
    with pytest.raises(ValueError, match="degree: expected at least 0"):
        harmonic_bound(X, Q, -1)
    with pytest.raises(ValueError, match="X: expected a finite float64 matrix"):
        shor_bound(X.float(), Q)


def test_bounds_scale_and_do_not_depend_on_splitting_rows() -> None:
    X, Q = case(0)
    for bound in (shor_bound, lambda A, B: harmonic_bound(A, B, 6)):
        whole = bound(X, Q).upper
        assert bound(1e6 * X, 1e-3 * Q).upper == pytest.approx(1e3 * whole, rel=1e-6)
        split = bound(torch.cat([X, 0.5 * X]), torch.cat([0.4 * Q, 1.2 * Q])).upper
        assert split == pytest.approx(whole, rel=1e-6)
        cancelled = bound(torch.cat([X, 3.0 * X]), torch.cat([3.0 * Q, -Q])).upper
        assert cancelled <= 1e-12 * whole


@pytest.mark.parametrize("d", [2, 3, 7, 64])
def test_gegenbauer_polynomials_within_their_proved_error(d: int) -> None:
    directions = torch.randn(40, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=1)
    values = gegenbauer((directions @ directions.T).clamp(-1, 1), d, 30)
    for degree in (0, 1, 2, 5, 12, 30):
        reference = harmonic_kernel(directions, degree, d)
        allowed = kernel_error(d, degree) + 1e-11  # the reference's own error
        assert float((values[degree] - reference).abs().max()) <= allowed


def test_features_and_tiles_agree() -> None:
    """Degrees up to 2 by explicit features, degree 3 by kernels in tiles; more rows than one tile."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1100, 5, generator=generator, dtype=torch.float64)
    Q = torch.randn(1100, 3, generator=generator, dtype=torch.float64)
    features, tiles = harmonic_moments(X, Q, 2), harmonic_moments(X, Q, 3)
    for a, b in zip(features[:2], tiles[:2], strict=True):
        assert a == pytest.approx(b[:3], rel=1e-9)
    assert len(tiles[0]) == 4
    unit = torch.nn.functional.normalize(X, dim=1)
    weights = Q * X.norm(dim=1, keepdim=True)
    for degree in range(4):
        M = weights.T @ harmonic_kernel(unit, degree, 5) @ weights
        truth = math.sqrt(float(torch.linalg.eigvalsh(M)[-1]))
        assert truth <= tiles[0][degree] <= truth * (1 + 1e-6)


def test_a_time_limit_lowers_the_degree() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3000, 4, generator=generator, dtype=torch.float64)
    Q = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    value = harmonic_bound(X, Q, budget=1e-3)
    assert "degree 2" in value.note or "degree 1" in value.note
    assert float(relu_ascent(X, Q, n_starts=8, max_steps=10)[1].max()) <= value.upper


def test_coefficients_are_proved_between_grid_points() -> None:
    """With a huge S and no cost of coefficients the value is S times a uniform error of degree 8."""
    for d in (2, 3, 10):
        error = harmonic_coefficients([0.0] * 9, [1.0] * 9, 1.0, d, envelope=False)
        # best uniform approximation of |t| / 2 in degree 8: Bernstein's 0.2802 / n / 2 is 0.0175
        assert 0.0170 < error < 0.0180


def test_rows_that_cancel_leave_nothing_but_rounding() -> None:
    X = torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]], dtype=torch.float64)
    Q = torch.tensor([[2.0], [-1.0], [0.0]], dtype=torch.float64)
    for bound in (relaxation_bound, shor_bound, harmonic_bound):
        assert 0.0 <= bound(X, Q).high < 1e-12


def test_large_data_within_a_budget(monkeypatch):
    """Every shortcut that little time calls for leaves a bound; more time never loosens it much."""
    monkeypatch.setattr(relaxation, "_MANY", 200)
    monkeypatch.setattr(relaxation, "_SAMPLE", 100)
    monkeypatch.setattr(relaxation, "_CHEAP", 0)
    g = torch.Generator().manual_seed(0)
    X = torch.randn(600, 6, dtype=torch.float64, generator=g)
    Q = torch.randn(600, 3, dtype=torch.float64, generator=g) / X.norm(dim=1, keepdim=True)
    attained = float(relu_ascent(X, Q, n_starts=8, max_steps=30)[1].max())
    whole = relaxation_bound(X, Q).upper
    seen = {}
    for seconds in (0.0, 0.01, 1.0, 30.0):
        monkeypatch.setattr(relaxation, "_seconds_of_gram", lambda *parts: 0.1)
        found = relaxation_bound(X, Q, budget=seconds)
        assert attained <= found.upper
        seen[seconds] = found
    assert seen[0.0].note.startswith("upper end: sum of")
    assert "harmonic bound of degree 1" in seen[0.01].note
    assert seen[0.01].upper < seen[0.0].upper
    assert seen[30.0].upper <= min(1.1 * whole, seen[1.0].upper)
    assert seen[1.0].upper < seen[0.0].upper
    assert shor_bound(X, Q, budget=0.01).note.startswith("upper end: sum of")
    assert attained <= shor_bound(X, Q, budget=1.0).upper <= seen[0.0].upper


def test_rows_of_one_direction_are_found_among_many():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(300, 5, dtype=torch.float64, generator=g)
    order = torch.randperm(900, generator=g)
    many = torch.cat([X, 2.0 * X, -X])[order]
    groups = relaxation._same_direction(many, many.norm(dim=1))
    assert int(groups.max()) + 1 == len(groups.unique()) == 600
    which = torch.empty_like(groups)
    which[order] = groups
    assert torch.equal(which[:300], which[300:600])
    assert not set(which[:300].tolist()) & set(which[600:].tolist())

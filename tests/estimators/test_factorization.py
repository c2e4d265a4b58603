"""Low-rank and robust factorizations: closed forms, joint problems, new rows."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from theodolite.estimators import LowRankFactorization, RobustPCA
from theodolite.estimators import factorization as module

NAN = np.nan


def corrupted(
    n: int = 60, d: int = 40, rank: int = 2, share: float = 0.05, noise: float = 0.1, seed: int = 0
):
    """Return a matrix with its low-rank and sparse parts."""
    g = np.random.default_rng(seed)
    L = g.normal(size=(n, rank)) @ g.normal(size=(rank, d))
    S = np.where(g.random((n, d)) < share, 10.0 * g.choice([-1.0, 1.0], size=(n, d)), 0.0)
    return L + S + noise * g.normal(size=(n, d)), L, S


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (1, 7), (7, 1)])
@pytest.mark.parametrize("center", [False, True])
def test_low_rank_is_singular_value_thresholding(shape, center):
    X = 2.0 + np.random.default_rng(0).normal(size=shape)
    model = LowRankFactorization(alpha=4.0, tol=1e-9, center=center)
    factors = model.fit_transform(X)
    mean = X.mean(0) if center else np.zeros(shape[1])
    U, s, Vt = np.linalg.svd(X - mean, full_matrices=False)
    kept = np.maximum(s - 4.0, 0.0)
    optimum = 0.5 * (np.minimum(s, 4.0) ** 2).sum() + 4.0 * kept.sum()
    assert model.objective_ == pytest.approx(optimum, rel=1e-12)
    assert model.dual_bound_ <= optimum * (1 + 1e-14)
    assert len(model.history_) == 1  # the closed form is certified at once
    np.testing.assert_allclose(model.inverse_transform(factors), (U * kept) @ Vt + mean, atol=1e-10)
    np.testing.assert_allclose(factors, model.row_factors_, atol=1e-10)
    assert model.components_.shape == (model.rank_, shape[1])
    assert len(model.get_feature_names_out()) == model.rank_


def test_without_the_closed_form_the_solver_finds_it(monkeypatch):
    X = np.random.default_rng(0).normal(size=(40, 30))
    closed = LowRankFactorization(alpha=4.0, tol=1e-7).fit(X)
    monkeypatch.setattr(module, "_SVD", 1)
    model = LowRankFactorization(alpha=4.0, tol=1e-7).fit(X)
    assert model.objective_ == pytest.approx(closed.objective_, rel=1e-7)
    assert model.rank_ == closed.rank_


def test_a_restricted_rank_is_certified_against_any():
    X = np.random.default_rng(0).normal(size=(40, 30))
    free, model = LowRankFactorization(alpha=2.0).fit(X), LowRankFactorization(alpha=2.0, max_rank=3).fit(X)
    s = np.linalg.svd(X, compute_uv=False)
    best = 0.5 * ((s[:3] - 2.0) * 2.0 * 2.0 + 4.0).sum() + 0.5 * (s[3:] ** 2).sum()
    assert model.objective_ == pytest.approx(best, rel=1e-9)  # the leading triplets, thresholded
    assert model.gap_ == pytest.approx((best - free.objective_) / best, rel=1e-6)


def test_missing_entries_are_for_completion():
    with pytest.raises(ValueError, match="contains NaN"):
        LowRankFactorization().fit([[1.0, NAN], [2.0, 3.0]])


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_robust_is_the_joint_problem(missing):
    X = corrupted(12, 9)[0]
    X[np.random.default_rng(1).random(X.shape) < missing] = NAN
    seen = ~np.isnan(X)
    model = RobustPCA(alpha=2.0, mu=0.5, tol=1e-8).fit(X)
    L, S = cp.Variable(X.shape), cp.Variable(X.shape)
    mask, target = seen.astype(float), np.nan_to_num(X)
    rest = cp.multiply(mask, target - L - S)
    joint = 0.5 * cp.sum_squares(rest) + 2.0 * cp.normNuc(L) + 0.5 * cp.sum(cp.abs(S))
    least = cp.Problem(cp.Minimize(joint)).solve(solver=cp.CLARABEL)
    assert model.objective_ == pytest.approx(least, rel=1e-6)
    assert model.dual_bound_ <= least * (1 + 1e-7)
    L, S = model.low_rank_, model.sparse_
    stated = 0.5 * ((X - L - S)[seen] ** 2).sum() + 2.0 * np.linalg.svd(L, compute_uv=False).sum()
    assert model.objective_ == pytest.approx(stated + 0.5 * np.abs(S).sum(), rel=1e-12)
    assert (S[~seen] == 0.0).all()
    assert np.abs((X - L - S)[seen]).max() <= 0.5 + 1e-12


def test_robust_separates_what_was_planted():
    X, L, S = corrupted(100, 80)
    model = RobustPCA().fit(X)
    assert model.gap_ <= 1e-4
    assert model.noise_ == pytest.approx(0.1, rel=0.35)
    assert model.rank_ == 2
    assert ((model.sparse_ != 0.0) == (S != 0.0)).mean() > 0.95  # mu is about 1.9 noise
    assert (np.sign(model.sparse_) == np.sign(S))[S != 0.0].all()
    robust = np.linalg.norm(model.low_rank_ - L)
    plain = LowRankFactorization(alpha=model.alpha_).fit(X)
    assert robust < 0.25 * np.linalg.norm(plain.row_factors_ @ plain.components_ - L)


def test_robust_with_missing_entries_completes_them():
    X, L, _ = corrupted(100, 80)
    missing = np.random.default_rng(3).random(X.shape) < 0.3
    X[missing] = NAN
    model = RobustPCA().fit(X)
    assert np.linalg.norm((model.low_rank_ - L)[missing]) < 0.25 * np.linalg.norm(L[missing])


def test_defaults_of_the_two_weights():
    X = corrupted(30, 20)[0]
    X[0, :10] = NAN
    share = 1 - 10 / 600
    ratio = np.sqrt(share * 30)
    model = RobustPCA(alpha=3.0).fit(X)
    assert (model.alpha_, model.mu_) == (3.0, pytest.approx(3.0 / ratio))
    model = RobustPCA(mu=0.4).fit(X)
    assert (model.alpha_, model.mu_) == (pytest.approx(0.4 * ratio), 0.4)
    assert np.isnan(model.noise_)
    model = RobustPCA(noise=0.2).fit(X)
    assert model.noise_ == 0.2
    assert model.alpha_ == pytest.approx(0.2 * np.sqrt(share) * (np.sqrt(30) + np.sqrt(20)))
    assert model.mu_ == pytest.approx(model.alpha_ / ratio)


def test_robust_rows_solve_the_equation_of_new_rows():
    X = corrupted()[0]
    X[4] = NAN
    model = RobustPCA(alpha=2.0, mu=0.4, tol=1e-10)
    factors = model.fit_transform(X)
    np.testing.assert_allclose(model.transform(X), model.row_factors_, atol=1e-3)
    np.testing.assert_allclose(model.inverse_transform(model.row_factors_), model.low_rank_)
    assert factors.shape == (60, model.rank_)
    assert (model.transform(np.full((2, 40), NAN)) == 0.0).all()
    with pytest.raises(ValueError, match=r"X: expected shape \(n, \d+\), got \(2, 9"):
        model.inverse_transform(np.zeros((2, 99)))


def test_degenerate_inputs():
    for X in (np.full((5, 4), 3.0), np.zeros((4, 3)), np.array([[2.0]]), np.array([[1.0, NAN, NAN]])):
        model = RobustPCA().fit(X)
        assert model.gap_ <= 1e-4
        seen = ~np.isnan(X)
        np.testing.assert_allclose((model.low_rank_ + model.sparse_)[seen], X[seen], atol=0.1)
    with pytest.raises(
        ValueError, match=r"X: expected at least one observed entry, got none in shape \(2, 2\)"
    ):
        RobustPCA().fit(np.full((2, 2), NAN))
    with pytest.raises(ValueError, match="infinity"):
        RobustPCA().fit([[np.inf, 1.0]])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LowRankFactorization(alpha=0.0), "alpha: expected a finite number > 0, got 0.0"),
        (RobustPCA(alpha=-1.0), "alpha: expected a finite number > 0, got -1.0"),
        (RobustPCA(mu=NAN), "mu: expected a finite number > 0, got nan"),
        (RobustPCA(noise=0.0), "noise: expected a finite number > 0, got 0.0"),
        (RobustPCA(alpha=1.0, tol=-1.0), "tol: expected a finite number >= 0, got -1.0"),
    ],
)
def test_wrong_parameters(model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(np.eye(3))


def test_interrupted_while_the_noise_is_estimated(monkeypatch):
    from theodolite.core.problem import Problem

    solve, calls = Problem.solve, 0

    def interrupted(self, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            callback = options.get("callback")

            def stop(_):
                raise KeyboardInterrupt

            options["callback"] = callback or stop
        return solve(self, *arguments, **options)

    monkeypatch.setattr(Problem, "solve", interrupted)
    model = RobustPCA().fit(corrupted()[0])
    assert model.interrupted_
    assert model.dual_bound_ <= model.objective_
    assert len(model.history_) == 1
    assert np.isfinite(model.gap_)

"""StructuredFactorization: scikit-learn's checks, planted images, missing entries, and what is proved."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from theodolite.atoms.structured_relaxation import Relaxation
from theodolite.core.solve import Solver
from theodolite.estimators import FactorNorm, LowRankFactorization, StructuredFactorization

MAPS = FactorNorm(l1=0.05, tv=0.2, grid=(6, 5), nonnegative=True)


@parametrize_with_checks([StructuredFactorization(tol=1e-2, budget=0.5)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def scene(noise=0.1):
    """Two rectangles on a 6 x 5 image with their spectra: the noisy matrix and the clean one."""
    maps = np.zeros((2, 6, 5))
    maps[0, :3, :3], maps[1, 2:, 3:] = 1.0, 2.0
    x = np.linspace(0.0, 1.0, 10)
    clean = maps.reshape(2, 30).T @ np.stack([np.exp(-(((x - c) / 0.2) ** 2)) for c in (0.3, 0.8)])
    return clean + noise * np.random.default_rng(0).standard_normal(clean.shape), clean


def objective(model, X):
    W, H = torch.from_numpy(model.codes_), torch.from_numpy(model.components_)
    rows, columns = model.rows or FactorNorm(), model.columns or FactorNorm()
    error = np.nansum(np.square(X - model.codes_ @ model.components_))
    return 0.5 * error + model.alpha * float((rows(W.T) * columns(H)).sum())


@pytest.fixture(scope="module")
def fitted():
    X, _clean = scene()
    return StructuredFactorization(
        alpha=0.4, rows=MAPS, columns=FactorNorm(nonnegative=True), budget=6.0
    ).fit(X)


def test_a_planted_image_is_found_and_bounded(fitted):
    X, clean = scene()
    fit = fitted.codes_ @ fitted.components_
    assert np.linalg.norm(fit - clean) < 0.7 * np.linalg.norm(X - clean)
    assert fitted.codes_.min() >= 0.0
    assert fitted.components_.min() >= 0.0
    assert np.allclose(np.linalg.norm(fitted.components_, axis=1), 1.0)
    assert fitted.objective_ == pytest.approx(objective(fitted, X), rel=1e-9)
    assert fitted.dual_bound_ <= fitted.objective_
    assert 0.0 <= fitted.gap_ < 0.15
    assert fitted.rank_ == len(fitted.components_) == fitted.codes_.shape[1] == fitted.certificate_.units


def test_a_smoothed_fit_denoises_better_than_the_plain_one(fitted):
    X, clean = scene()
    fit = fitted.codes_ @ fitted.components_
    errors = []
    for alpha in (0.2, 0.4, 0.8):
        plain = LowRankFactorization(alpha=alpha).fit(X)
        errors.append(np.linalg.norm(plain.inverse_transform(plain.transform(X)) - clean))
    assert np.linalg.norm(fit - clean) < min(errors)


def test_missing_entries_are_left_out():
    X, clean = scene(0.02)
    holes = np.random.default_rng(1).random(X.shape) < 0.4
    X[holes] = np.nan
    model = StructuredFactorization(alpha=0.1, rows=MAPS, budget=3.0).fit(X)
    assert model.objective_ == pytest.approx(objective(model, X), rel=1e-9)
    assert model.dual_bound_ <= model.objective_
    filled = (model.codes_ @ model.components_)[holes]
    assert np.linalg.norm(filled - clean[holes]) < 0.25 * np.linalg.norm(clean[holes])
    assert model.score(X) <= 0.0
    assert np.isfinite(model.score(X))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_transform_gives_the_best_codes_of_each_row(fitted, nonnegative):
    model = fitted if nonnegative else clone(fitted).set_params(rows=None, columns=None).fit(scene()[0])
    X, _ = scene()
    X[0, :4], X[1] = np.nan, np.nan
    codes = model.transform(X)
    assert not codes[1].any()
    assert np.allclose(model.transform(X[3:5]), codes[3:5])
    for row in (0, 3):
        here = ~np.isnan(X[row])
        slope = (codes[row] @ model.components_ - X[row])[here] @ model.components_[:, here].T
        if nonnegative:
            assert codes[row].min() >= 0.0
            assert slope.min() > -1e-8
            assert abs(slope @ codes[row]) < 1e-8
        else:
            assert abs(slope).max() < 1e-8
    assert np.allclose(model.inverse_transform(codes), codes @ model.components_)


def test_euclidean_norms_give_the_singular_value_threshold():
    X, _ = scene()
    model = StructuredFactorization(alpha=0.5, tol=1e-6, budget=10.0).fit(X)
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    shrunk = np.maximum(s - 0.5, 0.0)
    truth = 0.5 * np.square(s - shrunk).sum() + 0.5 * shrunk.sum()
    assert truth * (1 - 1e-9) <= model.objective_ <= truth * (1 + 1e-4)
    assert truth * (1 - 1e-4) <= model.dual_bound_ <= truth * (1 + 1e-9)
    assert np.allclose(model.codes_ @ model.components_, (U * shrunk) @ Vt, atol=0.02)


def test_the_rank_can_be_limited():
    X, _ = scene()
    one = StructuredFactorization(alpha=0.4, rows=MAPS, max_rank=1, budget=2.0).fit(X)
    assert one.rank_ == 1
    assert one.codes_.shape == (30, 1)
    assert one.objective_ == pytest.approx(objective(one, X), rel=1e-9)
    assert one.dual_bound_ <= one.objective_


def test_a_large_alpha_gives_nothing():
    X, _ = scene()
    model = StructuredFactorization(alpha=1e3, rows=MAPS).fit(X)
    assert model.rank_ == 0
    assert model.gap_ == 0.0
    assert model.transform(X).shape == (30, 0)
    assert not model.inverse_transform(model.transform(X)).any()


def test_an_interrupt_before_the_first_round_leaves_the_zero_model(monkeypatch):
    improve = Relaxation.improve

    def interrupted(self, *, tol, budget):
        if budget == 0.0:  # asks for what is known
            return improve(self, tol=tol, budget=budget)
        raise KeyboardInterrupt

    monkeypatch.setattr(Relaxation, "improve", interrupted)
    X, _ = scene()
    model = StructuredFactorization(alpha=0.4, rows=MAPS).fit(X)
    assert model.interrupted_
    assert model.rank_ == 0
    assert 0.0 <= model.dual_bound_ <= model.objective_ == pytest.approx(0.5 * np.square(X).sum())


def test_an_interrupt_keeps_the_fit(monkeypatch):
    whole = Solver._certify

    def interrupted(self, params, budget=float("inf")):
        if len(self.history) == 2 and budget:
            raise KeyboardInterrupt
        return whole(self, params, budget)

    monkeypatch.setattr(Solver, "_certify", interrupted)
    X, _ = scene()
    model = StructuredFactorization(alpha=0.4, rows=MAPS, budget=20.0).fit(X)
    assert model.interrupted_
    assert model.dual_bound_ <= model.objective_
    assert model.objective_ == pytest.approx(objective(model, X), rel=1e-9)
    assert np.isfinite(model.transform(X)).all()


@pytest.mark.parametrize(
    ("options", "X", "error", "message"),
    [
        ({"alpha": 0.0}, np.ones((3, 2)), ValueError, "alpha: expected"),
        ({"alpha": "1"}, np.ones((3, 2)), TypeError, "alpha: expected"),
        ({"tol": -1.0}, np.ones((3, 2)), ValueError, "tol: expected"),
        ({"rows": "tv"}, np.ones((3, 2)), TypeError, "rows: expected a FactorNorm"),
        ({"columns": FactorNorm(grid=(3,))}, np.ones((3, 2)), ValueError, "right: expected a grid of 2"),
        ({}, np.full((3, 2), np.nan), ValueError, "at least one observed"),
        ({}, np.full((3, 2), np.inf), ValueError, "infinity"),
        ({"max_rank": 0}, np.ones((3, 2)), ValueError, "max_rank: expected"),
    ],
)
def test_other_arguments_are_refused(options, X, error, message):
    with pytest.raises(error, match=message):
        StructuredFactorization(**options).fit(X)


def test_codes_of_another_rank_and_rows_without_entries_are_refused(fitted):
    with pytest.raises(ValueError, match="codes a row"):
        fitted.inverse_transform(np.ones((2, fitted.rank_ + 1)))
    with pytest.raises(ValueError, match="X: expected at least one observed entry"):
        fitted.score(np.full((2, 10), np.nan))

"""Paths of alpha, and the choice of one by held-out entries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import ShuffleSplit

from theodolite.estimators import MatrixCompletion, MatrixCompletionCV, completion_path
from theodolite.estimators import completion_cv as module

NAN = np.nan


def planted(n: int = 40, m: int = 30, seed: int = 0, density: float = 0.6, noise: float = 0.3) -> np.ndarray:
    g = np.random.default_rng(seed)
    X = g.normal(size=(n, 2)) @ g.normal(size=(2, m)) + noise * g.normal(size=(n, m))
    return np.where(g.random((n, m)) < density, X, NAN)


def test_a_path_equals_its_single_fits():
    X = planted()
    path = completion_path(X, [1.0, 8.0, 3.0], tol=1e-8)
    assert [model.alpha for model in path] == [8.0, 3.0, 1.0]
    for model in path:
        alone = MatrixCompletion(alpha=model.alpha, tol=1e-8).fit(X)
        assert model.objective_ == pytest.approx(alone.objective_, rel=1e-7)
        assert model.gap_ <= 1e-8
        assert model.get_params() == alone.get_params()
        np.testing.assert_allclose(model.transform(X), model.row_factors_, atol=1e-3)


def test_the_grid_begins_below_the_alpha_of_the_zero_matrix():
    X = planted()
    path = completion_path(X, n_alphas=4, eps=0.01)
    top = np.linalg.norm(np.nan_to_num(X), 2)
    np.testing.assert_allclose(
        [model.alpha for model in path], top * 0.01 ** (np.arange(1, 5) / 4), rtol=1e-6
    )
    assert MatrixCompletion(alpha=1.001 * top).fit(X).rank_ == 0
    assert MatrixCompletion(alpha=0.99 * top, tol=1e-7).fit(X).rank_ > 0
    assert path[0].rank_ > 0


def test_a_warm_path_takes_fewer_steps(monkeypatch):
    from theodolite.losses.masked import MaskedLoss

    calls = 0
    gradient = MaskedLoss.gradient

    def counted(self, Z):
        nonlocal calls
        calls += 1
        return gradient(self, Z)

    monkeypatch.setattr(MaskedLoss, "gradient", counted)
    X, alphas = planted(), np.geomspace(4.0, 2.0, 6)
    completion_path(X, alphas, tol=1e-6)
    warm, calls = calls, 0
    for alpha in alphas:
        MatrixCompletion(alpha=alpha, tol=1e-6).fit(X)
    assert warm < 0.9 * calls


def test_cross_validation_by_hand():
    X = planted()
    rows, cols = np.nonzero(~np.isnan(X))
    splitter = ShuffleSplit(2, test_size=0.25, random_state=5)
    alphas = [6.0, 2.0, 0.5]
    model = MatrixCompletionCV(alphas, cv=splitter, tol=1e-8).fit(X)
    expected = np.zeros((3, 2))
    for k, (train, test) in enumerate(splitter.split(np.zeros(len(rows)))):
        part = np.full_like(X, NAN)
        part[rows[train], cols[train]] = X[rows[train], cols[train]]
        for i, alpha in enumerate(alphas):
            fold = MatrixCompletion(alpha=alpha, tol=1e-8).fit(part)
            errors = X[rows[test], cols[test]] - fold.predict(rows[test], cols[test])
            expected[i, k] = 0.5 * np.mean(errors**2)
    results = model.cv_results_
    np.testing.assert_allclose(results["test_loss"], expected, rtol=1e-3)
    np.testing.assert_allclose(results["mean_test_loss"], results["test_loss"].mean(1))
    np.testing.assert_allclose(results["mean_test_rmse"], np.sqrt(2 * results["test_loss"]).mean(1))
    assert results["alpha"].tolist() == alphas
    assert (results["gap"] <= 1e-8).all()
    assert model.best_index_ == int(np.argmin(expected.mean(1)))
    assert model.alpha_ == model.best_alpha_ == alphas[model.best_index_]
    assert model.best_loss_ == results["mean_test_loss"].min()
    alone = MatrixCompletion(alpha=model.alpha_, tol=1e-8).fit(X)
    assert model.objective_ == pytest.approx(alone.objective_, rel=1e-7)
    np.testing.assert_allclose(model.complete(), alone.complete(), atol=1e-3)


def test_the_choice_is_in_the_middle_and_predicts_better():
    X = planted(noise=1.0)
    model = MatrixCompletionCV(n_alphas=6, cv=3, random_state=1).fit(X)
    assert 0 < model.best_index_ < 5
    g = np.random.default_rng(0)
    truth = g.normal(size=(40, 2)) @ g.normal(size=(2, 30))
    errors = [
        np.mean((completed.complete() - truth) ** 2)
        for completed in completion_path(X, model.cv_results_["alpha"])
    ]
    assert np.mean((model.complete() - truth) ** 2) <= 1.2 * min(errors)
    assert errors[0] > 1.2 * min(errors)
    assert errors[-1] > 1.2 * min(errors)


@pytest.mark.parametrize("bias", [False, "penalized", "centered"])
def test_tables_biases_and_files(tmp_path, bias):
    X = planted(20, 15)
    rows, cols = np.nonzero(~np.isnan(X))
    table = pd.DataFrame({"user": [f"u{i}" for i in rows], "item": cols, "rating": X[rows, cols]})
    model = MatrixCompletionCV(n_alphas=2, eps=0.1, cv=2, bias=bias).fit(table)
    model.save(tmp_path / "model.npz")
    loaded = MatrixCompletion.load(tmp_path / "model.npz")
    assert loaded.alpha == model.alpha_
    np.testing.assert_array_equal(loaded.predict(table), model.predict(table))
    assert model.fit_transform(table).shape == (20, model.rank_ + bool(bias))
    assert loaded.certify(table).gap <= 1e-4


def test_counts_are_judged_by_their_own_loss():
    g = np.random.default_rng(0)
    X = g.poisson(np.exp(g.normal(size=(15, 12)))).astype(float)
    model = MatrixCompletionCV(n_alphas=2, eps=0.3, cv=2, loss="poisson", bias="penalized").fit(X)
    assert "mean_test_rmse" not in model.cv_results_
    fold = MatrixCompletion(alpha=model.alpha_, loss="poisson", bias="penalized").fit(X)
    z = fold.predict(np.repeat(np.arange(15), 12), np.tile(np.arange(12), 15), raw=True)
    assert fold.held_out_loss(X) == pytest.approx(np.mean(np.exp(z) - X.ravel() * z))


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_interrupted_it_keeps_the_best_that_was_complete(monkeypatch, after):
    fits = 0
    fitted = module._fitted

    def interrupted(*arguments):
        nonlocal fits
        fits += 1
        model = fitted(*arguments)
        model.interrupted_ = fits > after
        return model

    monkeypatch.setattr(module, "_fitted", interrupted)
    X = planted(20, 15)
    model = MatrixCompletionCV([8.0, 4.0, 2.0, 1.0], cv=2, tol=1e-6).fit(X)
    assert model.interrupted_
    assert model.gap_ <= 1e-6
    assert len(model.cv_results_["alpha"]) < 4
    assert model.alpha_ in (8.0, 4.0)
    alone = MatrixCompletion(alpha=model.alpha_, tol=1e-6).fit(X)
    assert model.objective_ == pytest.approx(alone.objective_, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alphas": []}, ValueError, "alphas: expected at least one number > 0, got none"),
        ({"alphas": [1.0, -1.0]}, ValueError, "alphas: expected a finite number > 0, got -1.0"),
        ({"n_alphas": 0}, ValueError, "n_alphas: expected an integer >= 1, got 0"),
        ({"eps": 1.0}, ValueError, "eps: expected a number between 0 and 1, got 1.0"),
        ({"cv": 1}, ValueError, "cv: expected an integer >= 2, got 1"),
        ({"cv": 1000}, ValueError, "cv: expected at most as many folds as observed entries, 23, got 1000"),
        ({"tol": "no"}, TypeError, "tol: expected a finite number >= 0, got 'no'"),
    ],
)
def test_wrong_parameters(options, error, message):
    with pytest.raises(error, match=message):
        MatrixCompletionCV(**options).fit(planted(8, 6))

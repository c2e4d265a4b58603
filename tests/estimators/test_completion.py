"""Matrix completion: the optimum, its certificate, predictions, new rows, files and interrupts."""

from __future__ import annotations

import json
import os

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from interrupts import interrupt_after
from scipy.special import expit
from sklearn.metrics import accuracy_score, d2_tweedie_score, r2_score

from theodolite.estimators import LowRankFactorization, MatrixCompletion

NAN = np.nan
LOSSES = ["squared", "huber", "logistic", "poisson"]


def ratings(
    n: int = 30, m: int = 20, *, loss: str = "squared", seed: int = 0, density: float = 0.5
) -> np.ndarray:
    g = np.random.default_rng(seed)
    Z = g.normal(size=(n, 2)) @ g.normal(size=(2, m)) + 0.5 * g.normal(size=(n, 1)) + 0.5 * g.normal(size=m)
    X = {
        "squared": lambda: 3.0 + Z + 0.3 * g.normal(size=(n, m)),
        "huber": lambda: 3.0 + Z + 0.3 * g.standard_t(1.5, size=(n, m)),
        "logistic": lambda: np.where(g.random((n, m)) < expit(2 * Z), 1.0, -1.0),
        "poisson": lambda: g.poisson(np.exp(np.clip(Z, -2, 2))).astype(float),
    }[loss]()
    X[g.random((n, m)) >= density] = NAN
    return X


def as_table(X: np.ndarray) -> pd.DataFrame:
    rows, cols = np.nonzero(~np.isnan(X))
    table = pd.DataFrame({"user": [f"u{i:03d}" for i in rows], "item": cols * 10, "rating": X[rows, cols]})
    return table.sample(frac=1.0, random_state=0, ignore_index=True)


@pytest.mark.parametrize(("n", "optimum"), [(100, 832.652807), (300, 6221.057795)])
def test_known_optima(n, optimum):
    g = np.random.default_rng(0)
    L = g.normal(size=(n, 5)) @ g.normal(size=(5, n)) / np.sqrt(5)
    seen = g.random((n, n)) < 0.2
    X = np.where(seen, L + 0.5 * g.normal(size=(n, n)), NAN)
    model = MatrixCompletion(alpha=np.sqrt(0.2 * n), tol=1e-6).fit(X)
    assert model.objective_ == pytest.approx(optimum, rel=2e-6)
    assert model.dual_bound_ <= optimum * (1 + 1e-9)
    assert model.gap_ <= 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [False, "penalized"])
def test_objective_is_that_of_the_joint_convex_problem(loss, bias):
    X = ratings(9, 7, loss=loss, seed=4)
    model = MatrixCompletion(alpha=1.3, tol=1e-8, loss=loss, delta=0.6, bias=bias, bias_alpha=0.7).fit(X)
    rows, cols = np.nonzero(~np.isnan(X))
    r, Z, b, c = X[rows, cols], cp.Variable(X.shape), cp.Variable(9), cp.Variable(7)
    z = Z[rows, cols] + ((b[rows] + c[cols] + model.mean_) if bias else 0.0)
    f = {
        "squared": lambda: 0.5 * cp.sum_squares(r - z),
        "huber": lambda: 0.5 * cp.sum(cp.huber(r - z, 0.6)),
        "logistic": lambda: cp.sum(cp.logistic(-cp.multiply(r, z))),
        "poisson": lambda: cp.sum(cp.exp(z) - cp.multiply(r, z)),
    }[loss]()
    decay = 0.35 * (cp.sum_squares(b) + cp.sum_squares(c))
    least = cp.Problem(cp.Minimize(f + 1.3 * cp.normNuc(Z) + decay)).solve(solver=cp.CLARABEL)
    assert model.objective_ == pytest.approx(least, rel=1e-6)
    assert model.dual_bound_ <= least + 1e-7 * abs(least)


def test_the_certificate_is_of_the_stated_objective():
    X = ratings()
    seen = ~np.isnan(X)
    for bias in (False, "penalized", "centered"):
        model = MatrixCompletion(alpha=2.0, tol=1e-3, bias=bias, bias_alpha=0.5).fit(X)
        U, V = model.row_factors_, model.col_factors_
        stated = 0.5 * ((X - model.complete())[seen] ** 2).sum()
        stated += 2.0 * np.linalg.svd(U @ V.T, compute_uv=False).sum()
        if bias == "penalized":
            stated += 0.25 * ((model.row_bias_**2).sum() + (model.col_bias_**2).sum())
        assert model.objective_ == pytest.approx(stated, rel=1e-12)
        gram = U.T @ U  # balanced and orthogonal
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
        np.testing.assert_allclose(gram, V.T @ V, atol=1e-9)


def test_centered_biases_are_shrunken_means_subtracted_first():
    X = ratings()
    seen, s = ~np.isnan(X), 1.5
    model = MatrixCompletion(alpha=2.0, tol=1e-8, bias="centered", bias_alpha=s).fit(X)
    assert model.mean_ == pytest.approx(np.nanmean(X))
    c = np.nansum(X - model.mean_, 0) / (seen.sum(0) + s)
    b = np.nansum(X - model.mean_ - c, 1) / (seen.sum(1) + s)
    np.testing.assert_allclose(model.col_bias_, c, rtol=1e-12)
    np.testing.assert_allclose(model.row_bias_, b, rtol=1e-12)
    plain = MatrixCompletion(alpha=2.0, tol=1e-8).fit(X - model.mean_ - b[:, None] - c)
    assert plain.objective_ == pytest.approx(model.objective_, rel=1e-7)


def test_all_forms_of_one_matrix_give_one_fit():
    X = ratings()
    dense = MatrixCompletion(alpha=2.0, tol=1e-8).fit(X)
    rows, cols = np.nonzero(~np.isnan(X))
    for form in ("coo", "csr", "csc"):
        sparse = sp.coo_array((X[rows, cols], (rows, cols)), shape=X.shape).asformat(form)
        assert MatrixCompletion(alpha=2.0, tol=1e-8).fit(sparse).objective_ == dense.objective_
    table = MatrixCompletion(alpha=2.0, tol=1e-8).fit(as_table(X))
    assert table.objective_ == pytest.approx(dense.objective_, rel=1e-12)
    np.testing.assert_allclose(table.complete(), dense.complete(), rtol=1e-6, atol=1e-6)


def test_without_missing_entries_it_is_singular_value_thresholding():
    X = ratings(density=1.0)
    completed = MatrixCompletion(alpha=3.0, tol=1e-10).fit(X)
    thresholded = LowRankFactorization(alpha=3.0).fit(X)
    assert completed.objective_ == pytest.approx(thresholded.objective_, rel=1e-9)
    assert completed.rank_ == thresholded.rank_


# ---------------------------------------------------------------------- new rows


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [False, "penalized", "centered"])
def test_training_rows_solve_the_equation_of_new_rows(loss, bias):
    if bias == "centered" and loss not in ("squared", "huber"):
        with pytest.raises(ValueError, match=f"bias: expected False or 'penalized' with loss='{loss}'"):
            MatrixCompletion(loss=loss, bias=bias).fit(ratings(loss=loss))
        return
    X = ratings(loss=loss)
    X[3] = NAN
    model = MatrixCompletion(alpha=3.0, tol=1e-9, loss=loss, bias=bias)
    factors = model.fit_transform(X)
    np.testing.assert_allclose(model.transform(X), factors, atol=3e-4)
    assert factors.shape == (30, model.rank_ + bool(bias))
    assert (factors[3] == 0.0).all() or np.abs(factors[3]).max() < 1e-12
    np.testing.assert_allclose(model.inverse_transform(factors), model.complete(), rtol=1e-9)
    np.testing.assert_allclose(model.predict(X), model.inverse_transform(model.transform(X)))
    assert len(model.get_feature_names_out()) == factors.shape[1]


def test_new_rows_are_ridge_regression():
    X = ratings()
    model = MatrixCompletion(alpha=1.5, bias="penalized", bias_alpha=0.4).fit(X)
    new = ratings(4, 20, seed=9)
    found = model.transform(new)
    for i, row in enumerate(new):
        seen = ~np.isnan(row)
        V = np.column_stack([model.col_factors_[seen], np.ones(seen.sum())])
        target = row[seen] - model.mean_ - model.col_bias_[seen]
        ridge = np.linalg.solve(V.T @ V + np.diag([1.5] * model.rank_ + [0.4]), V.T @ target)
        np.testing.assert_allclose(found[i], ridge, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["huber", "logistic", "poisson"])
def test_new_rows_minimize_their_objective(loss):
    model = MatrixCompletion(alpha=1.0, loss=loss, delta=0.5).fit(ratings(loss=loss))
    new = ratings(6, 20, loss=loss, seed=8)
    found = model.transform(new)
    for i, row in enumerate(new):
        seen = ~np.isnan(row)
        x, r, V = cp.Variable(model.rank_), row[seen], model.col_factors_[seen]
        z = V @ x
        f = {
            "huber": lambda r=r, z=z: 0.5 * cp.sum(cp.huber(r - z, 0.5)),
            "logistic": lambda r=r, z=z: cp.sum(cp.logistic(-cp.multiply(r, z))),
            "poisson": lambda r=r, z=z: cp.sum(cp.exp(z) - cp.multiply(r, z)),
        }[loss]()
        cp.Problem(cp.Minimize(f + 0.5 * cp.sum_squares(x))).solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(found[i], x.value, atol=1e-4)


# ------------------------------------------------------------------- predictions


def test_predictions_by_index_id_and_table():
    X = ratings()
    model = MatrixCompletion(alpha=1.0, bias="penalized").fit(X)
    whole = model.complete()
    np.testing.assert_allclose(model.predict([0, 3], [5, 7]), whole[[0, 3], [5, 7]])
    np.testing.assert_allclose(model.predict(4, np.arange(20)), whole[4])
    named = MatrixCompletion(alpha=1.0, bias="penalized").fit(as_table(X))
    np.testing.assert_allclose(named.predict(["u000", "u003"], [50, 70]), named.complete()[[0, 3], [5, 7]])
    np.testing.assert_allclose(named.predict("u000", 50), named.complete()[0, 5])
    pairs = pd.DataFrame({"item": [70], "user": ["u003"], "more": [0]})
    np.testing.assert_allclose(named.predict(pairs), named.complete()[3, 7])
    with pytest.raises(ValueError, match="cols: expected as many as rows, 2, got 3"):
        model.predict([0, 1], [0, 1, 2])


def test_unknown_ids_are_refused_or_get_the_mean():
    X = ratings()
    model = MatrixCompletion(alpha=1.0, bias="penalized").fit(as_table(X))
    with pytest.raises(ValueError, match="rows: expected ids seen in fit, got 'nobody' at 1"):
        model.predict(["u000", "nobody"], [50, 50])
    with pytest.raises(ValueError, match="cols: expected ids seen in fit, got 55 at 0"):
        model.predict(["u000"], [55])
    got = model.predict(["nobody", "u000", "nobody"], [50, 55, 55], unknown="mean")
    mean = model.mean_
    np.testing.assert_allclose(got, [mean + model.col_bias_[5], mean + model.row_bias_[0], mean])
    plain = MatrixCompletion(alpha=1.0).fit(X)
    for rows, cols in (([30], [0]), ([-1], [0]), ([0], [20])):
        with pytest.raises(ValueError, match="expected ids seen in fit"):
            plain.predict(rows, cols)
    with pytest.raises(ValueError, match="rows: expected a vector of indices, got float64"):
        plain.predict([0.5], [0])
    with pytest.raises(ValueError, match="X: expected a matrix, as in fit, got a table"):
        plain.transform(as_table(X))
    with pytest.raises(ValueError, match="X: expected a table, as in fit, got ndarray"):
        model.transform(X)


def test_new_rows_of_a_table_keep_their_ids():
    X = ratings()
    model = MatrixCompletion(alpha=1.0).fit(as_table(X))
    new = as_table(ratings(3, 20, seed=5)).replace({"user": {"u001": "zoe"}})
    factors = model.transform(new)
    assert factors.index.tolist() == ["u000", "u002", "zoe"]
    assert model.fit_transform(as_table(X)).index.tolist() == model.row_ids_.tolist()
    with pytest.raises(ValueError, match="item: expected ids seen in fit, got 3 at 0"):
        model.transform(pd.DataFrame({"user": ["a"], "item": [3], "rating": [1.0]}))


def test_signs_and_counts_have_their_means():
    X = ratings(loss="logistic")
    model = MatrixCompletion(alpha=1.0, loss="logistic").fit(X)
    np.testing.assert_allclose(model.predict([0], [0]), expit(model.predict([0], [0], raw=True)))
    zero_one = MatrixCompletion(alpha=1.0, loss="logistic").fit((X + 1) / 2)
    assert zero_one.objective_ == model.objective_
    for wrong in ([[1.0, 2.0]], [[-1.0, 0.0]]):
        with pytest.raises(
            ValueError, match="X: expected entries -1 and 1, or 0 and 1, for loss='logistic', got"
        ):
            MatrixCompletion(loss="logistic").fit(wrong)
    model = MatrixCompletion(alpha=3.0, loss="poisson", bias="penalized").fit(ratings(loss="poisson"))
    assert model.mean_ == pytest.approx(np.log(np.nanmean(ratings(loss="poisson"))))
    np.testing.assert_allclose(model.predict([0], [0]), np.exp(model.predict([0], [0], raw=True)))
    with pytest.raises(ValueError, match="X: expected counts >= 0 for loss='poisson', got -1"):
        MatrixCompletion(loss="poisson").fit([[1.0, -1.0]])


@pytest.mark.parametrize("loss", LOSSES)
def test_score_is_that_of_scikit_learn(loss):
    model = MatrixCompletion(alpha=3.0, loss=loss, bias="penalized").fit(ratings(loss=loss))
    held = ratings(loss=loss, seed=0, density=0.9)
    rows, cols = np.nonzero(~np.isnan(held))
    truth, predicted = held[rows, cols], model.predict(rows, cols)
    expected = {
        "squared": r2_score,
        "huber": r2_score,
        "logistic": lambda t, p: accuracy_score(t > 0, p > 0.5),
        "poisson": lambda t, p: d2_tweedie_score(t, p, power=1),
    }[loss](truth, predicted)
    assert model.score(held) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="X: expected 30 rows, as in fit, got 2"):
        model.score(held[:2])


# ------------------------------------------------------- rank, starts, interrupts


def test_a_rank_that_is_restricted_is_certified_against_any_rank():
    X = ratings()
    free = MatrixCompletion(alpha=1.0, tol=1e-9).fit(X)
    assert free.rank_ > 2
    model = MatrixCompletion(alpha=1.0, tol=1e-9, max_rank=2).fit(X)
    assert model.rank_ == model.row_factors_.shape[1] == 2
    assert model.dual_bound_ <= free.objective_ <= model.objective_
    assert model.gap_ == pytest.approx((model.objective_ - free.objective_) / model.objective_, rel=1e-6)
    U, V = free.row_factors_[:, :2], free.col_factors_[:, :2]  # truncation alone is worse
    truncated = 0.5 * np.nansum((X - U @ V.T) ** 2) + np.linalg.svd(U @ V.T, compute_uv=False).sum()
    assert model.objective_ < truncated - 1e-3
    np.testing.assert_allclose(model.transform(X), model.row_factors_, atol=1e-3)  # stationary
    for wrong, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_rank: expected an integer >= 1"):
            MatrixCompletion(max_rank=wrong).fit(X)


def test_a_further_fit_starts_from_the_last():
    X = ratings()
    model = MatrixCompletion(alpha=1.0, tol=1e-6, warm_start=True).fit(X)
    again = model.set_params(tol=1e-5).fit(X)
    assert len(again.history_) == 1  # closed where it starts
    cold = MatrixCompletion(alpha=1.0, tol=1e-5).fit(X)
    assert len(cold.history_) > 1
    assert len(MatrixCompletion(alpha=1.0, tol=1e-5).fit(X, init=model).history_) == 1
    with pytest.raises(
        ValueError, match="init: expected a model with the same kind of rows, got one with 30 rows"
    ):
        MatrixCompletion().fit(X[:5], init=model)
    with pytest.raises(TypeError, match="init: expected a fitted MatrixCompletion"):
        MatrixCompletion().fit(X, init=MatrixCompletion())


def test_a_start_is_matched_by_ids():
    table = as_table(ratings())
    model = MatrixCompletion(alpha=1.0, tol=1e-6).fit(table)
    renamed = table.assign(
        user=table["user"].map({u: f"u{999 - int(u[1:])}" for u in table["user"].unique()})
    )
    swapped = model.__class__(**model.get_params()).fit(table.iloc[::-1], init=model)
    assert len(swapped.history_) == 1
    more = pd.concat([table, pd.DataFrame({"user": ["a new one"], "item": [0], "rating": [3.0]})])
    start = MatrixCompletion(alpha=1.0, tol=1e-6).fit(more, init=model, callback=lambda _: True)
    assert start.history_[0].objective < model.objective_ + 0.5 * 9.0 + 1e-6
    unrelated = MatrixCompletion(alpha=1.0, tol=1e-6).fit(renamed, init=model, callback=lambda _: True)
    assert unrelated.rank_ == 0


def test_callback_sees_every_round_and_may_stop():
    seen = []
    model = MatrixCompletion(alpha=1.0, tol=1e-8).fit(ratings(), callback=lambda r: bool(seen.append(r)))
    assert tuple(seen) == model.history_
    stopped = MatrixCompletion(alpha=1.0, tol=1e-8).fit(ratings(), callback=lambda r: True)
    assert len(stopped.history_) == 1
    assert stopped.interrupted_ is False
    assert stopped.dual_bound_ <= model.objective_


@pytest.mark.parametrize("options", [{}, {"bias": "penalized"}, {"max_rank": 2}], ids=str)
def test_interrupted_at_any_moment_it_returns_a_valid_certificate(options):
    X = ratings(60, 50, density=0.4)
    best = MatrixCompletion(alpha=2.0, tol=1e-7, **options).fit(X)
    found = 0

    for part in (0.05, 0.3, 0.6, 0.9):
        model = MatrixCompletion(alpha=2.0, tol=1e-7, **options)
        try:
            with interrupt_after(part * best.history_[-1].seconds):
                model.fit(X)
        except KeyboardInterrupt:
            continue  # before there was anything to keep
        found += model.interrupted_
        assert model.dual_bound_ <= best.objective_
        assert model.objective_ >= best.dual_bound_
        assert model.certify(X).objective == pytest.approx(model.objective_, rel=1e-9)
        assert np.isfinite(model.predict([0], [0])).all()
        resumed = MatrixCompletion(alpha=2.0, tol=1e-7, **options).fit(X, init=model)
        assert resumed.gap_ <= 1e-7 or "max_rank" in options
    assert found > 0


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("loss", LOSSES)
def test_a_saved_model_comes_back(tmp_path, loss):
    X = as_table(ratings(loss=loss))
    model = MatrixCompletion(alpha=3.0, tol=1e-6, loss=loss, bias="penalized", delta=0.5, random_state=3).fit(
        X
    )
    model.save(tmp_path / "model.npz")
    again = MatrixCompletion.load(tmp_path / "model.npz")
    assert again.get_params() == model.get_params()
    assert (again.complete() == model.complete()).all()
    assert again.history_ == model.history_
    assert str(again.certificate_) == str(model.certificate_)
    assert (again.objective_, again.dual_bound_, again.gap_, again.rank_) == (
        model.objective_, model.dual_bound_, model.gap_, model.rank_,
    )  # fmt: skip
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert again.predict("u003", 30) == model.predict("u003", 30)
    assert again.certify(X).gap == pytest.approx(model.gap_, abs=1e-6)
    assert again.certify(X.assign(rating=X["rating"].iloc[::-1].to_numpy())).gap > 1e-3
    assert len(MatrixCompletion(**model.get_params()).fit(X, init=again).history_) == 1


def test_ids_of_strings_and_numbers_are_saved(tmp_path):
    names = ["é\0ß", 7, 2.5, True, ""]
    X = pd.DataFrame({"user": pd.Series(names, dtype=object), "item": np.arange(5), "rating": np.ones(5)})
    model = MatrixCompletion(alpha=0.1).fit(X)
    model.save(tmp_path / "model.npz")
    assert MatrixCompletion.load(tmp_path / "model.npz").row_ids_.tolist() == model.row_ids_.tolist() == names
    model = MatrixCompletion(alpha=0.1).fit(X.assign(user=pd.Series([(1, i) for i in range(5)])))
    with pytest.raises(
        TypeError, match=r"row_ids_: expected strings or numbers in order to save them, got \(1, 0\)"
    ):
        model.save(tmp_path / "model.npz")
    with pytest.raises(TypeError, match="random_state: expected a string, a number or None"):
        MatrixCompletion(random_state=np.random.RandomState(0)).fit(X).save(tmp_path / "model.npz")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    model = MatrixCompletion(alpha=1.0).fit(ratings())
    model.save(path)
    before = path.read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, interrupted)
            with pytest.raises(KeyboardInterrupt):
                MatrixCompletion(alpha=2.0).fit(ratings()).save(path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "no folder" / "model.npz")


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    MatrixCompletion(alpha=1.0).fit(ratings()).save(path)
    good = dict(np.load(path))
    header = json.loads(good["header"].tobytes())

    def packed(**changes):
        return np.frombuffer(json.dumps(header | changes).encode(), dtype=np.uint8)

    pickled = {"header": np.array([{"kind": "MatrixCompletion"}], dtype=object)}
    for arrays, message in (
        (good | {"row_factors": good["row_factors"][:, :-1]}, "as 'row_factors'"),
        (good | {"col_factors": good["col_factors"] * NAN}, "expected finite float64 numbers"),
        (good | {"row_bias": good["row_bias"][:-1]}, r"of shape \(29, "),
        ({k: v for k, v in good.items() if k != "col_bias"}, "as 'col_factors'|as 'col_bias'"),
        ({k: v for k, v in good.items() if k != "header"}, "expected a saved MatrixCompletion"),
        (good | {"header": packed(format=99)}, "of format 1, got MatrixCompletion of format 99"),
        (good | {"header": packed(kind="Other")}, "got Other of format 1"),
        (good | {"header": packed(certificate={})}, "expected a saved model"),
        (good | {"header": packed(row_ids=["a"])}, "expected 30 different ids as 'row_ids'"),
        (good | {"header": packed(parameters={"loss": "other"})}, "expected a saved model"),
        (pickled, "expected a saved MatrixCompletion"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            MatrixCompletion.load(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match="path: expected a saved MatrixCompletion"):
        MatrixCompletion.load(path)
    with pytest.raises(FileNotFoundError):
        MatrixCompletion.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, "alpha: expected a finite number > 0, got 0.0"),
        ({"alpha": "1"}, TypeError, "alpha: expected a finite number > 0, got '1'"),
        ({"alpha": NAN}, ValueError, "alpha: expected a finite number > 0, got nan"),
        ({"tol": -1.0}, ValueError, "tol: expected a finite number >= 0, got -1.0"),
        ({"budget": -1.0}, ValueError, "budget: expected a finite number >= 0"),
        ({"bias": True}, ValueError, "bias: expected one of False, 'penalized', 'centered', got True"),
        ({"bias": "penalized", "bias_alpha": 0.0}, ValueError, "bias_alpha: expected a finite number > 0"),
        ({"loss": "hinge"}, ValueError, "loss: expected one of 'squared', 'huber', 'logistic', 'poisson', got"),
        ({"loss": "huber", "delta": 0}, ValueError, "delta: expected a finite number > 0, got 0"),
    ],
)  # fmt: skip
def test_wrong_parameters(options, error, message):
    with pytest.raises(error, match=message):
        MatrixCompletion(**options).fit(ratings())


def test_whole_matrices_have_a_limit(monkeypatch):
    model = MatrixCompletion(alpha=1.0).fit(ratings())
    monkeypatch.setattr("theodolite.estimators.completion_model._MOST", 599)
    for call in (model.complete, lambda: model.inverse_transform(model.row_factors_)):
        with pytest.raises(
            ValueError, match="expected at most 599 entries at once, got 30 x 20; predict some"
        ):
            call()

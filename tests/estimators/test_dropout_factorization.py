"""DropoutFactorization: scikit-learn's checks, known answers, rates, inputs, and training as the judge."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from theodolite.analysis.dropout import dropconnect_regularizer, dropout_regularizer
from theodolite.estimators import DropoutFactorization
from theodolite.experiments._dropout_training import graded_matrix, train

MODELS = [DropoutFactorization(), DropoutFactorization(theta_bar=0.9, width=3, center=True)]
DIAGONAL = np.diag([3.0, 2.0, 1.0])


@parametrize_with_checks(MODELS)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_kept_as_given_and_cloned(model):
    assert clone(model).get_params() == model.get_params()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_known_answers_of_the_diagonal():
    wide = DropoutFactorization(width=4, p=2.0 / 3.0).fit(DIAGONAL)
    assert (wide.rank_, wide.width_) == (2, 4)
    assert wide.threshold_ == pytest.approx(1.25, rel=1e-10)
    assert wide.objective_ == pytest.approx(7.25, rel=1e-10)
    np.testing.assert_allclose(wide.row_factors_ @ wide.components_, np.diag([1.75, 0.75, 0.0]), atol=1e-10)
    strengths = np.linalg.norm(wide.row_factors_, axis=0) * np.linalg.norm(wide.components_, axis=1)
    np.testing.assert_allclose(strengths, 0.625, rtol=1e-10)
    narrow = DropoutFactorization(width=1, p=1.0 / 3.0).fit(DIAGONAL)
    assert narrow.objective_ == pytest.approx(8.0, rel=1e-10)
    assert narrow.gap_ < 1e-12


def test_the_bound_holds_and_is_tight():
    for seed, width in ((0, 1), (1, 3), (2, 20)):
        model = DropoutFactorization(width=width, p=0.4).fit(normal(9, 7, seed=seed))
        assert model.dual_bound_ <= model.objective_
        assert 0.0 <= model.gap_ <= 1e-11
        assert model.certificate_.gap == model.gap_
        assert model.rank_ <= width


def test_adapted_rates_give_one_product_at_every_width():
    X = normal(8, 6)
    fits = [DropoutFactorization(width=w, theta_bar=0.8).fit(X) for w in (6, 12, 50)]
    assert [fit.p_ for fit in fits] == pytest.approx([1 - 0.8 / (w - (w - 1) * 0.8) for w in (6, 12, 50)])
    for fit in fits[1:]:
        assert fit.objective_ == pytest.approx(fits[0].objective_, rel=1e-12)
        np.testing.assert_allclose(
            fit.row_factors_ @ fit.components_, fits[0].row_factors_ @ fits[0].components_, atol=1e-12
        )
    fixed = [DropoutFactorization(width=w, theta_bar=0.8, adapt_width=False).fit(X) for w in (6, 50)]
    assert [fit.p_ for fit in fixed] == pytest.approx([0.2, 0.2])
    assert fixed[1].objective_ < fixed[0].objective_


def test_transform_of_the_training_data_is_what_was_fitted():
    X = normal(9, 6)
    for model in (DropoutFactorization(p=0.3), DropoutFactorization(width=15, p=0.3, center=True)):
        factors = model.fit_transform(X)
        np.testing.assert_allclose(
            factors @ model.components_, model.row_factors_ @ model.components_, atol=1e-10
        )
        np.testing.assert_allclose(factors, model.row_factors_, atol=1e-8)
        restored = model.inverse_transform(factors)
        np.testing.assert_allclose(restored, factors @ model.components_ + model.mean_)
    assert model.get_feature_names_out()[0] == "dropoutfactorization0"


def test_a_mean_is_not_penalized():
    X = normal(9, 6)
    centered, shifted = (DropoutFactorization(center=True).fit(Z) for Z in (X, X + 100.0))
    assert shifted.objective_ == pytest.approx(centered.objective_, rel=1e-9)
    assert DropoutFactorization().fit(X + 100.0).objective_ > 10.0 * centered.objective_


@pytest.mark.parametrize("columns", [3, 12])
def test_linear_networks_against_descent(columns):
    """Y = Z V C with dropout of Z V: descent from random starts does not beat it, and comes close."""
    from scipy.optimize import minimize

    Z, Y, width, p = normal(10, columns), normal(10, 4, seed=1), 3, 0.4
    model = DropoutFactorization(width=width, p=p).fit(Y, inputs=Z)
    assert model.gap_ < 1e-11
    np.testing.assert_allclose(model.row_factors_, Z @ model.input_weights_, atol=1e-12)
    np.testing.assert_allclose(model.predict(Z), model.row_factors_ @ model.components_, atol=1e-12)
    kappa, rng = p / (1.0 - p), np.random.default_rng(0)

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        V, C = flat[: columns * width].reshape(columns, width), flat[columns * width :].reshape(width, 4)
        H = Z @ V
        R, h, c = H @ C - Y, (H**2).sum(0), (C**2).sum(1)
        gH = 2.0 * R @ C.T + 2.0 * kappa * H * c
        gC = 2.0 * H.T @ R + 2.0 * kappa * C * h[:, None]
        return float((R**2).sum() + kappa * h @ c), np.concatenate([(Z.T @ gH).ravel(), gC.ravel()])

    found = [
        minimize(both, rng.normal(size=(columns + 4) * width), jac=True, options={"maxiter": 3000}).fun
        for _ in range(5)
    ]
    assert min(found) >= model.dual_bound_
    assert min(found) == pytest.approx(model.objective_, rel=1e-6)


def test_the_penalty_is_what_the_objective_says():
    Z, Y = normal(10, 3), normal(10, 4, seed=1)
    model = DropoutFactorization(width=3, p=0.4).fit(Y, inputs=Z)
    error = float(((Y - model.predict(Z)) ** 2).sum())
    penalty = dropout_regularizer(model.components_.T, model.input_weights_, 0.4, inputs=Z.T).value
    assert error + penalty == pytest.approx(model.objective_, rel=1e-12)
    assert dropconnect_regularizer(
        model.components_.T, model.input_weights_, 0.4, side="out", inputs=Z.T
    ).value == pytest.approx(penalty, rel=1e-12)


def test_stochastic_gradient_descent_nears_the_closed_form():
    """A fifth of the experiment's 100,000 steps, to 2 %; there it is 1 %."""
    Y = graded_matrix(20, 15, 10.0 * 0.8 ** np.arange(10.0))
    model = DropoutFactorization(width=10, p=0.5).fit(Y)
    U, V = train(Y, 10, 0.5, 20_000)
    optimum = model.row_factors_ @ model.components_
    assert np.linalg.norm(U @ V.T - optimum) <= 0.02 * np.linalg.norm(optimum)


def test_digits_as_a_linear_autoencoder():
    X = load_digits().data / 16.0
    model = DropoutFactorization(width=64, p=0.5, center=True).fit(X, inputs=X)
    assert model.gap_ < 1e-8
    assert 0 < model.rank_ < 61
    # zero pixels are features that add nothing
    assert np.abs(model.input_weights_[X.std(0) == 0]).max() < 1e-12


def test_refitting_without_inputs_forgets_them():
    model = DropoutFactorization().fit(normal(5, 3), inputs=normal(5, 2))
    assert model.predict(normal(4, 2)).shape == (4, 3)
    model.fit(normal(5, 3))
    assert not hasattr(model, "predict")
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        model.predict(normal(4, 2))


def test_one_sample_one_feature_and_zeros():
    assert DropoutFactorization(p=0.5).fit([[2.0]]).objective_ == pytest.approx(2.0)
    zero = DropoutFactorization().fit(np.zeros((4, 3)))
    assert (zero.rank_, zero.objective_, zero.gap_) == (0, 0.0, 0.0)
    assert zero.transform(np.ones((2, 3))).tolist() == np.zeros((2, 3)).tolist()
    blind = DropoutFactorization().fit(np.ones((4, 3)), inputs=np.zeros((4, 2)))
    assert blind.objective_ == pytest.approx(12.0)
    assert blind.gap_ < 1e-12
    none = DropoutFactorization(p=0.0).fit(normal(4, 3))
    assert none.objective_ < 1e-20


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": 1.0}, ValueError, "p: expected a probability"),
        ({"p": -0.1}, ValueError, "p: expected a finite number"),
        ({"p": "half"}, TypeError, "p: expected a finite number"),
        ({"theta_bar": 0.0}, ValueError, "theta_bar: expected a probability"),
        ({"p": 0.5, "theta_bar": 0.5}, ValueError, "p, theta_bar: expected at most one"),
        ({"width": 0}, ValueError, "width: expected an integer >= 1"),
        ({"width": 2.5}, TypeError, "width: expected an integer >= 1"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        DropoutFactorization(**options).fit(normal(4, 3))


def test_inputs_that_are_refused():
    model = DropoutFactorization()
    with pytest.raises(ValueError, match="inputs: expected 4 rows"):
        model.fit(normal(4, 3), inputs=normal(5, 2))
    with pytest.raises(ValueError, match="Input inputs contains NaN"):
        model.fit(normal(4, 3), inputs=np.full((4, 2), np.nan))
    model.fit(normal(4, 3), inputs=normal(4, 2))
    with pytest.raises(ValueError, match="inputs: expected 2 columns, got 3"):
        model.predict(normal(4, 3))
    with pytest.raises(ValueError, match=r"X: expected shape \(n, 2\)"):
        model.inverse_transform(normal(4, 3))

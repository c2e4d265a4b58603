"""Scattering as steps of pipelines: scikit-learn's own checks, layouts, and the values of the modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from theodolite.estimators import (
    GraphScatteringTransformer,
    Scattering1DTransformer,
    Scattering2DTransformer,
    Scattering3DTransformer,
)
from theodolite.nn import GraphScattering, HarmonicScattering3D, Scattering1D, Scattering2D

RING = np.roll(np.eye(12), 1, 0) + np.roll(np.eye(12), -1, 0)
CASES = [
    (Scattering1DTransformer(J=3, Q=2, pad="zero"), (40,), Scattering1D(3, 40, 2, pad="zero")),
    (Scattering2DTransformer(J=1, L=3), (9, 6), Scattering2D(1, (9, 6), 3)),
    (Scattering3DTransformer(J=1, L=1), (6, 6, 5), HarmonicScattering3D(1, (6, 6, 5), 1)),
    (GraphScatteringTransformer(RING, J=2), (12,), GraphScattering(RING, 2, out="mean")),
]


@parametrize_with_checks([Scattering1DTransformer(J=1)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("transformer", "sizes", "module"), CASES, ids=lambda c: type(c).__name__)
def test_values_are_the_modules_in_both_layouts(transformer, sizes, module):
    for dtype in (np.float64, np.float32):
        X = np.random.default_rng(0).standard_normal((70, *sizes)).astype(dtype)
        found = clone(transformer).fit(X).transform(X)
        np.testing.assert_allclose(
            found, module(torch.from_numpy(X)).flatten(1).numpy(), rtol=1e-5, atol=1e-6
        )
        assert found.dtype == dtype
        flat = clone(transformer)
        if len(sizes) > 1:
            flat.set_params(shape=sizes)
        np.testing.assert_array_equal(flat.fit_transform(X.reshape(70, -1)), found)
        names = flat.get_feature_names_out()
        assert len(set(names)) == found.shape[1]
    assert flat.n_features_in_ == np.prod(sizes)


def test_a_pipeline_on_digits():
    X, y = load_digits(return_X_y=True)
    plain = LogisticRegression(max_iter=2000)
    scattered = make_pipeline(Scattering2DTransformer(J=1, shape=(8, 8)), StandardScaler(), plain)
    few = np.r_[0:300]
    ours = cross_val_score(scattered, X[few], y[few], cv=3).mean()
    pixels = cross_val_score(make_pipeline(StandardScaler(), plain), X[few], y[few], cv=3).mean()
    assert ours > 0.9
    assert ours > pixels - 0.02


def test_what_is_refused():
    flat = np.zeros((2, 64))
    with pytest.raises(
        ValueError, match=r"shape: expected the 2 sizes of what each row of X holds, got None"
    ):
        Scattering2DTransformer().fit(flat)
    with pytest.raises(ValueError, match=r"X: expected shape \(n, 8, 9\), got \(2, 64\)"):
        Scattering2DTransformer(shape=(8, 9)).fit(flat)
    fitted = Scattering2DTransformer(J=1, shape=(8, 8)).fit(flat)
    with pytest.raises(ValueError, match=r"X: expected shape \(n, 8, 8\) or \(n, 64\), got \(2, 8, 9\)"):
        fitted.transform(np.zeros((2, 8, 9)))
    with pytest.raises(ValueError, match="NaN"):
        fitted.transform(np.full((2, 8, 8), np.nan))
    with pytest.raises(ValueError, match="W: expected the weights of the graph's edges, got None"):
        GraphScatteringTransformer().fit(flat)
    with pytest.raises(ValueError, match="J: expected 2"):
        Scattering2DTransformer(J=4, shape=(8, 8)).fit(flat)

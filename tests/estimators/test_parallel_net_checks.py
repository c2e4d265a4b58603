"""What scikit-learn asks of a regressor and of a classifier."""

from __future__ import annotations

import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from theodolite.estimators import CertifiedEstimator, ParallelNetClassifier, ParallelNetRegressor

MODELS = [
    ParallelNetRegressor("linear", fit_intercept=True),
    ParallelNetRegressor("gated", n_gates=4, alpha=0.1, tol=0.1),
    ParallelNetClassifier("linear", loss="squared_error"),
    ParallelNetClassifier("gated", n_gates=4, tol=0.1),
]


@parametrize_with_checks(MODELS)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_parameters_are_kept_as_given_and_cloned(model):
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "certificate_")
    assert isinstance(twin, CertifiedEstimator)

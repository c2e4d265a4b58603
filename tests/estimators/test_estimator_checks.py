"""What scikit-learn asks of an estimator, with reasons for what does not apply."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from theodolite import estimators
from theodolite.estimators import LowRankFactorization, MatrixCompletion, MatrixCompletionCV, RobustPCA

WHOLE = "predict takes rows and columns; of a matrix it returns whole rows, not one number a row"
EXPECTED = {
    "MatrixCompletion": {"check_estimator_sparse_array": WHOLE, "check_estimator_sparse_matrix": WHOLE},
    "MatrixCompletionCV": {"check_estimator_sparse_array": WHOLE, "check_estimator_sparse_matrix": WHOLE},
}
MODELS = [
    MatrixCompletion(),
    MatrixCompletion(bias="penalized"),
    MatrixCompletionCV(alphas=(30.0,), cv=2, tol=1e-3),
    LowRankFactorization(),
    RobustPCA(alpha=1.0),
]


@parametrize_with_checks(MODELS, expected_failed_checks=lambda e: EXPECTED.get(type(e).__name__, {}))
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_parameters_are_kept_as_given_and_cloned(model):
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "certificate_")


def test_every_estimator_is_certified():
    X = np.random.default_rng(0).normal(size=(12, 9))
    for model in MODELS:
        fitted = clone(model).fit(X)
        assert fitted.dual_bound_ <= fitted.objective_
        assert 0.0 <= fitted.gap_ <= fitted.tol
        assert fitted.certificate_.gap == fitted.gap_
        assert fitted.rank_ == fitted.certificate_.units
        assert fitted.history_[-1].gap == fitted.gap_
        assert fitted.interrupted_ is False
        assert isinstance(fitted, estimators.CertifiedEstimator)

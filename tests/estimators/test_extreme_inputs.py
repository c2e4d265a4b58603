"""Inputs at the ends of what float64, integers and tables can say: a correct answer or one clear error."""

import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest

from theodolite.estimators import (
    LowRankFactorization,
    MatrixCompletion,
    MatrixCompletionCV,
    RobustPCA,
    TensorFactorization,
)
from theodolite.estimators.completion_inputs import Ids

ESTIMATORS = [LowRankFactorization, MatrixCompletion, RobustPCA, TensorFactorization]


def data(estimator, scale=1.0):
    X = scale * np.outer([1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 2.0])
    return np.stack([X, X], 2) if estimator is TensorFactorization else X


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_data_whose_squares_float64_cannot_hold_are_refused(estimator, scale):
    with pytest.raises(ValueError, match=r"X: expected a largest number from 1e-100 to 1e\+100 in size"):
        estimator(alpha=1.0).fit(data(estimator, scale))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("power", [-1, 1])
def test_far_from_one_the_fit_is_the_same_but_for_the_unit(estimator, power):
    # L-BFGS, which tensors descend by, looks at the objective's own size
    scale = (1e12 if estimator is TensorFactorization else 1e90) ** power
    model = estimator(alpha=3.0 * scale).fit(data(estimator, scale))
    assert model.objective_ == pytest.approx(
        scale**2 * estimator(alpha=3.0).fit(data(estimator)).objective_, rel=1e-4
    )
    assert model.gap_ <= 1e-4


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_small_numbers_beside_large_ones_and_zeros_do_no_harm(estimator):
    X = data(estimator)
    X[0] = 1e-300
    assert estimator(alpha=1.0).fit(X).gap_ <= 1e-4
    assert estimator(alpha=1.0).fit(0.0 * X).objective_ == 0.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1e-200}, r"alpha: expected a number from 1e-100 to 1e\+100, got 1e-200"),
        ({"device": "nosuch"}, "device: expected one that torch can use here, got 'nosuch'"),
        ({"device": "meta"}, "device: expected one that torch can use here, got 'meta'"),
        ({"random_state": -1}, "random_state: expected None, an integer from 0"),
        ({"random_state": "x"}, "random_state: expected None, an integer from 0"),
    ],
)
def test_parameters_that_cannot_be_are_named(estimator, options, message):
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(data(estimator))


def test_ids_beyond_64_bits_are_ids_like_others():
    X = pd.DataFrame({"user": [10**30, 1, 10**30], "item": [2**64, -(2**70), 3], "rating": [1.0, 2.0, 3.0]})
    model = MatrixCompletion(alpha=0.1).fit(X)
    assert model.row_ids_.tolist() == [1, 10**30]
    assert model.predict(10**30, 2**64).shape == (1,)
    assert len(Ids([2**63, 1])) == 2


def test_ids_that_are_pandas_missing_value_are_told():
    users = pd.array(["a", None, "b"], dtype="string")
    X = pd.DataFrame({"user": users, "item": [1, 2, 3], "rating": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="X: expected an id in every row of 'user', got none in row 1"):
        MatrixCompletion().fit(X)


def test_a_column_that_is_there_twice_is_refused():
    X = pd.DataFrame([[1, 1, 1, 2.0]], columns=["user", "user", "item", "rating"])
    with pytest.raises(ValueError, match="X: expected one column 'user', got 2"):
        MatrixCompletion().fit(X)


def test_a_device_or_pipe_is_never_replaced_by_a_model(tmp_path):
    model = MatrixCompletion().fit(data(MatrixCompletion))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="path: expected the name of a file"):
        model.save(pipe)
    assert pipe.is_fifo()
    kept, link = tmp_path / "kept.npz", tmp_path / "link.npz"
    link.symlink_to(kept)
    model.save(link)
    assert link.is_symlink()
    assert MatrixCompletion.load(kept).objective_ == model.objective_


def test_the_path_ends_after_alphas_without_improvement():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 15)) + rng.normal(size=(20, 15))
    X[rng.random(X.shape) < 0.3] = np.nan
    whole = MatrixCompletionCV(n_alphas=8, cv=2, tol=1e-3, patience=None).fit(X)
    early = MatrixCompletionCV(n_alphas=8, cv=2, tol=1e-3, patience=2).fit(X)
    losses = whole.cv_results_["mean_test_loss"]
    assert len(losses) == 8
    tried = int(np.argmin(losses)) + 3  # the losses are those of one valley here
    assert tried < 8
    np.testing.assert_array_equal(early.cv_results_["mean_test_loss"], losses[:tried])
    assert early.alpha_ == whole.alpha_
    assert early.objective_ == whole.objective_
    with pytest.raises(ValueError, match="patience: expected an integer >= 1, got 0"):
        MatrixCompletionCV(patience=0).fit(X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": float("nan")}, "mean: expected a finite number, got nan"),
        ({"row_ids": [1, 1, 2]}, "expected 3 different ids as 'row_ids' in .*, got 3, 2 of them different"),
    ],
)
def test_files_that_were_tampered_with_are_refused(tmp_path, change, message):
    X = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1], "rating": [1.0, 2.0, 3.0]})
    MatrixCompletion().fit(X).save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as file:
        parts = dict(file)
    header = json.loads(parts["header"].tobytes()) | change
    parts["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(tmp_path / "m.npz", **parts)
    with pytest.raises(ValueError, match=message):
        MatrixCompletion.load(tmp_path / "m.npz")


def test_a_pickle_is_refused_without_the_advice_to_load_it(tmp_path):
    (tmp_path / "m.npz").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"path: expected a saved MatrixCompletion, .*\(not a \.npz file\)"):
        MatrixCompletion.load(tmp_path / "m.npz")

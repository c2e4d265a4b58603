"""TensorFactorization: fits, certificates, new slices, and what it refuses."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from theodolite.estimators import TensorFactorization


def low_rank(dims, rank=2, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    factors = [np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in dims]
    letters = "abcde"[: len(dims)]
    rule = ",".join(f"{x}r" for x in letters) + ",r->" + letters
    truth = np.einsum(rule, *factors, np.linspace(8.0, 5.0, rank))
    return truth, truth + noise * rng.normal(size=dims)


def objective(model, X, seen):
    residual = np.where(seen, np.nan_to_num(X) - model.reconstruct(), 0.0)
    return 0.5 * float((residual**2).sum()) + model.alpha * float(model.weights_.sum())


@pytest.mark.parametrize("dims", [(7, 6, 5), (5, 4, 4, 3)])
def test_a_fit_is_what_its_attributes_say(dims):
    truth, X = low_rank(dims, noise=0.02)
    model = TensorFactorization(alpha=0.5, tol=1e-3).fit(X)
    assert model.gap_ <= 1e-3
    assert model.certificate_.verdict == "closed"
    assert model.dual_bound_ <= model.objective_
    assert model.objective_ == pytest.approx(objective(model, X, np.ones(dims, bool)), rel=1e-9)
    assert [f.shape for f in model.factors_] == [(n, model.rank_) for n in dims]
    for factor in model.factors_:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1.0)
    assert (np.diff(model.weights_) <= 0).all()
    assert (model.weights_ > 0).all()
    np.testing.assert_allclose(model.weights_[:2], [7.5, 4.5], atol=0.3)
    assert model.score(truth) > 0.97
    index = np.argwhere(np.ones(dims))
    np.testing.assert_allclose(model.predict(index), model.reconstruct().ravel(), atol=1e-12)
    np.testing.assert_allclose(
        model.predict(np.nonzero(np.ones(dims))), model.reconstruct().ravel(), atol=1e-12
    )
    assert not model.interrupted_
    assert model.history_[-1].units == model.rank_


def test_missing_entries_by_nan_by_mask_and_by_storage_are_the_same():
    truth, X = low_rank((8, 7, 6), noise=0.02)
    seen = np.random.default_rng(1).random(X.shape) < 0.6
    holes = np.where(seen, X, np.nan)
    by_nan = TensorFactorization(alpha=0.5, tol=1e-3).fit(holes)
    assert by_nan.gap_ <= 1e-3
    assert by_nan.objective_ == pytest.approx(objective(by_nan, X, seen), rel=1e-9)
    garbage = np.where(seen, X, np.inf)
    by_mask = clone(by_nan).fit(garbage, mask=seen)
    index = torch.from_numpy(np.argwhere(seen).T)
    order = torch.randperm(index.shape[1], generator=torch.Generator().manual_seed(0))
    sparse = torch.sparse_coo_tensor(
        index[:, order], torch.from_numpy(X[seen])[order], X.shape, check_invariants=True
    )
    by_storage = clone(by_nan).fit(sparse)
    for other in (by_mask, by_storage):
        assert other.objective_ == pytest.approx(by_nan.objective_, rel=1e-10)
        np.testing.assert_allclose(other.reconstruct(), by_nan.reconstruct(), atol=1e-8)
    assert by_nan.score(np.where(seen, np.nan, truth)) > 0.9  # held out
    assert by_nan.score(truth, mask=~seen) == by_nan.score(np.where(seen, np.nan, truth))


def test_transform_of_training_slices_and_of_new_ones():
    _, X = low_rank((9, 6, 5), noise=0.01)
    seen = np.random.default_rng(2).random(X.shape) < 0.8
    holes = np.where(seen, X, np.nan)
    model = TensorFactorization(alpha=0.4, tol=1e-5)
    fitted = model.fit_transform(holes)
    np.testing.assert_allclose(model.transform(holes), fitted, atol=2e-3)
    np.testing.assert_allclose(model.inverse_transform(fitted), model.reconstruct(), atol=1e-12)
    np.testing.assert_allclose(model.transform(2.0 * X[:1]), 2.0 * model.transform(X[:1]), atol=1e-12)
    nothing = np.full((2, 6, 5), np.nan)
    nothing[1] = X[3]
    found = model.transform(nothing)
    assert not found[0].any()
    np.testing.assert_allclose(found[1], model.transform(X[3:4])[0], atol=1e-12)
    assert not model.transform(np.full((1, 6, 5), np.nan)).any()
    with pytest.raises(ValueError, match=r"X: expected shape \(m, 6, 5\), got \(2, 5, 6\)"):
        model.transform(np.zeros((2, 5, 6)))
    with pytest.raises(ValueError, match=r"X: expected shape \(m, 2\)"):
        model.inverse_transform(np.zeros((2, 7)))


def test_max_rank_keeps_a_valid_certificate():
    _, X = low_rank((6, 5, 4), rank=3, noise=0.02)
    free = TensorFactorization(alpha=0.5, tol=1e-3).fit(X)
    one = TensorFactorization(alpha=0.5, tol=1e-3, max_rank=1).fit(X)
    assert one.rank_ == len(one.weights_) == 1
    assert one.objective_ > free.objective_
    assert one.dual_bound_ <= free.objective_ * (1.0 + 1e-9)
    assert one.gap_ > 0.1


def test_trivial_tensors():
    zero = TensorFactorization().fit(np.zeros((3, 2, 2)))
    assert (zero.rank_, zero.objective_, zero.gap_) == (0, 0.0, 0.0)
    assert not zero.reconstruct().any()
    assert zero.transform(np.ones((1, 2, 2))).shape == (1, 0)
    assert zero.predict([[0, 0, 0]]).tolist() == [0.0]
    constant = TensorFactorization(alpha=1.0).fit(np.full((3, 4, 5), 2.0))
    size = 2.0 * math.sqrt(60.0)  # rank one: soft-thresholded
    assert constant.rank_ == 1
    np.testing.assert_allclose(constant.weights_, [size - 1.0], rtol=1e-6)
    assert constant.objective_ == pytest.approx(size - 0.5, rel=1e-7)
    one = TensorFactorization(alpha=1.0).fit(np.where(np.arange(24).reshape(2, 3, 4) == 7, 5.0, np.nan))
    assert one.objective_ == pytest.approx(4.5, rel=1e-7)
    assert one.predict([[0, 1, 3]])[0] == pytest.approx(4.0, rel=1e-3)
    single = TensorFactorization(alpha=1.0).fit(np.full((1, 1, 1), -3.0))
    assert single.reconstruct().ravel()[0] == pytest.approx(-2.0, rel=1e-6)
    assert single.score(np.full((1, 1, 1), -3.0)) == 0.0
    integers = TensorFactorization(alpha=1.0).fit(np.full((2, 2, 2), 3, dtype=np.int32))
    assert integers.rank_ == 1


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (
            np.zeros((3, 4)),
            r"X: expected a nonempty tensor with three modes or more, got shape \(3, 4\); Matrix",
        ),
        (np.zeros((3, 0, 2)), "nonempty tensor"),
        (np.full((2, 2, 2), np.nan), "X: expected at least one observed entry, got none"),
        (np.where(np.arange(8).reshape(2, 2, 2) == 3, -np.inf, 1.0), r"got -inf at \(0, 1, 1\)"),
        (np.zeros((2, 2, 2), dtype=complex), "X: expected real numbers, got dtype complex128"),
        (np.full((2, 2, 2), "a"), "X: expected real numbers"),
        (torch.zeros(2, 2, 2).to_sparse_coo(), "at least one observed entry"),
        (
            torch.sparse_coo_tensor([[0, 0], [1, 1], [0, 0]], [1.0, 2.0], (2, 2, 2), check_invariants=True),
            "X: expected each entry stored once",
        ),
    ],
)
def test_wrong_tensors_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        TensorFactorization().fit(X)


def test_wrong_arguments_are_refused():
    X = np.ones((2, 3, 2))
    with pytest.raises(ValueError, match="alpha: expected a finite number > 0, got 0"):
        TensorFactorization(alpha=0.0).fit(X)
    with pytest.raises(TypeError, match="alpha"):
        TensorFactorization(alpha="1").fit(X)
    with pytest.raises(ValueError, match="max_rank: expected an integer >= 1"):
        TensorFactorization(max_rank=0).fit(X)
    with pytest.raises(ValueError, match="mask: expected booleans of the shape of X"):
        TensorFactorization().fit(X, mask=np.ones((2, 3)))
    with pytest.raises(ValueError, match="mask: expected booleans"):
        TensorFactorization().fit(X, mask=np.ones((2, 3, 2)))
    with pytest.raises(ValueError, match="mask: expected None for a sparse X"):
        TensorFactorization().fit(torch.ones(2, 2, 2).to_sparse_coo(), mask=np.ones((2, 2, 2), bool))
    with pytest.raises(NotFittedError):
        TensorFactorization().reconstruct()
    model = TensorFactorization().fit(X)
    with pytest.raises(ValueError, match="index: expected 0 to 1 in mode 0"):
        model.predict([[2, 0, 0]])
    with pytest.raises(ValueError, match=r"X: expected shape \(2, 3, 2\)"):
        model.score(np.ones((2, 2, 3)))


def test_parameters_and_repeatability():
    model = TensorFactorization(alpha=0.7, tol=1e-3, max_rank=2, budget=60.0, random_state=1)
    assert clone(model).get_params() == model.get_params()
    assert "alpha=0.7" in repr(model)
    _, X = low_rank((5, 4, 3), noise=0.1)
    one, two = (clone(model).fit(X).reconstruct() for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_an_interrupted_fit_is_usable():
    _, X = low_rank((6, 5, 4), noise=0.1)

    def stop(_):
        raise KeyboardInterrupt

    model = TensorFactorization(alpha=0.3).fit(X, callback=stop)
    assert model.interrupted_
    assert model.dual_bound_ <= model.objective_
    assert model.reconstruct().shape == X.shape


def test_a_budget_of_zero_gives_a_valid_loose_certificate():
    _, X = low_rank((6, 5, 4), noise=0.02)
    model = TensorFactorization(alpha=0.5, budget=0.0).fit(X)
    best = TensorFactorization(alpha=0.5, tol=1e-3).fit(X)
    assert model.dual_bound_ <= best.objective_ <= model.objective_


@pytest.mark.skipif(find_spec("tensorly") is None, reason="pip install tensorly, for its Kinetic data")
def test_kinetic_data_with_their_missing_mask():
    folder = Path(find_spec("tensorly").origin).parent / "datasets" / "data"
    X = np.load(folder / "Kinetic.npy")[::4, ::2, ::2, ::4]
    seen = ~np.load(folder / "Kinetic_missing.npy").astype(bool)[::4, ::2, ::2, ::4]
    scale = float(np.sqrt((X[seen] ** 2).sum()))
    model = TensorFactorization(alpha=0.05, tol=1e-3).fit(X / scale, mask=seen)
    assert not seen.all()
    assert model.gap_ <= 1e-3  # a local optimum of a tensor problem, proved to be global
    assert 2 <= model.rank_ <= 12
    assert model.score(X / scale, mask=seen) > 0.9

"""Losses of the observed entries of a matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch

from theodolite.losses import LogisticLoss, MaskedLoss, MaskedSquaredLoss, PoissonLoss, SquaredLoss, Support

ROWS, COLS, VALUES = [0, 2, 0], [1, 0, 3], [1.0, -2.0, 0.5]


def test_is_the_squared_loss_on_the_mask():
    loss = MaskedSquaredLoss(ROWS, COLS, VALUES, (3, 4), 0.5)
    whole = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Z = whole[loss.support.rows, loss.support.cols]
    mask, target = torch.zeros(3, 4), torch.zeros(3, 4)
    mask[ROWS, COLS], target[ROWS, COLS] = 1.0, torch.tensor(VALUES)
    assert loss.value(Z) == pytest.approx(float(0.25 * (mask * (whole - target)).square().sum()), rel=1e-14)
    assert loss.prediction_shape == (3,)
    assert loss.shape == loss.support.shape == (3, 4)
    gradient = torch.zeros(3, 4, dtype=torch.float64)
    gradient[ROWS, COLS] = loss.gradient(Z)
    torch.testing.assert_close(gradient, 0.5 * mask.double() * (whole - target))
    full = SquaredLoss(target, 0.5)
    assert loss.dual(-loss.gradient(Z)) == pytest.approx(full.dual(-gradient), rel=1e-14)
    assert loss.best_t(-loss.gradient(Z)) == pytest.approx(full.best_t(-gradient), rel=1e-14)


def test_the_order_is_that_of_the_indices():
    loss = MaskedSquaredLoss(ROWS, COLS, VALUES, (3, 4))
    assert loss.support.rows.tolist() == ROWS
    assert loss.support.cols.tolist() == COLS
    assert (-loss.gradient(loss.zeros())).tolist() == VALUES


@pytest.mark.parametrize("make", [scipy.sparse.coo_array, scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_sparse_matrices_keep_their_explicit_zeros(make):
    matrix = make((np.array([0.0, 3.0, 2.0]), (np.array([0, 1, 1]), np.array([1, 0, 2]))), shape=(2, 3))
    loss = MaskedSquaredLoss.from_sparse(matrix, scale=2.0)
    entries = zip(loss.support.rows.tolist(), loss.support.cols.tolist(), strict=True)
    seen = dict(zip(entries, (-loss.gradient(loss.zeros()) / 2.0).tolist(), strict=True))
    assert seen == {(0, 1): 0.0, (1, 0): 3.0, (1, 2): 2.0}
    assert loss.scale == 2.0


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_dense_matrices_lack_what_is_nan(convert):
    loss = MaskedSquaredLoss.from_dense(convert([[1.0, math.nan], [math.nan, 0.0], [2.0, 3.0]]))
    assert loss.support.rows.tolist() == [0, 1, 2, 2]
    assert loss.support.cols.tolist() == [0, 1, 0, 1]
    assert (-loss.gradient(loss.zeros())).tolist() == [1.0, 0.0, 2.0, 3.0]


def test_any_loss_of_a_column_may_be_masked():
    loss = MaskedLoss(PoissonLoss([1, 0, 4], 0.5), ROWS, COLS, (3, 4))
    Z = torch.tensor([0.1, -1.0, 2.0])
    assert loss.value(Z) == PoissonLoss([1, 0, 4], 0.5).value(Z[:, None])
    assert loss.rescaled(1.0).value(Z) == pytest.approx(2 * loss.value(Z), rel=1e-15)
    assert loss.value(Z) == MaskedLoss(PoissonLoss([1, 0, 4], 0.5), ROWS, COLS, (3, 4)).value(Z)


def test_memory_is_that_of_the_entries():
    n = 10**6  # the whole matrix would take 8 terabytes
    index = torch.arange(0, n, 1000)
    loss = MaskedSquaredLoss(index, index.flip(0), torch.ones(len(index)), (n, n))
    assert loss.value(loss.zeros()) == 500.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MaskedSquaredLoss([0, 1, 0], [1, 0, 1], VALUES, (3, 4)),
            r"each entry once, got \(0, 1\) at 0 and at 2",
        ),
        (lambda: MaskedSquaredLoss([0, 3, 0], COLS, VALUES, (3, 4)), "rows: expected 0 to 2, got 3 at 1"),
        (lambda: MaskedSquaredLoss(ROWS, [1, 0, -1], VALUES, (3, 4)), "cols: expected 0 to 3, got -1 at 2"),
        (
            lambda: MaskedSquaredLoss(ROWS, [1, 0], VALUES, (3, 4)),
            "cols: expected 3 indices, as many as rows, got 2",
        ),
        (
            lambda: MaskedSquaredLoss(ROWS, COLS, VALUES[:2], (3, 4)),
            r"values: expected as many numbers as rows, \(3,\)",
        ),
        (lambda: MaskedSquaredLoss(ROWS, COLS, [[1.0]] * 3, (3, 4)), r"values: .* got shape \(3, 1\)"),
        (
            lambda: MaskedSquaredLoss(ROWS, COLS, [1.0, math.nan, 0.0], (3, 4)),
            "values: expected finite numbers, got NaN at 1",
        ),
        (
            lambda: MaskedSquaredLoss([], [], [], (3, 4)),
            "values: expected at least one observed entry, got none",
        ),
        (lambda: MaskedSquaredLoss([0.5, 1, 2], COLS, VALUES, (3, 4)), "rows: expected integers"),
        (lambda: MaskedSquaredLoss(ROWS, COLS, VALUES, (3, 4), 0.0), "scale: expected a finite number > 0"),
        (
            lambda: MaskedSquaredLoss.from_dense([[math.inf, 1.0]]),
            r"matrix: expected finite numbers or NaN, got inf at \(0, 0\)",
        ),
        (lambda: MaskedSquaredLoss.from_dense([[math.nan]]), "values: expected at least one observed entry"),
        (lambda: MaskedSquaredLoss.from_dense([1.0]), r"matrix: expected shape \(n, m\)"),
        (
            lambda: MaskedLoss(LogisticLoss([[1, -1]]), [0], [0], (3, 4)),
            r"loss: expected one of shape \(1, 1\), got \(1, 2\)",
        ),
        (
            lambda: Support.checked([], [], (3, 4)),
            "rows: expected at least one entry|rows: expected integers",
        ),
        (
            lambda: MaskedSquaredLoss(ROWS, COLS, VALUES, (3, 4)).value(torch.zeros(3, 4)),
            r"Z: expected shape \(3,\)",
        ),
        (
            lambda: MaskedSquaredLoss.from_sparse(
                scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))
            ),
            r"each entry once, got \(0, 1\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Inputs of families: what is refused, and the small helpers."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from theodolite.atoms.inputs import as_inputs, check_dual, row_sum, same_directions, unit


def test_array_likes_become_float64():
    for X in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], dtype=np.int8), torch.tensor([[1, 2], [3, 4]])):
        assert torch.equal(as_inputs(X), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
    assert torch.equal(as_inputs([[2.0]], bias=True), torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    sparse = torch.tensor([[0.0, 2.0]]).to_sparse()
    assert torch.equal(as_inputs(sparse), torch.tensor([[0.0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    "X",
    [
        [],
        [[]],
        [1.0],
        [[math.inf]],
        [["a"]],
        np.array([[1j]]),
        [[None]],
        sp.eye_array(2),
        torch.zeros(2, 2, 2),
    ],
)
def test_what_is_no_finite_matrix_is_refused(X):
    with pytest.raises(ValueError, match="X: expected"):
        as_inputs(X)


def test_dual_points_may_be_sparse_and_must_be_finite():
    dense = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert torch.equal(check_dual(dense.to_sparse(), (2, 2)), dense.double())
    with pytest.raises(ValueError, match=r"Q: expected shape \(2, 2\)"):
        check_dual(dense[:1], (2, 2))
    with pytest.raises(ValueError, match="Q: expected finite"):
        check_dual(dense * math.nan, (2, 2))


def test_small_helpers():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]], dtype=torch.float64)
    directions = unit(rows)
    torch.testing.assert_close(directions[0], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert directions[1].tolist() == [1.0, 0.0]
    assert same_directions(directions).tolist() == [0, 1, 0]
    crude = row_sum(rows, torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))
    assert 25.0 <= crude <= 25.0 * (1 + 1e-12)

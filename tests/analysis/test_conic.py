"""Best weights against nonnegative least squares, and Caratheodory's argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from theodolite.analysis.conic import best_weights, sparsest_weights
from theodolite.losses import SquaredLoss


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(10))
def test_best_weights_without_costs_are_nonnegative_least_squares(seed):
    F, y = normal(7, 12, seed=seed), normal(4, 3, seed=seed + 100)
    c = best_weights(
        SquaredLoss(y), F, torch.zeros(7, dtype=torch.float64), torch.ones(7, dtype=torch.float64)
    )
    expected, _ = nnls(F.numpy().T, y.reshape(-1).numpy())
    np.testing.assert_allclose(c.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_best_weights_satisfy_the_conditions_of_optimality(seed):
    F, y, costs = normal(9, 6, seed=seed), normal(3, 2, seed=seed + 100), 0.3 + normal(9, seed=seed).abs()
    c = best_weights(SquaredLoss(y), F, costs, torch.zeros(9, dtype=torch.float64))
    slope = F @ ((c @ F) - y.reshape(-1)) + costs
    assert float(slope.min()) > -1e-6
    assert float((slope * c).abs().max()) < 1e-6


@given(seed=st.integers(0, 10**6), r=st.integers(1, 12), size=st.integers(1, 6))
def test_sparsest_weights(seed, r, size):
    F, costs = normal(r, size, seed=seed), normal(r, seed=seed + 1).abs()
    w = sparsest_weights(F, costs)
    assert float(w.min()) >= 0.0
    assert int((w > 0).sum()) <= size
    assert float((w @ F - F.sum(0)).abs().max()) <= 1e-9 * float(F.abs().sum())
    assert float(costs @ w) <= float(costs.sum()) * (1 + 1e-10)


def test_independent_rows_stay():
    assert torch.equal(sparsest_weights(normal(3, 5), torch.ones(3).double()), torch.ones(3).double())


def test_equal_rows_become_one_and_lengths_do_not_matter():
    F = torch.tensor([[1.0, 0.0], [1e-9, 0.0], [0.0, 1e6]], dtype=torch.float64)
    w = sparsest_weights(F, torch.ones(3, dtype=torch.float64))
    assert int((w > 0).sum()) == 2
    torch.testing.assert_close(w @ F, F.sum(0))

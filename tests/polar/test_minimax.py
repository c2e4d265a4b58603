"""Polynomials near a kink: the stated errors hold everywhere, and are close to the best."""

import numpy as np
import pytest
import torch

from theodolite.polar.minimax import table


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6])
def test_errors_hold_between_the_entries(degree):
    generator = torch.Generator().manual_seed(degree)
    v = 2.0 * torch.rand(4000, dtype=torch.float64, generator=generator) - 1.0
    v[:4] = torch.tensor([-1.0, 1.0, 0.0, 1.0 - 1e-12])
    t = table(degree)
    index = t.index(v)
    y = torch.cat([torch.linspace(-1.0, 1.0, 301).double().repeat(len(v), 1), -v[:, None]], 1)
    powers = y[..., None] ** torch.arange(degree + 1)
    rest = (v[:, None] + y).relu() - (powers * t.coefficients[index][:, None]).sum(-1)
    assert bool((rest.abs().amax(1) <= t.errors[index]).all())
    assert float(t.coefficients.abs().sum(1).max()) <= t.size


@pytest.mark.parametrize(("degree", "error"), [(1, 0.25), (2, 0.0902), (3, 0.0629), (4, 0.0423)])
def test_the_largest_errors_are_nearly_the_best_known(degree, error):
    assert error <= float(table(degree).errors.max()) <= error + 1e-3


def test_no_polynomial_is_much_better():
    # a lower bound of the best error: least squares over all points of a grid, in the mean
    y = np.cos(np.linspace(0.0, np.pi, 401))
    t = table(3)
    for place in range(0, len(t.errors), 97):
        v = 2.0 * place / (len(t.errors) - 1) - 1.0
        wanted = np.maximum(v + y, 0.0)
        A = np.vander(y, 4)
        mean = np.sqrt(np.mean((wanted - A @ np.linalg.lstsq(A, wanted, rcond=None)[0]) ** 2))
        assert float(t.errors[place]) >= mean
        assert float(t.errors[place]) <= 4.0 * mean + 3e-4


def test_a_degree_without_a_table_is_refused():
    with pytest.raises(ValueError, match="degree: expected an integer from 1 to 6, got 7"):
        table(7)

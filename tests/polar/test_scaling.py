"""Powers of two in front of the polars: exact, and no bound lost to underflow."""

from __future__ import annotations

import math

import pytest
import torch

from theodolite.polar.arrangement import arrangement_polar
from theodolite.polar.relaxation import harmonic_bound, relaxation_bound, shor_bound
from theodolite.polar.scaling import balanced, lengths, power, scaled_back
from theodolite.value import Value


def data(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    X, Q = (
        torch.randn(7, 3, generator=generator).double(),
        torch.randn(7, outputs, generator=generator).double(),
    )
    X[2] = 0.0
    return X, Q


def test_balancing_is_exact_and_reaches_every_row() -> None:
    X, Q = data(2)
    factors = torch.tensor([-900, 900, 0, 300, -3, 5, 0])
    Z, R, exponent = balanced(power(X, factors[:, None]), power(Q, 20 - factors[:, None]))
    assert torch.equal(Z[2], torch.zeros(3).double())
    assert torch.equal(R[2], torch.zeros(2).double())
    top = Z.abs().amax(1)[[0, 1, 3, 4, 5, 6]]
    assert bool(((top >= 0.5) & (top < 1.0)).all())
    assert 0.5 <= float(R.abs().max()) < 1.0
    used = [i for i in range(7) if i != 2]
    product = X[used][:, :, None] * Q[used][:, None, :]
    assert torch.equal(power(Z[used][:, :, None] * R[used][:, None, :], exponent - 20), product)


def test_lengths_and_ends() -> None:
    rows = torch.tensor([[3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(lengths(rows), torch.tensor([5e-200, 5e200, 0.0], dtype=torch.float64))
    value = scaled_back(Value.bound(1.0, 1.5), -1080)
    assert value.low == 0.0
    assert value.high > 0.0
    assert scaled_back(Value.bound(1.0, 1.5), 2000).high == math.inf


def test_powers_of_two_of_sparse_matrices() -> None:
    Q = torch.tensor([[0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    for exponent in (-1050, -3, 0, 1001):
        image = power(Q.to_sparse().coalesce(), exponent)
        assert image.is_coalesced()
        assert torch.equal(image.to_dense(), power(Q, exponent))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(
    ("of_inputs", "of_weights"), [(-540, 0), (0, -540), (-270, -270), (500, 500), (900, -900)]
)
def test_bounds_scale_with_the_data(outputs: int, of_inputs: int, of_weights: int) -> None:
    X, Q = data(outputs)
    Y, R = power(X, of_inputs), power(Q, of_weights)
    for bound in (arrangement_polar, relaxation_bound, shor_bound, harmonic_bound):
        expected, found = bound(X, Q), bound(Y, R)
        assert math.ldexp(found.high, -of_inputs - of_weights) == pytest.approx(expected.high, rel=1e-8)
        assert found.high >= math.ldexp(expected.low, of_inputs + of_weights)

"""Bounds of all singular values hold, are tight, and enclose rounding where it is large."""

from __future__ import annotations

import mpmath
import pytest
import torch

from theodolite.linalg.singular_values import defect, singular_value_bounds


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(A: torch.Tensor) -> list[mpmath.mpf]:
    with mpmath.workdps(60):
        values = mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False)
        return sorted(values, reverse=True)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3)])
def test_against_sixty_digits(shape, scale):
    A = normal(*shape) * scale
    lower, upper = singular_value_bounds(A)
    for low, value, high in zip(lower.tolist(), exact(A), upper.tolist(), strict=True):
        assert low <= value <= high
        assert high - low <= 1e-13 * float(upper[0])


def test_known_values_of_an_ill_conditioned_matrix():
    """A graded diagonal behind rotations: the small values drown in rounding, which the bounds admit."""
    Q, R = torch.linalg.qr(normal(7, 7)).Q, torch.linalg.qr(normal(7, 7, seed=1)).Q
    A = Q @ torch.diag(10.0 ** -torch.arange(0.0, 21.0, 3.0, dtype=torch.float64)) @ R
    lower, upper = singular_value_bounds(A)
    for low, value, high in zip(lower.tolist(), exact(A), upper.tolist(), strict=True):
        assert low <= value <= high
    assert float(lower[-1]) == 0.0
    assert float(upper[-1]) < 1e-13


def test_diagonal_and_zero_and_empty():
    lower, upper = singular_value_bounds(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    assert lower.tolist() == pytest.approx([3.0, 2.0], rel=1e-13)
    assert bool((lower <= torch.tensor([3.0, 2.0])).all())
    assert bool((upper >= torch.tensor([3.0, 2.0])).all())
    for shape in ((3, 2), (0, 4)):
        lower, upper = singular_value_bounds(torch.zeros(shape))
        assert lower.tolist() == upper.tolist() == [0.0] * min(shape)


def test_repeated_values():
    lower, upper = singular_value_bounds(torch.linalg.qr(normal(30, 20)).Q)
    assert bool((lower <= 1.0 + 1e-15).all())
    assert float((upper - lower).max()) < 1e-12


def test_defect_is_an_upper_bound():
    A = torch.linalg.qr(normal(40, 10)).Q
    assert 0.0 < defect(A) < 1e-12
    B = A * 1.1
    assert defect(B) >= 0.21 * (1.0 - 1e-12)


@pytest.mark.parametrize("A", [torch.ones(3), torch.tensor([[float("nan")]]), torch.tensor([[float("inf")]])])
def test_what_is_refused(A):
    with pytest.raises(ValueError, match="A: expected"):
        singular_value_bounds(A)

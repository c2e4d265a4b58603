"""Compiled transforms have the values of plain ones."""

import pytest
import torch

from theodolite.nn import HarmonicScattering3D, Scattering1D, Scattering2D

CASES = [
    (Scattering1D(2, 32), (3, 32)),
    (Scattering2D(1, (8, 8), L=2), (3, 8, 8)),
    (HarmonicScattering3D(1, (6, 6, 6), 1), (2, 6, 6, 6)),
]


@pytest.mark.parametrize(("transform", "shape"), CASES, ids=lambda case: type(case).__name__)
def test_values_stay_the_same(transform, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = transform(x)
    torch.testing.assert_close(torch.compile(transform, backend="eager")(x), expected, rtol=0, atol=1e-14)

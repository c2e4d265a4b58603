"""Solid harmonics by their own recurrence: orthonormal, harmonic, and with the known ones among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.nn.solid_harmonics import exponents, frequencies, harmonics, solid_harmonic3d


def sphere() -> tuple[Tensor, Tensor]:
    """Points (n, 3) and weights of a quadrature that is exact for polynomials up to degree 30."""
    heights, weights = np.polynomial.legendre.leggauss(16)
    angles = 2.0 * np.pi * np.arange(32) / 32
    z, angle = (grid.ravel() for grid in np.meshgrid(heights, angles, indexing="ij"))
    radius = np.sqrt(1.0 - z * z)
    points = np.stack([z, radius * np.sin(angle), radius * np.cos(angle)], 1)
    return torch.from_numpy(points), torch.from_numpy(np.repeat(weights, 32) * 2.0 * np.pi / 32)


def values(degree: int, points: Tensor) -> Tensor:
    powers = torch.tensor(exponents(degree))
    return harmonics(degree) @ (points[:, None] ** powers).prod(-1).T


@pytest.mark.parametrize("degree", range(9))
def test_they_are_orthonormal_and_their_squares_sum_to_a_constant(degree):
    points, weights = sphere()
    found = values(degree, points)
    gram = (found * weights) @ found.T
    assert torch.allclose(gram, torch.eye(2 * degree + 1, dtype=gram.dtype), rtol=0.0, atol=1e-12)
    assert torch.allclose(found.square().sum(0), torch.tensor((2 * degree + 1) / (4.0 * math.pi)).double())
    if degree:
        assert float(((found * weights) @ values(degree - 1, points).T).abs().max()) < 1e-12


@pytest.mark.parametrize("degree", range(2, 9))
def test_their_laplacian_vanishes(degree):
    found = harmonics(degree)
    columns = {powers: i for i, powers in enumerate(exponents(degree - 2))}
    laplacian = torch.zeros(len(found), len(columns), dtype=torch.float64)
    for column, powers in zip(found.T, exponents(degree), strict=True):
        for axis, power in enumerate(powers):
            if power > 1:
                lower = tuple(p - 2 * (i == axis) for i, p in enumerate(powers))
                laplacian[:, columns[lower]] += power * (power - 1) * column
    assert float(laplacian.abs().max()) < 1e-11 * float(found.abs().max())


def test_known_harmonics():
    (z, y, x), half = torch.tensor([0.36, -0.48, 0.8]).double(), math.sqrt(1.0 / math.pi) / 2.0
    point = torch.stack([z, y, x])[None]
    assert float(values(0, point)) == pytest.approx(half)
    assert values(1, point)[:, 0].tolist() == pytest.approx(
        [math.sqrt(3) * half * float(c) for c in (z, x, y)]
    )
    root = math.sqrt(15.0) * half
    second = [root / math.sqrt(12.0) * (3 * z * z - 1), root * x * z, root * y * z]
    second += [root * (x * x - y * y) / 2, root * x * y]
    assert values(2, point)[:, 0].tolist() == pytest.approx([float(v) for v in second])


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_frequencies_are_the_grids_or_kymatios(n):
    expected = torch.fft.fftfreq(n, dtype=torch.float64) * 2.0 * math.pi
    assert torch.allclose(frequencies(n, "symmetric"), expected)
    theirs = np.fft.ifftshift(np.mgrid[-n // 2 : -n // 2 + n]) * 2.0 * np.pi / n
    assert torch.allclose(frequencies(n), torch.from_numpy(theirs))


def test_the_energy_of_a_degree_is_radial():
    bank = solid_harmonic3d((12, 10, 9), 0, L=3, sampling="symmetric")
    inside = torch.fft.fftfreq(12)[:, None, None].abs() + torch.fft.fftfreq(10)[:, None].abs() < 0.99
    grids = torch.meshgrid(*(frequencies(n, "symmetric") for n in (12, 10, 9)), indexing="ij")
    square = sum(grid.square() for grid in grids)
    first = bank.high[1:4].square().sum(0)
    ratio = (first / (square * torch.exp(-square)))[
        inside & (square > 0.0) & (grids[0] > -3.1) & (grids[1] > -3.1)
    ]
    assert float((ratio / ratio[0] - 1.0).abs().max()) < 1e-12

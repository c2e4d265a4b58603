"""The functions that wavelets on a graph are of its walk or of its Laplacian, low-pass first and then from fine to coarse."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["GraphNorm", "cubic", "hann", "walk_powers"]

GraphNorm = Literal["B1", "reference"]
_BOTTOM = 20.0  # of the cubic bank: ratio of the top frequency to the lowest that wavelets reach


def walk_powers(t: Tensor, J: int) -> Tensor:
    """Return the responses of a walk's powers at its eigenvalues."""
    before, now, bands = torch.ones_like(t), t, []
    for _ in range(J):
        bands.append(before - now)
        before, now = now, now * now
    return torch.stack([before, *bands])


def hann(frequencies: Tensor, J: int, top: float) -> Tensor:
    """Return the roots of Hann windows squared, on octaves below the top frequency, the outermost ones merged."""
    octaves = torch.log2(top / frequencies.clamp(min=0.0)).clamp(-3.0, J + 3.0)
    centers = torch.arange(-4, J + 5, dtype=octaves.dtype) - 0.5
    away = octaves - centers.reshape(-1, *[1] * octaves.ndim)
    # fourth powers of cosines, three of which overlap: they sum to 9 / 8
    squares = torch.where(away.abs() < 1.5, 8.0 / 9.0 * torch.cos(math.pi / 3.0 * away) ** 4, 0.0)
    first, last = 4, J + 4  # the windows of octave 0 and J
    merged = [squares[last:].sum(0), squares[: first + 1].sum(0), *squares[first + 1 : last]]
    return torch.stack(merged).sqrt()


def cubic(frequencies: Tensor, J: int, top: float, norm: GraphNorm) -> Tensor:
    """Return a spline's values at J scales, and a low-pass as high as the wavelets that is flat at zero."""
    found = _published(frequencies, J, top)
    if norm == "reference":
        return found
    # between 0 and the grid the energy is monotone, and above the grid it vanishes
    grid = top * torch.logspace(-3.0, 1.0, 1 << 14, base=10.0, dtype=torch.float64)
    grid[0] = 0.0
    energy = _published(grid, J, top).square().sum(0).max()
    return found / ((1.0 + 1e-6) * energy).sqrt()


def _published(frequencies: Tensor, J: int, top: float) -> Tensor:
    low, high = top / _BOTTOM, top
    scales = torch.logspace(math.log10(1.0 / high), math.log10(2.0 / low), J, base=10.0, dtype=torch.float64)
    peak = _spline(torch.tensor(2.0 - 1.0 / math.sqrt(3.0), dtype=torch.float64))
    lowpass = peak * torch.exp(-((frequencies / (0.6 * low)) ** 4))
    return torch.stack([lowpass, *(_spline(t * frequencies) for t in scales)])


def _spline(x: Tensor) -> Tensor:
    """Return x^2 below 1, a cubic, and 4 / x^2 above 2: continuous with its derivative."""
    middle = -5.0 + x * (11.0 + x * (-6.0 + x))
    above = 4.0 / x.clamp(min=2.0).square()
    return torch.where(x < 1.0, x * x, torch.where(x <= 2.0, middle, above))

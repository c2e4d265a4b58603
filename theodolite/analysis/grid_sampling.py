"""Shifts of sampled signals by parts of a sample, and slopes of their interpolants at the samples.

Two interpolants: the trigonometric one, periodic, exact for band-limited signals and unitary
under shifts of an odd number of samples; and the local cubic one of Keys with mirrored borders,
of which :func:`theodolite.analysis.warping.warp` gives the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def fourier_shift(x: Tensor, by: Sequence[float], dims: Sequence[int]) -> Tensor:
    """Shift by any number of samples: x(u - by) for the trigonometric interpolant of x.

    Parameters
    ----------
    x : Tensor
        Real, sampled along ``dims``.
    by : sequence of float
        Samples along each dimension.
    dims : sequence of int
        The dimensions.

    Returns
    -------
    Tensor
        As ``x``; of an even number of samples the highest frequency keeps its cosine part.
    """
    for c, d in zip(by, dims, strict=True):
        n = x.shape[d]
        k = torch.arange(n // 2 + 1, device=x.device, dtype=x.dtype)
        turn = torch.polar(torch.ones_like(k), -2.0 * math.pi * c / n * k)
        if n % 2 == 0:
            turn[-1] = math.cos(math.pi * c)
        x = torch.fft.irfft(torch.fft.rfft(x, dim=d) * _along(turn, x.ndim, d), n=n, dim=d)
    return x


def fourier_slope(x: Tensor, dim: int) -> Tensor:
    """Return the derivative of the trigonometric interpolant at the samples, per sample."""
    n = x.shape[dim]
    k = torch.arange(n // 2 + 1, device=x.device, dtype=x.dtype)
    if n % 2 == 0:
        k[-1] = 0.0  # the cosine of the highest frequency is flat at the samples
    turn = torch.complex(torch.zeros_like(k), 2.0 * math.pi / n * k)
    return torch.fft.irfft(torch.fft.rfft(x, dim=dim) * _along(turn, x.ndim, dim), n=n, dim=dim)


def cubic_slope(x: Tensor, dim: int) -> Tensor:
    """Return the derivative of the cubic interpolant at the samples, per sample."""
    n = x.shape[dim]
    index = torch.arange(n, device=x.device)
    after, before = (index + 1).clamp(max=n - 1), (index - 1).clamp(min=0)
    return (x.index_select(dim, after) - x.index_select(dim, before)) / 2.0


def _along(line: Tensor, ndim: int, dim: int) -> Tensor:
    shape = [1] * ndim
    shape[dim] = -1
    return line.view(shape)

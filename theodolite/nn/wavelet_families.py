r"""Banks beside Morlet's: Gabor functions, bump-steerable wavelets, and tight ones that stay tight where they are subsampled.

All follow :func:`theodolite.nn.wavelets.morlet2d` in their order: scale by scale, at each the angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from theodolite.nn.wavelets import Bank, gabors, lowpass2d, morlet2d

__all__ = ["FAMILIES", "Family", "bump_steerable", "gabor2d", "meyer"]

_CENTER = 0.85 * math.pi  # frequency of the finest bump, radians a pixel


def gabor2d(shape: Sequence[int], J: int, L: int = 8) -> Bank:
    """Return the bank of Gabor functions: Morlet's wavelets without what makes their means zero.

    Parameters
    ----------
    shape : (int, int)
    J, L : int
        Scales and angles.
    """
    high = torch.stack([torch.fft.fft2(wave).real for wave, _ in gabors(shape, J, L)])
    return Bank(lowpass2d(shape, J), high, _steps(J, L), 1 << J)


def bump_steerable(shape: Sequence[int], J: int, L: int = 8) -> Bank:
    r"""Return a bank of wavelets whose spectra have compact support and turn with their angle.

    :math:`\hat\psi(\omega)\propto e^{-(|\omega|-\xi)^2/(\xi^2-(|\omega|-\xi)^2)}\cos^{L-1}(\arg\omega-\theta)` for
    :math:`0<|\omega|<2\xi` and angles within a quarter turn of :math:`\theta`, with :math:`\xi=0.85\pi\,2^{-j}`.  The
    low-pass is Morlet's Gaussian, and the largest energy 1.

    Parameters
    ----------
    shape : (int, int)
    J, L : int
        Scales and angles.

    References
    ----------
    Mallat, Zhang and Rochette, Information and Inference 9(3), 2020.
    """

    def radial(size: Tensor, j: int) -> Tensor:
        t = size / (_CENTER / 2**j) - 1.0
        inside = (t.abs() < 1.0).double()
        t = t * inside
        return inside * torch.exp(-t * t / (1.0 - t * t))

    high = torch.cat([_turned(shape, L, partial(radial, j=j)) for j in range(J)])
    return Bank(lowpass2d(shape, J), high, _steps(J, L), 1 << J).normalized("B1")


def meyer(shape: Sequence[int], J: int, L: int = 8) -> Bank:
    r"""Return a bank whose energy is 1 at every frequency, with all samples kept and with those that its steps keep.

    With :math:`\ell_c,h_c=\cos,\sin\big(\frac\pi2\nu(1+\log_2(|\omega|/c))\big)`, :math:`\nu` a smooth step from 0 to 1,
    the low-pass is :math:`\ell_{\pi2^{-J}}` and wavelets are :math:`\ell_{\pi2^{-j}}h_{\pi2^{-j-1}}`, the finest
    :math:`h_{\pi/2}` up to the corners, on the half of the frequencies about their angle.  Supports are no wider than what
    the kept samples resolve, so that nothing folds: both frame bounds of the subsampled bank are 1, up to rounding.

    Parameters
    ----------
    shape : (int,) or (int, int)
        Sides divisible by 2^J for the subsampled bank.
    J : int
        Octaves.
    L : int
        Angles, for images; with :math:`\cos^{L-1}` about each.  Signals have one wavelet an octave.

    Raises
    ------
    ValueError
        For other numbers of dimensions.
    """
    if len(shape) not in (1, 2):
        raise ValueError(f"shape: expected one or two sizes, got {tuple(shape)}")
    angles = L if len(shape) == 2 else 1

    def below(size: Tensor, cut: float) -> Tensor:
        return torch.cos(0.5 * math.pi * _step(size, cut))

    def above(size: Tensor, cut: float) -> Tensor:
        return torch.sin(0.5 * math.pi * _step(size, cut))

    def radial(size: Tensor, j: int) -> Tensor:
        band = above(size, math.pi / 2 ** (j + 1))
        return band if j == 0 else band * below(size, math.pi / 2**j)

    low = below(_polar(shape)[0], math.pi / 2**J)
    high = torch.cat([_turned(shape, angles, partial(radial, j=j)) for j in range(J)])
    return Bank(low, high, _steps(J, angles), 1 << J)


Family = Literal["morlet", "gabor", "bump", "meyer"]
FAMILIES: dict[str, Callable[[Sequence[int], int, int], Bank]] = {
    "morlet": morlet2d,
    "gabor": gabor2d,
    "bump": bump_steerable,
    "meyer": meyer,
}


def _steps(J: int, L: int) -> tuple[int, ...]:
    return tuple(1 << j for j in range(J) for _ in range(L))


def _step(size: Tensor, cut: float) -> Tensor:
    """Return a step of three continuous derivatives in the logarithm of frequency, from 0 at cut / 2 to 1 at the cut."""
    t = (1.0 + torch.log2(size / cut)).clamp(0.0, 1.0)
    return t**4 * (35.0 - 84.0 * t + 70.0 * t**2 - 20.0 * t**3)


def _polar(shape: Sequence[int], signs: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return sizes and angles of the frequencies of a grid, the Nyquist frequency of each axis with a given sign."""
    axes = []
    for k, n in enumerate(shape):
        axis = 2.0 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64)
        if n % 2 == 0 and signs is not None:
            axis[n // 2] = signs[k] * math.pi
        axes.append(axis)
    if len(axes) == 1:
        return axes[0].abs(), math.pi * (axes[0] < 0.0).double()
    x, y = torch.meshgrid(*axes, indexing="ij")
    return torch.hypot(x, y), torch.atan2(y, x)


def _turned(shape: Sequence[int], L: int, radial: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Return the L filters (L, ...) of a radial profile times a power of the cosine, on half of the frequencies each.

    Over all angles and both signs the squares of :math:`\cos^{L-1}` sum to :math:`L\binom{2L-2}{L-1}/4^{L-1}`: their mean,
    as angles sample all their harmonics.  A Nyquist frequency is its own opposite: there the energies of both signs are
    averaged, without which it would have another sum.
    """
    total = L * math.comb(2 * L - 2, L - 1) / 4 ** (L - 1)
    choices = [(1, 1), (1, -1), (-1, 1), (-1, -1)][:: 1 if len(shape) == 2 else 2]
    found = []
    for k in range(L):
        theta = (int(L - L / 2 - 1) - k) * math.pi / L
        energies = []
        for signs in choices:
            size, angle = _polar(shape, signs)
            turn = torch.cos(angle - theta)
            half = (turn > 1e-12).double() + 0.5 * (turn.abs() <= 1e-12)
            weight = half * turn.abs() ** (2 * L - 2) * 2.0 / total
            energies.append(weight * radial(size.clamp(min=1e-300)).square() * (size > 0))
        found.append(torch.stack(energies).mean(0).sqrt())
    return torch.stack(found)

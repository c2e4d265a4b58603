r"""Banks of Morlet wavelets on a line, Q to the octave.

.. math:: \hat\psi(\omega)\propto e^{-(\omega-\xi)^2/2\sigma^2}-\kappa e^{-\omega^2/2\sigma^2},\qquad\hat\psi(0)=0,

with frequencies in cycles a sample, periodic, and of unit :math:`\ell_1` norm in time.  Filters are evaluated where they are
not negligible only: in frequency, and in time for their norms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from theodolite.nn.wavelets import Bank

__all__ = ["Morlet", "border", "morlet1d", "morlets"]

_REACH = 9.0  # widths, beyond which a Gaussian is below 1e-17
_NEGLIGIBLE = 1e-18
_LOW_WIDTH = 0.1  # of the low-pass, times its support in time
_ALIASING = 5.0  # widths beyond a wavelet's frequency that its samples still resolve
_BORDER = 1e-3  # of the low-pass's l1 norm, that may lie beyond the border


class Morlet(NamedTuple):
    """Frequency and width of a wavelet in cycles a sample, and the scale: it is resolved by one in 2^j samples."""

    xi: float
    sigma: float
    j: int


def morlets(J: int, Q: int = 1) -> list[Morlet]:
    """Return the wavelets of a bank, by falling frequency.

    Frequencies fall by 2^(1/Q) and widths with them, down to a width of 0.1 2^(-J); Q - 1 more of that width follow, evenly
    spaced down to zero.

    Parameters
    ----------
    J : int
        The longest wavelets last for about 2^J samples.
    Q : int
        Wavelets to the octave.
    """
    ratio, least = math.pow(2.0, 1.0 / Q), _LOW_WIDTH / math.pow(2.0, J)
    xi = max(1.0 / (1.0 + math.pow(2.0, 3.0 / Q)), 0.35)
    # neighbors meet where each has half its energy
    sigma = xi * ((1.0 - 1.0 / ratio) / (1.0 + 1.0 / ratio)) / math.sqrt(math.log(2.0))
    pairs, elbow = [], sigma  # the reference's choice, where even the widest is too narrow
    while sigma > least:
        pairs.append((xi, sigma))
        elbow = xi
        if sigma <= least * ratio:
            break
        xi, sigma = xi / ratio, sigma / ratio
    pairs += [(elbow - q / Q * elbow, least) for q in range(1, Q)]
    return [Morlet(xi, s, math.floor(-math.log2(min(xi + _ALIASING * s, 0.5))) - 1) for xi, s in pairs]


def morlet1d(n: int, J: int, Q: int = 1, T: float | None = None) -> Bank:
    r"""Return the bank of Morlet wavelets on a periodic grid, with a Gaussian low-pass of width 0.1 / T.

    Parameters
    ----------
    n : int
        Number of samples.
    J : int
        The longest wavelets last for about 2^J samples.
    Q : int
        Wavelets to the octave.
    T : float, optional
        Support of the low-pass, in samples; 2^J by default.  No branch is subsampled by more.

    References
    ----------
    Andén and Mallat, IEEE Transactions on Signal Processing 62(16), 2014; Andreux et al., JMLR 21(60), 2020.
    """
    T = 2**J if T is None else T
    coarsest, waves = math.floor(math.log2(T)), morlets(J, Q)
    rows = np.zeros((len(waves) + 1, n))  # pages that no filter reaches are never touched
    for row, (xi, sigma) in zip(rows, [(0.0, _LOW_WIDTH / T), *(wave[:2] for wave in waves)], strict=True):
        _fill(row, xi, sigma)
    steps = tuple(1 << min(wave.j, coarsest) for wave in waves)
    return Bank(torch.from_numpy(rows[0]), torch.from_numpy(rows[1:]), steps, 1 << coarsest)


def border(n: int, T: float) -> int:
    """Return how many samples beyond its ends a signal of n needs, for all but 1e-3 of the low-pass of support T."""
    row = np.zeros(n)
    _fill(row, 0.0, _LOW_WIDTH / T)
    sizes = np.abs(np.fft.ifft(row))[: n // 2]
    enough = np.flatnonzero(np.cumsum(sizes[::-1])[::-1] <= _BORDER)
    return int(enough[0]) + 1 if len(enough) else n // 2


def _fill(row: NDArray[np.float64], xi: float, sigma: float) -> None:
    """Write the Fourier transform of a Morlet wavelet, or of a Gaussian if xi is zero, into zeros."""
    kappa = 0.0
    if xi:  # what makes the mean zero
        ours, low = (sum(math.exp(-0.5 * ((p - f) / sigma) ** 2) for p in (-1, 0, 1)) for f in (xi, 0.0))
        kappa = ours / low if ours > _NEGLIGIBLE * low else 0.0
    length = math.ceil(_REACH / (2.0 * math.pi * sigma))
    short = length <= len(row) // 2
    weight = 1.0 / _norm(xi, sigma, kappa, length) if short else 1.0
    _add_gaussian(row, xi, sigma, weight)
    if kappa > 0.0:
        _add_gaussian(row, 0.0, sigma, -kappa * weight)
    if xi:
        row[0] = 0.0
    if not short:  # than the period: its ends overlap
        row /= np.abs(np.fft.ifft(row)).sum() or 1.0  # on a grid of zero frequency alone a wavelet is nothing


def _add_gaussian(row: NDArray[np.float64], xi: float, sigma: float, weight: float) -> None:
    """Add a Gaussian of some width about xi, over three periods, where it is not negligible."""
    n = len(row)
    for period in (-1, 0, 1):
        start = max(math.floor((xi - _REACH * sigma - period) * n), 0)
        stop = min(math.ceil((xi + _REACH * sigma - period) * n) + 1, n)
        if start < stop:
            values = np.arange(start, stop) * (1.0 / (n * sigma)) + (period - xi) / sigma
            values *= values
            values *= -0.5
            row[start:stop] += weight * np.exp(values, out=values)


def _norm(xi: float, sigma: float, kappa: float, length: int) -> float:
    """Return the sum of a filter's sizes in time, up to a length on either side."""
    t = np.arange(1.0, length + 1.0)
    sizes = np.exp(-2.0 * (math.pi * sigma * t) ** 2)
    if kappa > 0.0:
        sizes *= np.sqrt(1.0 - 2.0 * kappa * np.cos(2.0 * math.pi * xi * t) + kappa * kappa)
    return sigma * math.sqrt(2.0 * math.pi) * (abs(1.0 - kappa) + 2.0 * float(sizes.sum()))

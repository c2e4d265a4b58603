r"""Solid harmonic wavelets of volumes: a harmonic polynomial times a Gaussian, in frequency as in space.

.. math:: \hat\psi_{j,l,m}(\omega)=c_l\,(-i)^l\,(\sigma_j|\omega|)^l\,Y_l^m(\omega/|\omega|)\,e^{-\sigma_j^2|\omega|^2/2},
   \qquad\sigma_j=\sigma_02^j.

A modulus that is summed over m does not change when the :math:`Y_l^m` are mixed by a unitary matrix: the real harmonics serve
as well, and they are polynomials, sums of products of one function of each coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from theodolite.nn.wavelets import Bank

__all__ = [
    "SAMPLINGS",
    "Sampling",
    "exponents",
    "frequencies",
    "harmonics",
    "powers",
    "reference_norm",
    "solid_harmonic3d",
]

Sampling = Literal["reference", "symmetric"]
SAMPLINGS = ("reference", "symmetric")
_Polynomial = dict[tuple[int, int, int], Fraction]


def exponents(degree: int) -> list[tuple[int, int, int]]:
    """Return the exponents (a, b, c) of the monomials of a degree, by falling a, then by falling b."""
    return [(degree - s, s - c, c) for s in range(degree + 1) for c in range(s + 1)]


def harmonics(degree: int) -> Tensor:
    r"""Return the real solid harmonics of a degree, orthonormal on the sphere, by their monomials.

    The first coordinate is the polar axis.  :math:`r^lY_l^m` is :math:`\Pi_l^m(z,r^2)(x+iy)^m` up to its norm, with
    :math:`\Pi_m^m=(2m-1)!!` and :math:`(l-m+1)\Pi_{l+1}^m=(2l+1)z\,\Pi_l^m-(l+m)r^2\,\Pi_{l-1}^m`.

    Parameters
    ----------
    degree : int

    Returns
    -------
    Tensor, shape (2 degree + 1, monomials)
        Float64, in the order of :func:`exponents`; row 0 is of m = 0, rows 2 m - 1 and 2 m are the real and the imaginary
        part for m.
    """
    columns = {powers: i for i, powers in enumerate(exponents(degree))}
    found = torch.zeros(2 * degree + 1, len(columns), dtype=torch.float64)
    real, imaginary = {(0, 0, 0): Fraction(1)}, dict[tuple[int, int, int], Fraction]()
    for m in range(degree + 1):
        before: _Polynomial = {}
        axial: _Polynomial = {(0, 0, 0): Fraction(math.prod(range(2 * m - 1, 0, -2)))}
        for n in range(m, degree):
            up = _times(axial, {(1, 0, 0): Fraction(2 * n + 1, n - m + 1)})
            down = {square: Fraction(-(n + m), n - m + 1) for square in ((2, 0, 0), (0, 2, 0), (0, 0, 2))}
            before, axial = axial, _plus(up, _times(before, down))
        ratio = Fraction(math.factorial(degree - m), math.factorial(degree + m))
        norm = math.sqrt((2 - (m == 0)) * (2 * degree + 1) * ratio / (4.0 * math.pi))
        for row, part in ((max(2 * m - 1, 0), real), (2 * m, imaginary)):
            for powers, value in _times(axial, part).items():
                found[row, columns[powers]] += norm * float(value)
        x, y = {(0, 0, 1): Fraction(1)}, {(0, 1, 0): Fraction(1)}
        minus = {(0, 1, 0): Fraction(-1)}
        real, imaginary = (
            _plus(_times(real, x), _times(imaginary, minus)),
            _plus(_times(real, y), _times(imaginary, x)),
        )
    return found


def _times(first: _Polynomial, second: _Polynomial) -> _Polynomial:
    found: _Polynomial = {}
    for (a, b, c), one in first.items():
        for (d, e, f), two in second.items():
            powers = (a + d, b + e, c + f)
            found[powers] = found.get(powers, Fraction(0)) + one * two
    return found


def _plus(first: _Polynomial, second: _Polynomial) -> _Polynomial:
    return {
        powers: first.get(powers, Fraction(0)) + second.get(powers, Fraction(0))
        for powers in first.keys() | second.keys()
    }


def reference_norm(degree: int) -> float:
    """Return the factor that Kymatio's filters of a degree carry in front of the polynomial, which is positive."""
    if degree == 0:  # its Gaussian has the value 1 at zero frequency, and no harmonic
        return math.sqrt(4.0 * math.pi)
    if degree % 2:
        root = 2.0 ** (0.5 * (degree + 3)) * math.sqrt(math.pi * (2 * degree + 1))
        return (2.0 * math.pi) ** 1.5 / (root * math.factorial((degree + 1) // 2))
    return (2.0 * math.pi) ** 0.5 / (math.sqrt(degree + 0.5) * math.prod(range(degree + 1, 0, -2)))


def frequencies(n: int, sampling: Sampling = "reference") -> Tensor:
    """Return the angular frequencies that filters are evaluated at, in the order of a discrete Fourier transform.

    Parameters
    ----------
    n : int
    sampling : {"reference", "symmetric"}
        As Kymatio, whose grid is one place off where n is odd: zero frequency has index 1.  Or as they are.

    Returns
    -------
    Tensor, shape (n,)
        Float64; the highest, of even n, is minus pi.
    """
    steps = torch.arange(n, dtype=torch.float64)
    if n % 2 and sampling == "reference":
        steps -= 1.0
        steps[steps > (n - 3) // 2] -= n
    else:
        steps[steps >= (n + 1) // 2] -= n
    return steps * (2.0 * math.pi / n)


def powers(n: int, sigma: float, highest: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    r"""Return :math:`(\sigma\omega)^ae^{-\sigma^2\omega^2/2}` for all a up to the highest, by parity at the highest frequency.

    Returns
    -------
    even, odd : Tensor, each of shape (highest + 1, n)
        Their sum is meant; `odd` holds the odd powers at the frequency minus pi of even n, whose opposite is itself and which
        therefore make a real input complex.  It vanishes for symmetric sampling, as the mean over both signs does.
    """
    omega = sigma * frequencies(n, sampling)
    values = torch.stack([omega**a for a in range(highest + 1)]) * torch.exp(-0.5 * omega.square())
    odd = torch.zeros_like(values)
    if n % 2 == 0:
        odd[1::2, n // 2] = values[1::2, n // 2]
        values = values - odd
    return values, odd if sampling == "reference" else torch.zeros_like(odd)


def solid_harmonic3d(
    shape: Sequence[int], J: int, L: int = 3, sigma_0: float = 1.0, sampling: Sampling = "reference"
) -> Bank:
    r"""Return the bank of solid harmonic wavelets on a periodic grid.

    Its energy is that of one stage of a harmonic scattering transform: :math:`\sum_{j,l}\|U_{j,l}x\|^2` lies between the frame
    bounds times :math:`\|x\|^2`.  Filters are without the phase :math:`(-i)^l`.

    Parameters
    ----------
    shape : (int, int, int)
    J, L : int
        Scales 0, ..., J and degrees 0, ..., L.
    sigma_0 : float
        Width of the finest, in grid steps.
    sampling : {"reference", "symmetric"}
        As Kymatio's; or with the mean over both signs of the highest frequency, and zero frequency at index 0 for odd sides,
        so that filters rotate with the grid.

    Returns
    -------
    Bank
        By scale, degree and harmonic.  The Gaussians are the wavelets of degree 0: there is no other low-pass, it is zero.
    """
    high = []
    for j in range(J + 1):
        axes = [torch.add(*powers(n, sigma_0 * 2**j, L, sampling)) for n in shape]
        for degree in range(L + 1):
            products = [
                axes[0][a][:, None, None] * axes[1][b][:, None] * axes[2][c] for a, b, c in exponents(degree)
            ]
            mixture = reference_norm(degree) * harmonics(degree)
            high.append(torch.tensordot(mixture, torch.stack(products), 1))
    bands = torch.cat(high)
    return Bank(torch.zeros_like(bands[0]), bands, (1,) * len(bands), 1)

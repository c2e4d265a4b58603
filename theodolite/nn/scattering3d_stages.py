r"""One stage of the solid harmonic scattering transform: the energy of all harmonics of a scale and a degree, at each sample.

A real solid harmonic is a sum of monomials and the Gaussian a product, so that a filter is a sum of products of convolutions
along single axes: matrix products, which all harmonics of a scale share, and no Fourier transform.  A real input needs real
numbers only.  Along an axis of even length an odd power of the highest frequency makes a filter complex, but what it adds
alternates in sign from sample to sample: that is one number, carried along as one more entry of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.nn.solid_harmonics import Sampling, exponents, harmonics, powers, reference_norm

__all__ = ["Stages", "stages"]

_NEGLIGIBLE = {torch.float32: 1e-9, torch.float64: 1e-17}  # of a convolution's largest value in frequency


@dataclass(frozen=True)
class _Scale:
    """What filters of one scale multiply by; an axis of n samples has e entries, n or n + 1, in the result.

    Attributes
    ----------
    last : Tensor, shape (L + 1, e_3, n_3)
        By power.
    middle : list of Tensor, each of shape (s + 1, e_2, n_2)
        By the sum s of the powers along the last two axes: powers s, ..., 0.
    first : list of Tensor, each of shape (monomials, e_1, n_1)
        By degree: the power that makes it up for each pair of the others.
    """

    last: Tensor
    middle: list[Tensor]
    first: list[Tensor]


@dataclass(frozen=True)
class Stages:
    """All stages of a transform, in one precision on one device.

    Attributes
    ----------
    shape : tuple of int
        Of the volumes.
    scales : list of _Scale
    mixtures : list of Tensor, each of shape (harmonics, monomials)
        By degree.
    crossed : list of list of (int, int, int)
        By degree: two axes and a harmonic that is odd in both.
    signs : list of Tensor, each of four dimensions
        The alternating signal along each axis.
    """

    shape: tuple[int, ...]
    scales: list[_Scale]
    mixtures: list[Tensor]
    crossed: list[list[tuple[int, int, int]]]
    signs: list[Tensor]

    def energies(self, x: Tensor, j: int, degrees: Sequence[int]) -> list[Tensor]:
        """Return the sums over m of squared moduli of convolutions.

        Parameters
        ----------
        x : Tensor, shape (b, n_1, n_2, n_3)
        j : int
            Scale.
        degrees : sequence of int

        Returns
        -------
        list of Tensor, each of shape (b, n_1, n_2, n_3)
            By degree.
        """
        pairs = self._pairs(x, j, max(degrees))
        return [self._energy(pairs, j, degree) for degree in degrees]

    def _pairs(self, x: Tensor, j: int, degree: int) -> Tensor:
        """Return volumes convolved along the last two axes, for degrees up to one: (pairs of powers, e_2 e_3 b, n_1)."""
        scale = self.scales[j]
        last = scale.last[: degree + 1]
        once = (last.flatten(0, 1) @ x.flatten(0, 2).T).view(degree + 1, -1, x.shape[2])
        middles = scale.middle[: degree + 1]
        if x.requires_grad:
            twice = torch.cat([torch.bmm(middle, once[: len(middle)].mT) for middle in middles])
        else:
            twice = x.new_empty((degree + 1) * (degree + 2) // 2, middles[0].shape[1], once.shape[1])
            for s, middle in enumerate(middles):
                torch.bmm(middle, once[: s + 1].mT, out=twice[s * (s + 1) // 2 :][: s + 1])
        return twice.view(len(twice), middles[0].shape[1] * last.shape[1] * len(x), x.shape[1])

    def _energy(self, pairs: Tensor, j: int, degree: int) -> Tensor:
        """Return what becomes of volumes (b, n_1, n_2, n_3) that have been convolved along two axes."""
        scale = self.scales[j]
        first = scale.first[degree]
        sides = (first.shape[1], scale.middle[0].shape[1], scale.last.shape[1])
        count = pairs.shape[1] // (sides[1] * sides[2])
        fields = (self.mixtures[degree] @ torch.bmm(first, pairs[: len(first)].mT).flatten(1)).view(
            -1, *sides, count
        )
        if fields.is_complex():
            energy = torch.view_as_real(fields).square().sum((0, -1))
        else:
            crossed = self._crossed(fields, degree)
            energy = (fields.square() if fields.requires_grad else fields.square_()).sum(0)
            for axis, n in enumerate(self.shape):
                energy = _joined(energy, axis, n)
            if crossed is not None:
                energy = (energy + crossed).clamp_min(0.0)
        return energy.reshape(-1, count).T.reshape(count, *self.shape)

    def _crossed(self, fields: Tensor, degree: int) -> Tensor | None:
        r"""Return what the alternating parts along two axes add to the energy, if anything.

        With :math:`f,f_1,f_2,f_{12}` for the parts of a field that alternate along none of two axes, one, or both, it is
        :math:`f-v_1v_2f_{12}+i(v_1f_1+v_2f_2)`, whose squared modulus is the sum of squares and
        :math:`2v_1v_2(f_1f_2-ff_{12})`.
        """
        total: Tensor | None = None
        for one, two, row in self.crossed[degree]:
            m, n, other = self.shape[one], self.shape[two], 3 - one - two
            if fields.shape[one + 1] == m or fields.shape[two + 1] == n:
                continue
            first, second = self.signs[one], self.signs[two]
            plain, along = fields[row].split((m, 1), one)
            (plain, right), (left, both) = plain.split((n, 1), two), along.split((n, 1), two)
            added = (left * (2.0 * second)) * (right * first)
            added = torch.addcmul(added, plain, both * (2.0 * first * second), value=-1)
            added = _joined(added, other, self.shape[other])
            total = added if total is None else total + added
        return total


def stages(
    shape: Sequence[int],
    J: int,
    L: int,
    sigma_0: float,
    covariant: bool,
    sampling: Sampling,
    dtype: torch.dtype,
    device: torch.device,
) -> Stages:
    """Return the stages of a transform; those of a real type serve sides that are even or sampled symmetrically.

    Parameters
    ----------
    shape : (int, int, int)
    J, L : int
    sigma_0 : float
    covariant : bool
        Whether all harmonics are summed over, or the one of order -l alone is taken.
    sampling : {"reference", "symmetric"}
    dtype : torch.dtype
        Real or complex, of the inputs.
    device : torch.device
    """
    mixtures = []
    crossed: list[list[tuple[int, int, int]]] = []
    for degree in range(L + 1):
        mixture = reference_norm(degree) * harmonics(degree)
        odd = torch.tensor(exponents(degree)) % 2 == 1
        crossed.append([])
        for one, two in ((0, 1), (0, 2), (1, 2)):
            rows = (mixture[:, odd[:, one] & odd[:, two]] != 0.0).any(1)
            crossed[-1] += [(one, two, int(row)) for row in rows.nonzero()]
        if degree and not covariant:
            mixture = mixture[-2:] / math.sqrt(2.0)
            if dtype.is_complex:  # a real input's real and imaginary part need not be put together
                mixture = torch.complex(mixture[0], -mixture[1])[None]
        mixtures.append(mixture.to(device, dtype))
    signs = [
        _alternating(n).to(device, dtype).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(shape)
    ]
    scales = []
    for j in range(J + 1):
        first, middle, last = (_convolutions(n, sigma_0 * 2**j, L, sampling, dtype).to(device) for n in shape)
        middles = [middle[: s + 1].flip(0) for s in range(L + 1)]
        firsts = [first[[a for a, _, _ in exponents(degree)]] for degree in range(L + 1)]
        scales.append(_Scale(last, middles, firsts))
    return Stages(tuple(shape), scales, mixtures, crossed, signs)


def _joined(energy: Tensor, axis: int, n: int) -> Tensor:
    """Return energies with that of the alternating part along an axis, if it has one, added to each sample's."""
    return energy if energy.shape[axis] == n else energy.narrow(axis, 0, n) + energy.narrow(axis, n, 1)


def _alternating(n: int) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(n, dtype=torch.float64) % 2)


def _convolutions(n: int, sigma: float, highest: int, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """Return the matrices (highest + 1, e, n) of the convolutions with powers times a Gaussian, of phase (-i)^a.

    If they are to be real and odd powers have an imaginary part that is not negligible, there is one more row: what the
    alternating signal is to be multiplied by.
    """
    even, odd = powers(n, sigma, highest, sampling)
    quarter = torch.tensor([1.0, -1j, -1.0, 1j], dtype=torch.complex128)
    phases = quarter[torch.arange(highest + 1) % 4, None]
    place = (torch.arange(n)[:, None] - torch.arange(n)) % n
    if dtype.is_complex:
        return torch.fft.ifft(phases * (even + odd))[:, place].to(dtype)
    plain = torch.fft.ifft(phases * even).real[:, place]
    largest = torch.maximum(even.abs().amax(1), odd.abs().amax(1))
    if bool((odd.abs().amax(1) > _NEGLIGIBLE[dtype] * largest).any()):
        value = (phases * odd).imag.sum(1)
        plain = torch.cat([plain, value[:, None, None] * _alternating(n) / n], 1)
    return plain.to(dtype)

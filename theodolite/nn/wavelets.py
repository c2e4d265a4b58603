r"""Banks of wavelets on a periodic grid, given by their Fourier transforms, and what they do to energy.

For a low-pass :math:`\phi` and band-passes :math:`\psi_\lambda` the frame bounds are the extremes of

.. math:: A(\omega)=|\hat\phi(\omega)|^2+\tfrac12\sum_\lambda\big(|\hat\psi_\lambda(\omega)|^2+|\hat\psi_\lambda(-\omega)|^2\big)

for real inputs and a low-pass that is real in time, and without the average over both signs for complex ones:
:math:`A\|x\|^2\le\|Wx\|^2\le B\|x\|^2`.  A bank that keeps every :math:`k_i`-th sample of branch i, multiplied by
:math:`k_i^{d/2}`, folds frequencies onto each other and has bounds of its own, which are those of small matrices, one for each
set of frequencies that fold together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from theodolite.linalg.lanczos import PAD, gamma
from theodolite.value import Value

__all__ = ["NORMS", "Bank", "FrameBounds", "Norm", "folded", "morlet2d"]

Norm = Literal["reference", "B1", "tight"]
NORMS = ("reference", "B1", "tight")
_PI = 3.1415  # in the reference's normalization: it makes the low-pass 1.0000294 at zero frequency
_EXPONENT = 44.0  # of a Gaussian, beyond which it is below 1e-19
_PERIODS = (-2, 3)  # that the reference sums a filter over
_FIBER = 64  # frequencies that fold together, up to which their matrices' eigenvalues are computed


@dataclass(frozen=True)
class FrameBounds:
    """The least and the largest energy that a bank makes of an input of energy 1.

    Attributes
    ----------
    lower, upper : Value
        Exact on the grid where branches keep all samples; one-sided bounds where they are subsampled.
    """

    lower: Value
    upper: Value


@dataclass(frozen=True, eq=False)
class Bank:
    r"""A low-pass and band-passes on a grid of d dimensions.

    Attributes
    ----------
    low : Tensor, shape (n_1, ..., n_d)
        Fourier transform of the low-pass, real.
    high : Tensor, shape (m, n_1, ..., n_d)
        Those of the band-passes, real.
    steps : tuple of int
        Every how many samples each band-pass is kept, in every dimension.
    low_step : int
        That of the low-pass; all others divide it.
    """

    low: Tensor
    high: Tensor
    steps: tuple[int, ...]
    low_step: int

    @property
    def dimension(self) -> int:
        """Number of dimensions of the grid."""
        return self.low.ndim

    def energy(self, real: bool = True) -> Tensor:
        r"""Return :math:`A(\omega)`, shape (n_1, ..., n_d), float64."""
        energy = self.low.double().square() + self.high.double().square().sum(0)
        return 0.5 * (energy + mirrored(energy)) if real else energy

    def frame_bounds(self, real: bool = True, subsampled: bool = False) -> FrameBounds:
        """Return the frame bounds.

        Parameters
        ----------
        real : bool
            Of real inputs; complex ones have wider bounds.
        subsampled : bool
            Of the branches as they are kept, each multiplied by its step to the power d / 2.
        """
        if subsampled:
            return self._subsampled(real)
        energy = self.energy(real)
        note = "extreme of the bank's energy over the frequencies of the grid"
        return FrameBounds(
            Value.exact(float(energy.min()), note=note), Value.exact(float(energy.max()), note=note)
        )

    def _subsampled(self, real: bool) -> FrameBounds:
        k, d = self.low_step, self.dimension
        if k**d <= _FIBER:
            gram = self._grams()
            if real:
                gram = 0.5 * (gram + self._flipped._grams())
            values = torch.linalg.eigvalsh(gram)
            size = float(gram.abs().sum(-1).max())
            slack = PAD * gamma(64 * k**d + 2 * len(self.high)) * size
            note = "eigenvalues of the matrices of the frequencies that fold together"
            low, high = float(values.min()) - slack, float(values.max()) + slack
            return FrameBounds(
                Value.bound(lower=max(low, 0.0), note=note), Value.bound(upper=high, note=note)
            )
        # each row of such a matrix: the sum of its entries' sizes bounds the largest eigenvalue
        rows = self._row_sums()
        if real:
            rows = 0.5 * (rows + mirrored(rows))
        high = float(rows.max()) * (1.0 + gamma(4 * len(self.high) + 4 * k**d))
        note = "sums of what folds onto each frequency"
        return FrameBounds(Value.bound(lower=0.0, note=note), Value.bound(upper=high, note=note))

    def _branches(self) -> list[tuple[Tensor, int]]:
        pairs = [(self.low, self.low_step), *zip(self.high, self.steps, strict=True)]
        return [(h.double(), k) for h, k in pairs]

    def _row_sums(self) -> Tensor:
        total = torch.zeros_like(self.low, dtype=torch.float64)
        for h, k in self._branches():
            sizes = h.abs()
            tiles = [k] * self.dimension
            total += sizes * folded(sizes, k).tile(tiles)
        return total

    def _grams(self) -> Tensor:
        """Return the matrices (fibers, k^d, k^d), k being the largest step: frequencies a grid's k-th part apart."""
        k, d, grid = self.low_step, self.dimension, self.low.shape

        def fibers(h: Tensor) -> Tensor:
            parts = h.reshape([size for n in grid for size in (k, n // k)])
            order = [2 * i + 1 for i in range(d)] + [2 * i for i in range(d)]
            return parts.permute(order).reshape(-1, k**d)

        place = torch.cartesian_prod(*[torch.arange(k)] * d).reshape(k**d, d)
        total = torch.zeros(math.prod(grid) // k**d, k**d, k**d, dtype=torch.float64)
        for h, step in self._branches():
            # aliases l and m fold together where they agree modulo k / step
            same = (place[:, None] % (k // step) == place[None] % (k // step)).all(-1)
            rows = fibers(h)
            total += rows[:, :, None] * rows[:, None, :] * same
        return total

    @cached_property
    def _flipped(self) -> Bank:
        """The bank of the filters at the opposite frequencies."""
        high = torch.stack([mirrored(h) for h in self.high]) if len(self.high) else self.high
        return Bank(mirrored(self.low), high, self.steps, self.low_step)

    def normalized(self, norm: Norm) -> Bank:
        """Return the bank with another normalization, for real inputs and all samples kept.

        Parameters
        ----------
        norm : {"reference", "B1", "tight"}
            As it is; divided by the root of B, so that B = 1; or divided, frequency by frequency, by the root of its
            energy, so that A = B = 1.

        Raises
        ------
        ValueError
            For "tight", if the bank loses a frequency altogether; or if `norm` is another word.
        """
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(map(repr, NORMS))}, got {norm!r}")
        if norm == "reference":
            return self
        energy = self.energy()
        root = energy.max().sqrt() if norm == "B1" else energy.sqrt()
        if not bool((root > 1e-12).all()):
            raise ValueError(
                "norm: expected a bank that keeps every frequency for 'tight', got one that loses some"
            )
        return Bank(self.low / root, self.high / root, self.steps, self.low_step)

    def completed(self) -> Bank:
        r"""Return the bank divided by the root of B, with one more real high-pass that makes up for what it loses.

        Its spectrum is :math:`\sqrt{1-A(\omega)}`, and all its samples are kept: A = B = 1 for real inputs.
        """
        bank = self.normalized("B1")
        rest = (1.0 - bank.energy()).clamp(min=0.0).sqrt()
        return Bank(bank.low, torch.cat([bank.high, rest[None]]), (*bank.steps, 1), bank.low_step)

    def transform(self, x: Tensor) -> Tensor:
        """Return the coefficients (..., 1 + m, n_1, ..., n_d) of signals (..., n_1, ..., n_d), all samples kept; complex."""
        dims = tuple(range(-self.dimension, 0))
        spectra = torch.fft.fftn(x, dim=dims).unsqueeze(-self.dimension - 1)
        return torch.fft.ifftn(spectra * self._filters(x), dim=dims)

    def inverse(self, coefficients: Tensor, real: bool = True) -> Tensor:
        """Return the signals of coefficients, by the dual frame; of others than a signal's, the nearest signal.

        Parameters
        ----------
        coefficients : Tensor, shape (..., 1 + m, n_1, ..., n_d)
        real : bool
            Whether signals are real.

        Raises
        ------
        ValueError
            If the bank loses a frequency, so that signals cannot be told from their coefficients.
        """
        energy = self.energy(real)
        if float(energy.min()) <= 1e-12 * float(energy.max()):
            raise ValueError(f"inverse: expected a bank with A > 0, got A = {float(energy.min()):.3g}")
        dims = tuple(range(-self.dimension, 0))
        spectra = torch.fft.fftn(coefficients, dim=dims) * self._filters(coefficients)
        spectrum = spectra.sum(-self.dimension - 1)
        if real:
            spectrum = torch.fft.fftn(torch.fft.ifftn(spectrum, dim=dims).real, dim=dims)
        found = torch.fft.ifftn(spectrum / energy.to(coefficients.device, spectrum.real.dtype), dim=dims)
        return found.real if real else found

    def _filters(self, x: Tensor) -> Tensor:
        """Return the spectra of all filters, the low-pass first, in the precision of signals."""
        dtype = x.dtype.to_real()
        return torch.cat([self.low[None], self.high]).to(x.device, dtype)


def mirrored(values: Tensor) -> Tensor:
    """Return values at the opposite frequencies of a grid."""
    dims = tuple(range(values.ndim))
    return values.flip(dims).roll([1] * values.ndim, dims)


def folded(values: Tensor, step: int, dims: Sequence[int] | None = None) -> Tensor:
    """Return the sums of values whose frequencies fold together where every `step`-th sample is kept."""
    for dim in range(values.ndim) if dims is None else dims:
        axis = dim % values.ndim
        values = values.unflatten(axis, (step, -1)).sum(axis)
    return values


def morlet2d(shape: Sequence[int], J: int, L: int = 8) -> Bank:
    r"""Return the bank of Morlet wavelets of J octaves and L angles on a periodic grid.

    :math:`\psi(u)=g_\sigma(u)(e^{i\xi\cdot u}-\beta)` with zero mean, :math:`\sigma=0.8\cdot2^j`, :math:`|\xi|=
    \frac{3\pi}4 2^{-j}` and slant 4 / L; the low-pass is a Gaussian of :math:`\sigma=0.8\cdot2^{J-1}`.  Filters are summed
    over five periods, and normalized as Kymatio's are.

    Parameters
    ----------
    shape : (int, int)
        Divisible by 2^J for a scattering transform.
    J, L : int
    """
    high = [
        torch.fft.fft2(wave - (wave.sum() / envelope.sum()) * envelope).real
        for wave, envelope in gabors(shape, J, L)
    ]
    steps = tuple(1 << j for j in range(J) for _ in range(L))
    return Bank(lowpass2d(shape, J), torch.stack(high), steps, 1 << J)


def lowpass2d(shape: Sequence[int], J: int) -> Tensor:
    """Return the Fourier transform of a Gaussian of width 0.8 times 2^(J - 1), summed over periods."""
    M, N = shape
    return torch.fft.fft2(_gabor((M, N), 0.8 * 2 ** (J - 1), 0.0, 1.0, 0.0)[0]).real


def gabors(shape: Sequence[int], J: int, L: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a wave under a Gaussian and the Gaussian, summed over periods and complex, for each scale and angle."""
    M, N = shape
    for j in range(J):
        for k in range(L):
            theta = (int(L - L / 2 - 1) - k) * math.pi / L
            yield _gabor((M, N), 0.8 * 2**j, theta, 4.0 / L, 0.75 * math.pi / 2**j)


def _gabor(
    shape: tuple[int, int], sigma: float, theta: float, slant: float, xi: float
) -> tuple[Tensor, Tensor]:
    """Return a wave under a Gaussian, and the Gaussian, summed over periods; complex."""
    c, s, sharp = math.cos(theta), math.sin(theta), 1.0 / (2.0 * sigma * sigma)
    a, b = sharp * (c * c + slant**2 * s * s), sharp * c * s * (1.0 - slant**2)
    e = sharp * (s * s + slant**2 * c * c)
    det = a * e - b * b
    # where a x^2 + 2 b x y + e y^2 may be less than the exponent
    reach = math.ceil(math.sqrt(_EXPONENT * e / det)), math.ceil(math.sqrt(_EXPONENT * a / det))
    x, y = (
        torch.arange(max(_PERIODS[0] * n, -r), min(_PERIODS[1] * n, r + 1), dtype=torch.float64)
        for n, r in zip(shape, reach, strict=True)
    )
    envelope = torch.exp(-(a * x * x)[:, None] - 2.0 * b * x[:, None] * y - e * y * y)
    envelope /= 2.0 * _PI * sigma * sigma / slant

    def periodic(values: Tensor) -> Tensor:
        for dim, at in ((0, x), (1, y)):
            size = list(values.shape)
            size[dim] = shape[dim]
            values = values.new_zeros(size).index_add_(dim, at.long() % shape[dim], values)
        return values

    waves = torch.exp(1j * xi * c * x)[:, None] * torch.exp(1j * xi * s * y)
    return periodic(envelope * waves), periodic(envelope.to(waves.dtype))

"""Mutual coherence of dictionaries: of a matrix, and of all shifts of a layer's filters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_BYTES = 64 << 20  # a block of filters in float64

_Product = tuple[float, int, int, tuple[int, ...]]  # size of an inner product, the two filters, the lag


@dataclass(frozen=True, slots=True)
class Coherence:
    """Coherence of the shifts of some filters.

    Attributes
    ----------
    mu : float
        Largest absolute inner product of two different unit-normalized atoms, in [0, 1].
    pair : tuple of int
        Numbers of the two filters that attain it.
    lag : tuple of int
        Shift of the second against the first, in input pixels; () for a matrix.
    welch : float
        What ``mu`` is at least for any filters of this number and shape, 0 if they could be orthonormal.
    atoms : int
        Filters that are not zero.
    zeros : int
        Filters that are zero, which are left out.
    """

    mu: float
    pair: tuple[int, int]
    lag: tuple[int, ...]
    welch: float
    atoms: int
    zeros: int

    @property
    def tolerated_sparsity(self) -> float:
        """``(1 + 1/mu)/2``: a code with fewer nonzeros is the only one that sparse, and is found."""
        return math.inf if self.mu == 0.0 else 0.5 * (1.0 + 1.0 / self.mu)


def mutual_coherence(dictionary: Tensor) -> Coherence | None:
    """Return the coherence of a matrix whose columns are the atoms.

    Parameters
    ----------
    dictionary : Tensor, shape (m, N)

    Returns
    -------
    Coherence or None
        None if there are fewer than two nonzero atoms.
    """
    return filter_coherence(dictionary.T)


def filter_coherence(
    weight: Tensor, *, stride: Sequence[int] = (), dilation: Sequence[int] = (), groups: int = 1
) -> Coherence | None:
    r"""Return the coherence of all shifts of some filters, as a convolutional layer makes them.

    An atom is a filter at one of the positions that the stride reaches, on an image without
    borders; filters of different groups see different channels and are orthogonal.  The inner
    products are the cross-correlations of unit-normalized filters at all lags, the zero lag of a
    filter with itself left out, computed in float64, lag by lag.

    Parameters
    ----------
    weight : Tensor, shape (filters, channels, ...)
        As in a convolution; (filters, inputs) for a linear layer, which has no shifts.
    stride, dilation : sequence of int
        One number an axis of the kernel.
    groups : int
        As in a convolution.

    Returns
    -------
    Coherence or None
        None if no two atoms can be compared: a single filter with a single lag.

    Notes
    -----
    *Welch bound*, from Welch (1974) at every frequency: let g = filters/groups, r the number of
    input channels of a group times the input positions, modulo the stride, that a kernel covers (the
    rank that the Gram matrix can have at a frequency), and L the number of lags.  By Parseval the squared
    cross-correlations add up to the mean over frequencies of :math:`\|G\|_F^2 \ge (\mathrm{tr}\,G)^2/r`,
    whose mean is at least :math:`g^2/r`; g of them are ones, and at most :math:`g^2 L - g` others are not
    zero, so :math:`\mu^2 \ge (g/r - 1)/(g L - 1)`.
    """
    axes = weight.ndim - 2
    stride, dilation = tuple(stride) or (1,) * axes, tuple(dilation) or (1,) * axes
    # shifting by the stride moves a dilated kernel onto its own grid only at these multiples of its taps
    steps = tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
    size = len(weight) // groups
    found: list[_Product] = []
    welch, kept = 0.0, 0
    for group in range(groups):
        filters = _UnitFilters(weight.detach()[group * size : (group + 1) * size], group * size)
        kept += len(filters.numbers)
        welch = max(welch, _welch(len(filters.numbers), weight.shape, steps))
        found += (_largest(filters, lag) for lag in _lags(weight.shape[2:], steps))
    best = max(found, key=lambda product: product[0])
    if best[0] < 0.0:
        return None
    lag = tuple(step * d for step, d in zip(best[3], dilation, strict=True))
    return Coherence(min(1.0, best[0]), (best[1], best[2]), lag, welch, kept, len(weight) - kept)


def coherence_flops(weight: Tensor, *, stride: Sequence[int] = (), groups: int = 1) -> float:
    """Return the number of multiplications and additions that :func:`filter_coherence` takes, about."""
    kernel = weight.shape[2:]
    steps = tuple(stride) or (1,) * len(kernel)
    overlaps = sum(
        math.prod(k - abs(step) for k, step in zip(kernel, lag, strict=True)) for lag in _lags(kernel, steps)
    )
    return 2.0 * (len(weight) / groups) ** 2 * groups * weight.shape[1] * (overlaps - 0.5 * math.prod(kernel))


class _UnitFilters:
    """Nonzero filters, normalized in float64 a block at a time."""

    def __init__(self, weight: Tensor, offset: int) -> None:
        self.weight = weight
        width = max(1, weight[:1].numel())
        self.rows = max(1, min(4096, _BLOCK_BYTES // (8 * width)))
        blocks = [block.flatten(1).double() for block in weight.split(self.rows)]
        norms = torch.cat([torch.linalg.vector_norm(block, dim=1) for block in blocks])
        self.own = torch.nonzero(norms > 0).flatten()
        self.norms = norms[self.own]
        self.numbers = (self.own + offset).tolist()

    def block(self, start: int) -> Tensor:
        """Return the filters from the start-th nonzero one, shape (rows, channels, *kernel)."""
        rows = self.own[start : start + self.rows]
        norms = self.norms[start : start + self.rows]
        return self.weight[rows].double() / norms.view(-1, *[1] * (self.weight.ndim - 1))


def _lags(kernel: Sequence[int], steps: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the lags, in taps, at which two shifted kernels overlap; of a lag and its negative, one."""
    ranges = [range(-((k - 1) // s) * s, k, s) for k, s in zip(kernel, steps, strict=True)]
    for lag in itertools.product(*ranges):
        if lag >= (0,) * len(lag):
            yield lag


def _largest(filters: _UnitFilters, lag: tuple[int, ...]) -> _Product:
    """Return the largest |<f_i, f_j shifted by lag>| with i and j; at zero lag over i < j alone."""
    later = (..., *(slice(max(0, step), None if step >= 0 else step) for step in lag))
    earlier = (..., *(slice(max(0, -step), None if step <= 0 else -step) for step in lag))
    best: _Product = (-1.0, 0, 0, lag)
    count, zero_lag = len(filters.numbers), not any(lag)
    for top in range(0, count, filters.rows):
        left = filters.block(top)[later].flatten(1)
        for side in range(top if zero_lag else 0, count, filters.rows):
            gram = (left @ filters.block(side)[earlier].flatten(1).T).abs_()
            if zero_lag and side == top:
                gram.masked_fill_(torch.ones_like(gram, dtype=torch.bool).tril_(), -1.0)
            i, j = divmod(int(gram.argmax()), gram.shape[1])
            if float(gram[i, j]) > best[0]:
                best = (float(gram[i, j]), filters.numbers[top + i], filters.numbers[side + j], lag)
    return best


def _welch(filters: int, shape: Sequence[int], steps: Sequence[int]) -> float:
    rank = shape[1] * math.prod(min(s, k) for s, k in zip(steps, shape[2:], strict=True))
    lags = math.prod(2 * ((k - 1) // s) + 1 for s, k in zip(steps, shape[2:], strict=True))
    if filters <= rank:
        return 0.0
    return math.sqrt((filters / rank - 1.0) / (filters * lags - 1.0))

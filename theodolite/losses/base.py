r"""What every convex loss of the predictions offers: its value, its gradient and its dual.

A certificate of optimality needs from a loss :math:`\ell(Z)` its value, its gradient
and its *dual value* :math:`d(Q) = -\ell^*(-Q)`: for every ``Z`` and every ``Q``

.. math:: \ell(Z) \ge d(Q) - \langle Q, Z\rangle \qquad\text{(Fenchel-Young)},

with equality at :math:`Q = -\nabla\ell(Z)`.  A dual point is usually sought on the ray
:math:`Q = tR`, :math:`R = -\nabla\ell(Z)`.  Everything is computed in float64.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from theodolite.linalg.dense import largest
from theodolite.losses.concave import maximize_concave
from theodolite.losses.inputs import first, integers

# a point this close to the domain of the dual counts as its nearest point there
DOMAIN_TOLERANCE = 1e-11

_BLOCK = 1 << 16  # numbers summed at once

Movable = TypeVar("Movable")
LossType = TypeVar("LossType", bound="Loss")


def accurate_sum(matrix: Tensor, *others: Tensor, of: Callable[..., Tensor] | None = None) -> float:
    """Return the sum of an (n, k) matrix, whose rounding error grows with k but not with n.

    With `of` the sum of that function of some blocks of rows of the matrices, so that it is never held as a
    whole: a block stays in the cache.

    The sums of the rows are split into multiples of one power of two, which add up exactly in blocks,
    and rests below 2^-36 of the block's largest: all in all the result is off by less than one rounding
    of the sum of their sizes.  Source: Rump, Ogita and Oishi, SIAM J. Sci. Comput. 31 (2008) 189-224.
    """

    def rows(*blocks: Tensor) -> Tensor:
        block = blocks[0] if of is None else of(*blocks)
        return block[:, 0] if block.shape[1] == 1 else block.sum(1)

    parts: list[float] = []
    for blocks in zip(*(x.split(_BLOCK) for x in (matrix, *others)), strict=True) if len(matrix) else ():
        block = rows(*blocks)
        top = largest(block)
        if not top < 1e290:  # what is split off might overflow
            return _plain_sum(rows(matrix, *others))
        # a power of two above twice the sum of the sizes in the block
        unit = math.ldexp(1.0, math.frexp(top)[1] + _BLOCK.bit_length())
        high = (block + unit).sub_(unit)
        parts += [float(high.sum()), float((block - high).sum())]
    return math.fsum(parts)


def _plain_sum(rows: Tensor) -> float:
    try:
        return math.fsum(rows.tolist())
    except OverflowError:  # finite terms, infinite sum
        return float(rows.sum())


def moved(thing: Movable, device: torch.device | str) -> Movable:
    """Return a shallow copy whose tensors, and those of the objects that it holds, lie on a device."""
    twin = copy.copy(thing)
    for name, held in vars(thing).items():
        if isinstance(held, Tensor) or hasattr(held, "to"):
            object.__setattr__(twin, name, held.to(device))
    return twin


@dataclass(frozen=True, eq=False)
class Support:
    """The entries of an (n, m) matrix that a loss looks at.

    Attributes
    ----------
    rows, cols : Tensor, shape (size,), int64
        Indices of the entries, none twice.
    shape : tuple of int
        Shape (n, m) of the whole matrix.
    """

    rows: Tensor
    cols: Tensor
    shape: tuple[int, int]

    @classmethod
    def checked(cls, rows: Any, cols: Any, shape: tuple[int, int]) -> Support:
        """Return the support of given indices, in the order given.

        Parameters
        ----------
        rows, cols : array-like of int, shape (size,)
            Indices of the entries.
        shape : tuple of int
            Shape (n, m) of the whole matrix.

        Raises
        ------
        ValueError
            If there is no entry, the lengths differ, an index is out of range or an entry is there twice.
        """
        n, m = shape
        rows, cols = integers(rows, "rows"), integers(cols, "cols")
        if len(rows) != len(cols):
            raise ValueError(f"cols: expected {len(rows)} indices, as many as rows, got {len(cols)}")
        if not len(rows):
            raise ValueError("rows: expected at least one entry, got none")
        for name, index, end in (("rows", rows, n), ("cols", cols, m)):
            outside = (index < 0) | (index >= end)
            if bool(outside.any()):
                (place,) = first(outside)
                raise ValueError(f"{name}: expected 0 to {end - 1}, got {int(index[place])} at {place}")
        support = cls(rows, cols, (int(n), int(m)))
        if not support.sorted:
            order = torch.argsort(rows * m + cols, stable=True)
            again = torch.diff((rows * m + cols)[order]) == 0
            if bool(again.any()):
                (place,) = first(again)
                one, two = (int(i) for i in order[place : place + 2])
                entry = f"({int(rows[one])}, {int(cols[one])})"
                raise ValueError(f"rows, cols: expected each entry once, got {entry} at {one} and at {two}")
        return support

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.rows)

    def some(self, most: int) -> Support:
        """Return evenly spaced entries, at most as many as given, or all of them."""
        step = -(-self.size // most)
        return self if step == 1 else Support(self.rows[::step], self.cols[::step], self.shape)

    @cached_property
    def sorted(self) -> bool:
        """Whether the entries are in the order of rows, and of columns within a row."""
        place = self.rows * self.shape[1] + self.cols
        return bool((place[1:] > place[:-1]).all())

    def to(self, device: torch.device | str) -> Support:
        """Return the same support on a device."""
        return moved(self, device)


class Loss(ABC):
    """A convex, differentiable loss of a matrix of predictions.

    Predictions ``Z`` and dual points ``Q`` have the shape ``prediction_shape``: that of the
    whole matrix, or ``(support.size,)`` for a loss that looks at some entries only.

    A subclass sets ``shape``, ``scale`` and, where it applies, ``support``, and writes the
    abstract methods; the rest follows.

    Attributes
    ----------
    shape : tuple of int
        Shape (n, k) of the whole matrix of predictions.
    scale : float
        Factor in front of the sum: 1/n for a mean.
    support : Support or None
        The entries that matter; None for all.
    """

    shape: tuple[int, int]
    scale: float
    support: Support | None = None

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """Shape of the predictions that the loss takes."""
        return self.shape if self.support is None else (self.support.size,)

    @abstractmethod
    def zeros(self) -> Tensor:
        """Return zero predictions, float64, on the device of the targets."""

    @abstractmethod
    def value(self, Z: Tensor) -> float:
        """Return the loss of predictions."""

    @abstractmethod
    def gradient(self, Z: Tensor) -> Tensor:
        """Return the gradient with respect to the predictions, in their shape, float64."""

    @abstractmethod
    def dual(self, Q: Tensor) -> float:
        """Return -l*(-Q); -inf outside its domain."""

    @abstractmethod
    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return the ends of the interval of t >= 0 on which ``t * R`` is used as a dual point."""

    @abstractmethod
    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return what float64 rounding errors are relative to.

        ``value(Z)`` and ``dual(Q)`` are off by at most ``gamma(2 k + 32)`` (see
        :func:`theodolite.linalg.lanczos.gamma`) times the first two numbers; the dual value
        belongs to the nearest point of its domain, of which each row is at most the same
        multiple of ``rows`` away.

        Returns
        -------
        primal, dual : float
            Sums of the sizes of the terms in ``value(Z)`` and ``dual(Q)``.
        rows : Tensor, shape (n,), or (size,) on a support
            Size of each row (entry) that the rounding of Q, and its repair to a point of
            the domain, is relative to.
        """

    @abstractmethod
    def smoothness(self, Z: Tensor) -> float:
        """Return an upper bound of the Hessian's eigenvalues at all points within 1e-3 of Z in each entry."""

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize ``dual(t R) - linear t - quadratic t^2 / 2``, concave in t.

        Parameters
        ----------
        R : Tensor
            Direction of the ray, in the shape of the predictions.
        upper : float
            No t above it is tried (lambda over an upper bound of the polar, say).
        linear, quadratic : float
            Further terms of the dual objective.

        Returns
        -------
        t, maximum : float
            Any t is a valid dual point, so that a search serves as well as a formula.  The
            default searches until nothing larger is possible by 1e-11 of the maximum.
        """

        def objective(t: float) -> float:
            return self.dual(t * R) - linear * t - 0.5 * quadratic * t * t

        return maximize_concave(objective, min(upper, self.t_range(R)[1]))

    def smallest_t(self, R: Tensor, wanted: float) -> float | None:
        """Return (to one part in a million of the best t) the smallest t with ``dual(t R) >= wanted``.

        None when no t reaches it.
        """
        high, best = self.best_t(R)
        if not best >= wanted or high == 0.0:
            return None
        low = 0.0
        for _ in range(20):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.dual(middle * R) >= wanted else (middle, high)
        return high

    def rescaled(self: LossType, scale: float) -> LossType:
        """Return the same loss with another factor in front."""
        twin = copy.copy(self)
        twin.scale = check_positive(scale, "scale")
        return twin

    def to(self: Movable, device: torch.device | str) -> Movable:
        """Return the same loss with its targets on a device."""
        return moved(self, device)

    def _check(self, tensor: Tensor, name: str) -> Tensor:
        if tuple(tensor.shape) != self.prediction_shape:
            raise ValueError(f"{name}: expected shape {self.prediction_shape}, got {tuple(tensor.shape)}")
        return tensor.double()


class SampleLoss(Loss):
    """A twice differentiable loss that is a sum over samples, the rows: what a head is certified with."""

    @abstractmethod
    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the Hessian at Z as a function of (n, k), and its mean diagonal in each row, shape (n,)."""

    @abstractmethod
    def center(self, Q: Tensor) -> Tensor:
        """Return a point of the dual's domain near Q whose columns sum to zero (for a free bias)."""

    @abstractmethod
    def rows(self, index: slice | Tensor) -> SampleLoss:
        """Return the same loss, with the same scale, on some of its rows."""


def check_positive(number: float, name: str) -> float:
    """Return the number as a float, or refuse one that is not finite and positive."""
    try:
        found = float(number)
    except (TypeError, ValueError):
        found = math.nan
    if not 0.0 < found < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {number!r}")
    return found

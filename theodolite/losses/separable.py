r"""Losses that are sums of one convex function over the entries of the predictions.

With :math:`\ell(Z) = s\sum_{ij} f(z_{ij}; y_{ij})` and :math:`d(q) = -f^*(-q)`, the dual value is
:math:`s\sum_{ij} d(q_{ij}/s)`, and its domain is a box, which always contains 0 here.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from theodolite.linalg.lanczos import UNIT_ROUNDOFF
from theodolite.losses.base import DOMAIN_TOLERANCE, SampleLoss, accurate_sum, check_positive
from theodolite.losses.inputs import numbers

Separable = TypeVar("Separable", bound="SeparableLoss")


class SeparableLoss(SampleLoss):
    """Scale times the sum of a convex function of each prediction.

    A subclass writes the function, its first two derivatives and its dual on tensors, entry
    by entry and without the scale.  All its tensors have the shape (n, k) of the targets.

    Parameters
    ----------
    targets : array-like, shape (n,) or (n, k)
        Targets; a vector is one column.
    name : str
        What messages call the targets.
    scale : float
        Factor in front of the sum.

    Attributes
    ----------
    Y : Tensor, shape (n, k)
        The targets, float64.

    Raises
    ------
    ValueError
        If the targets are not finite numbers of that shape, or ``scale`` is not positive.
    """

    def __init__(self, targets: Any, name: str, scale: float) -> None:
        self.Y = numbers(targets, name)
        self.scale = check_positive(scale, "scale")
        self.shape = (self.Y.shape[0], self.Y.shape[1])

    @abstractmethod
    def _values(self, Z: Tensor) -> Tensor:
        """Return f(z)."""

    @abstractmethod
    def _slopes(self, Z: Tensor) -> Tensor:
        """Return f'(z)."""

    @abstractmethod
    def _bends(self, Z: Tensor) -> Tensor:
        """Return f''(z), or a generalized one."""

    @abstractmethod
    def _duals(self, q: Tensor) -> Tensor:
        """Return d(q) for q in the box."""

    @abstractmethod
    def _box(self) -> tuple[Tensor, Tensor]:
        """Return the ends of the domain of d, which enclose 0 and broadcast to the targets."""

    @abstractmethod
    def _value_sizes(self, Z: Tensor) -> Tensor:
        """Return what the rounding error of f(z) is relative to."""

    @abstractmethod
    def _dual_sizes(self, q: Tensor) -> Tensor:
        """Return what the rounding error of d(q) is relative to, that of q itself included."""

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return torch.zeros_like(self.Y)

    def value(self, Z: Tensor) -> float:
        """Return scale times the sum."""
        return self.scale * accurate_sum(self._values(self._check(Z, "Z")))

    def gradient(self, Z: Tensor) -> Tensor:
        """Return scale times the derivatives."""
        return self.scale * self._slopes(self._check(Z, "Z"))

    def dual(self, Q: Tensor) -> float:
        """Return scale times the sum of d(q / scale); -inf outside the box."""
        q = self._check(Q, "Q") / self.scale
        low, high = self._box()
        ends = [torch.where(end.isfinite(), end.abs(), 0.0) for end in (low, high)]
        inside = q.clamp(low, high)
        if not bool(((q - inside).abs() <= DOMAIN_TOLERANCE * torch.maximum(*ends)).all()):  # or NaN
            return -torch.inf
        return self.scale * accurate_sum(self._duals(inside))

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return (0, t) with the largest t for which ``t R`` is in the box, inf if there is none.

        It is at least 1 at every residual.
        """
        r = self._check(R, "R") / self.scale
        low, high = self._box()
        limits = torch.where(r == 0.0, torch.inf, torch.where(r > 0.0, high, low) / r)
        return 0.0, max(0.0, float(limits.min()))  # 0 if R has a NaN

    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return multiplication by scale times the second derivatives."""
        bends = self.scale * self._bends(self._check(Z, "Z"))
        return lambda V: bends * V, bends.mean(1)

    def center(self, Q: Tensor) -> Tensor:
        """Return a dual point whose columns sum to zero, in the box because it is shrunk toward 0.

        Each column's positive or negative entries, whichever weigh more, are multiplied by
        the factor that makes them weigh the same.
        """
        low, high = self._box()
        Q = self._check(Q, "Q").clamp(self.scale * low, self.scale * high)
        up, down = Q.clamp(min=0.0), (-Q).clamp(min=0.0)
        above, below = up.sum(0), down.sum(0)
        least = torch.minimum(above, below)
        shrink_up, shrink_down = (torch.where(s > least, least / s, 1.0) for s in (above, below))
        return shrink_up * up - shrink_down * down

    def rows(self: Separable, index: slice | Tensor) -> Separable:
        """Return the loss on some rows."""
        twin = copy.copy(self)
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(twin, name, held[index])
        twin.shape = (twin.Y.shape[0], twin.Y.shape[1])
        return twin

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding is relative to."""
        primal = accurate_sum(self._value_sizes(self._check(Z, "Z")))
        q = self._check(Q, "Q") / self.scale
        inside = q.clamp(*self._box())
        dual = accurate_sum(self._dual_sizes(inside))
        # a point that the tolerance admits may be further away than rounding explains
        rows = self.scale * (q.abs() + (q - inside).abs() / UNIT_ROUNDOFF)
        return self.scale * primal, self.scale * dual, rows.norm(dim=1)

"""Huber's loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from theodolite.losses.base import accurate_sum
from theodolite.losses.separable import SeparableLoss


class HuberLoss(SeparableLoss):
    r"""Huber's loss: ``scale * sum h(Y - Z)``, quadratic near zero and linear beyond delta.

    :math:`h(r) = r^2/2` for :math:`|r|\le\delta`, else :math:`\delta|r| - \delta^2/2`.  Its
    dual value is :math:`\langle Q, Y\rangle - \|Q\|_F^2/(2\,\text{scale})`, for entries
    of Q of size at most :math:`\delta\,\text{scale}`.  It has a second derivative except at
    :math:`|r|=\delta`, where ``curvature`` takes 1.

    Parameters
    ----------
    Y : array-like, shape (n,) or (n, k)
        Targets.
    delta : float
        Where the loss becomes linear.
    scale : float
        1/(n k) makes it the mean (``torch.nn.HuberLoss``).

    Raises
    ------
    ValueError
        If a target is not finite, there is none, or ``delta`` or ``scale`` is not positive.
    """

    def __init__(self, Y: Any, delta: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(Y, "Y", scale)
        if not (math.isfinite(delta) and delta > 0):
            raise ValueError(f"delta: expected a finite number > 0, got {delta}")
        self.delta = float(delta)

    def _values(self, Z: Tensor) -> Tensor:
        size = (self.Y - Z).abs()
        short = size.clamp(max=self.delta)
        return short * (size - 0.5 * short)

    def _slopes(self, Z: Tensor) -> Tensor:
        return (Z - self.Y).clamp(-self.delta, self.delta)

    def _bends(self, Z: Tensor) -> Tensor:
        return ((self.Y - Z).abs() <= self.delta).double()

    def _duals(self, q: Tensor) -> Tensor:
        return q * self.Y - 0.5 * q.square()

    def _box(self) -> tuple[Tensor, Tensor]:
        end = torch.full_like(self.Y[:1, :1], self.delta)
        return -end, end

    def _value_sizes(self, Z: Tensor) -> Tensor:
        return 2.0 * self._values(Z)

    def _dual_sizes(self, q: Tensor) -> Tensor:
        return (q * self.Y).abs() + q.square()

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize along the ray in closed form: a parabola, cut where t R leaves the domain."""
        R = self._check(R, "R")
        slope = accurate_sum(R * self.Y) - linear
        bend = accurate_sum(R.square()) / self.scale + quadratic
        best = 0.0 if bend == 0.0 else max(slope / bend, 0.0)
        t = min(best, upper, self.t_range(R)[1])
        return t, slope * t - 0.5 * bend * t * t

    def smoothness(self, Z: Tensor) -> float:
        """Return scale, the largest second derivative."""
        return self.scale

"""Squared errors, of all entries or of the observed ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from theodolite.losses.base import SampleLoss, accurate_sum, check_positive
from theodolite.losses.inputs import numbers


class SquaredLoss(SampleLoss):
    r"""Squared error ``scale * 1/2 ||Y - Z||_F^2``.

    Its dual value is :math:`\langle Q, Y\rangle - \|Q\|_F^2 / (2\,\text{scale})`, for every Q.

    Parameters
    ----------
    Y : array-like, shape (n, k)
        Targets.
    scale : float
        2/(n k) makes it the mean over samples and outputs (``torch.nn.MSELoss``).

    Raises
    ------
    ValueError
        If ``Y`` is not a matrix of finite numbers, is empty, or ``scale`` is not positive.
    """

    def __init__(self, Y: Any, scale: float = 1.0) -> None:
        self.Y = numbers(Y, "Y", vectors=False)
        self.scale = check_positive(scale, "scale")
        self.shape = (self.Y.shape[0], self.Y.shape[1])

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return torch.zeros_like(self.Y)

    def value(self, Z: Tensor) -> float:
        """Return scale/2 ||Y - Z||_F^2."""
        return 0.5 * self.scale * accurate_sum(self.Y, self._check(Z, "Z"), of=_squared_error)

    def gradient(self, Z: Tensor) -> Tensor:
        """Return scale (Z - Y)."""
        difference = self._check(Z, "Z") - self.Y
        return difference if self.scale == 1.0 else difference.mul_(self.scale)

    def dual(self, Q: Tensor) -> float:
        """Return <Q, Y> - ||Q||_F^2 / (2 scale)."""
        Q = self._check(Q, "Q")
        return accurate_sum(Q, self.Y, of=torch.mul) - accurate_sum(Q, of=torch.square) / (2 * self.scale)

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return (0, inf): every Q is in the domain, so t may exceed 1."""
        self._check(R, "R")
        return 0.0, math.inf

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize along the ray in closed form."""
        R = self._check(R, "R")
        slope = accurate_sum(R, self.Y, of=torch.mul) - linear
        bend = accurate_sum(R, of=torch.square) / self.scale + quadratic
        t = 0.0 if bend == 0.0 else min(max(slope / bend, 0.0), upper)
        return t, slope * t - 0.5 * bend * t * t

    def smallest_t(self, R: Tensor, wanted: float) -> float | None:
        """Solve the quadratic equation of the dual value along the ray."""
        slope, bend = accurate_sum(R, self.Y, of=torch.mul), accurate_sum(R, of=torch.square) / self.scale
        room = slope * slope - 2.0 * bend * wanted
        if wanted <= 0.0 or not (room >= 0.0 < slope):
            return 0.0 if wanted <= 0.0 else None
        return 2.0 * wanted / (slope + math.sqrt(room))

    def smoothness(self, Z: Tensor) -> float:
        """Return scale."""
        return self.scale

    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return multiplication by ``scale``."""
        return lambda V: self.scale * V, torch.full_like(self.Y[:, 0], self.scale)

    def center(self, Q: Tensor) -> Tensor:
        """Return Q less the mean of each column."""
        Q = self._check(Q, "Q")
        return Q - Q.mean(0)

    def rows(self, index: slice | Tensor) -> SquaredLoss:
        """Return the loss on some rows."""
        return SquaredLoss(self.Y[index], self.scale)

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding is relative to."""
        Z, Q = self._check(Z, "Z"), self._check(Q, "Q")
        # inner products alone, no matrix in between: (|y| + |z|)^2 <= 2 y^2 + 2 z^2, and Cauchy and Schwarz
        y, z, q = (float(torch.linalg.vector_norm(x)) for x in (self.Y, Z, Q))
        rows = Q[:, 0].abs() if Q.shape[1] == 1 else Q.norm(dim=1)
        return 2.0 * self.scale * (y * y + z * z), q * y + q * q / (2 * self.scale), rows


def _squared_error(Y: Tensor, Z: Tensor) -> Tensor:
    return (Y - Z).square_()

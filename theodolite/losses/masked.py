"""Losses that look at some entries of a matrix only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from theodolite.losses.base import Loss, SampleLoss, Support
from theodolite.losses.inputs import numbers, refuse
from theodolite.losses.squared import SquaredLoss

Masked = TypeVar("Masked", bound="MaskedLoss")


class MaskedLoss(Loss):
    """A loss of the observed entries of an (n, m) matrix: any loss of a column, on a support.

    Predictions and dual points are vectors of shape (size,), in the order of the support,
    which is that of the indices given.  Memory and time grow with the number of entries, not with n m.

    Parameters
    ----------
    loss : SampleLoss of shape (size, 1)
        Loss of the observed entries: ``LogisticLoss(values)``, say.
    rows, cols : array-like of int, shape (size,)
        Their indices.
    shape : tuple of int
        Shape (n, m) of the whole matrix.

    Attributes
    ----------
    entries : SampleLoss
        The loss of the column of observed entries.
    support : Support
        Where they are.

    Raises
    ------
    ValueError
        If the loss is not that of a column of as many entries, no entry is given, an index is
        out of range, or an entry is given twice.
    """

    support: Support

    def __init__(self, loss: SampleLoss, rows: Any, cols: Any, shape: tuple[int, int]) -> None:
        support = Support.checked(rows, cols, shape)
        if loss.shape != (support.size, 1):
            raise ValueError(f"loss: expected one of shape ({support.size}, 1), got {loss.shape}")
        device = loss.zeros().device
        self.entries, self.support, self.shape = loss, support.to(device), support.shape
        self.scale = loss.scale

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return self.entries.zeros()[:, 0]

    def value(self, Z: Tensor) -> float:
        """Return the loss of the observed entries."""
        return self.entries.value(self._column(Z, "Z"))

    def gradient(self, Z: Tensor) -> Tensor:
        """Return the gradient with respect to the observed entries."""
        return self.entries.gradient(self._column(Z, "Z"))[:, 0]

    def dual(self, Q: Tensor) -> float:
        """Return -l*(-Q) for a Q that vanishes off the support."""
        return self.entries.dual(self._column(Q, "Q"))

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return the interval of the loss of the observed entries."""
        return self.entries.t_range(self._column(R, "R"))

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize along the ray as the loss of the observed entries does."""
        column = self._column(R, "R")
        return self.entries.best_t(column, upper=upper, linear=linear, quadratic=quadratic)

    def smallest_t(self, R: Tensor, wanted: float) -> float | None:
        """Search along the ray as the loss of the observed entries does."""
        return self.entries.smallest_t(self._column(R, "R"), wanted)

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding is relative to."""
        return self.entries.magnitudes(self._column(Z, "Z"), self._column(Q, "Q"))

    def smoothness(self, Z: Tensor) -> float:
        """Return the bound of the loss of the observed entries."""
        return self.entries.smoothness(self._column(Z, "Z"))

    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the Hessian at Z as a function of the observed entries, and its diagonal."""
        product, diagonal = self.entries.curvature(self._column(Z, "Z"))
        return lambda V: product(V[:, None])[:, 0], diagonal

    def rescaled(self: Masked, scale: float) -> Masked:
        """Return the same loss with another factor in front."""
        twin = super().rescaled(scale)
        twin.entries = self.entries.rescaled(scale)
        return twin

    def _column(self, tensor: Tensor, name: str) -> Tensor:
        return self._check(tensor, name)[:, None]


class MaskedSquaredLoss(MaskedLoss):
    r"""Squared error of the observed entries, ``scale * 1/2 sum (value - z)^2``.

    Parameters
    ----------
    rows, cols : array-like of int, shape (size,)
        Indices of the observed entries, none twice.
    values : array-like, shape (size,)
        What was observed there.
    shape : tuple of int
        Shape (n, m) of the whole matrix.
    scale : float
        1/size makes it half the mean squared error.

    Raises
    ------
    ValueError
        If nothing was observed, the lengths differ, an index is out of range, an entry is given
        twice, a value is not finite, or ``scale`` is not positive.
    """

    def __init__(self, rows: Any, cols: Any, values: Any, shape: tuple[int, int], scale: float = 1.0) -> None:
        observed = values if isinstance(values, Tensor) else np.asarray(values)
        if observed.ndim != 1 or len(observed) != len(rows):
            expected = f"as many numbers as rows, ({len(rows)},)"
            raise ValueError(f"values: expected {expected}, got shape {tuple(observed.shape)}")
        if not len(rows):
            raise ValueError("values: expected at least one observed entry, got none")
        super().__init__(SquaredLoss(numbers(observed, "values"), scale), rows, cols, shape)

    @classmethod
    def from_sparse(cls, matrix: Any, scale: float = 1.0) -> MaskedSquaredLoss:
        """Return the loss of the stored entries of a scipy sparse matrix; stored zeros count as observed.

        Parameters
        ----------
        matrix : scipy sparse matrix or array, shape (n, m)
            In COO format an entry may be stored twice, which is refused: sum or average them first.
        scale : float
            Factor in front of the sum.
        """
        entries = matrix.tocoo()
        return cls(entries.row, entries.col, entries.data, entries.shape, scale)

    @classmethod
    def from_dense(cls, matrix: Any, scale: float = 1.0) -> MaskedSquaredLoss:
        """Return the loss of the entries of a matrix that are not NaN.

        Parameters
        ----------
        matrix : array-like, shape (n, m)
            NaN marks a missing entry; infinities are refused.
        scale : float
            Factor in front of the sum.
        """
        whole = matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix, dtype=np.float64))
        if whole.ndim != 2:
            raise ValueError(f"matrix: expected shape (n, m), got {tuple(whole.shape)}")
        refuse(torch.isinf(whole), whole, "matrix", "finite numbers or NaN")
        rows, cols = (~torch.isnan(whole)).nonzero(as_tuple=True)
        return cls(rows, cols, whole[rows, cols], (whole.shape[0], whole.shape[1]), scale)

"""Logistic loss of signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theodolite.losses.inputs import refuse
from theodolite.losses.separable import SeparableLoss


class LogisticLoss(SeparableLoss):
    r"""Logistic loss ``scale * sum ln(1 + exp(-y z))``, in nats.

    With :math:`s = qy/\text{scale}` its dual value is scale times the sum of the entropies
    :math:`-s\ln s-(1-s)\ln(1-s)`, for :math:`0\le s\le1`.

    Parameters
    ----------
    y : array-like, shape (n,) or (n, k)
        Signs, -1 or +1.
    scale : float
        1/n makes it the mean.

    Raises
    ------
    ValueError
        If a target is neither -1 nor +1, there is none, or ``scale`` is not positive.
    """

    def __init__(self, y: Any, scale: float = 1.0) -> None:
        super().__init__(y, "y", scale)
        refuse(self.Y.abs() != 1.0, self.Y, "y", "-1 or +1")

    def _values(self, Z: Tensor) -> Tensor:
        margin = self.Y * Z
        return torch.log1p(torch.exp(-margin.abs())) + (-margin).clamp(min=0.0)

    def _slopes(self, Z: Tensor) -> Tensor:
        return -self.Y * torch.sigmoid(-self.Y * Z)

    def _bends(self, Z: Tensor) -> Tensor:
        return torch.sigmoid(Z) * torch.sigmoid(-Z)

    def _duals(self, q: Tensor) -> Tensor:
        s = q * self.Y
        return torch.special.entr(s) + torch.special.entr(1.0 - s)

    def _box(self) -> tuple[Tensor, Tensor]:
        return self.Y.clamp(max=0.0), self.Y.clamp(min=0.0)

    def _value_sizes(self, Z: Tensor) -> Tensor:
        return self._values(Z)  # all terms are positive

    def _dual_sizes(self, q: Tensor) -> Tensor:
        # 1 - s is off by up to 2^-52, where the entropy changes by up to 37 times as much
        return self._duals(q) + 8.0

    def smoothness(self, Z: Tensor) -> float:
        """Return scale / 4, the largest second derivative."""
        return 0.25 * self.scale

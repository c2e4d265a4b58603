r"""The leaky ReLU as two ReLUs, so that all bounds of the ReLU's polar hold for it.

With the slope s below 0, :math:`\sigma(t) = \mathrm{relu}(t) - s\,\mathrm{relu}(-t)`, hence
:math:`\sum_iQ_i\sigma(x_i^\top w)` is the sum of :math:`Q_i\mathrm{relu}(x_i^\top w)` over twice as many rows:
:math:`(x_i, Q_i)` and :math:`(-x_i, -sQ_i)`.  The slope -1 makes it the absolute value.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["leaky_rows"]


def leaky_rows(X: Tensor, Q: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Return rows whose sum of Q_i relu(x_i w) is that of Q_i leaky_relu(x_i w, slope); for slope 0 the same.

    Parameters
    ----------
    X : Tensor, shape (n, d)
    Q : Tensor, shape (n, K)
    slope : float

    Returns
    -------
    X, Q : Tensor, shapes (2 n, d) and (2 n, K)
        ``-slope * Q`` has a rounding of half a unit in the last place.
    """
    if not slope:
        return X, Q
    return torch.cat([X, -X]), torch.cat([Q, -slope * Q])

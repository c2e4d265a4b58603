"""Two-layer networks of leaky ReLU units."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from theodolite.atoms.inputs import check_dual, row_sum
from theodolite.atoms.relu import ReLUAtom
from theodolite.linalg.lanczos import UNIT_ROUNDOFF
from theodolite.polar.scaling import lengths
from theodolite.value import Value


class LeakyReLUAtom(ReLUAtom):
    r"""One hidden leaky ReLU unit with its output weights.

    :math:`\phi(w, u) = \sigma(Xw)u^\top` with :math:`\sigma(t) = \mathrm{relu}(t) - s\,\mathrm{relu}(-t)` and
    :math:`\theta = \|w\|_2\|u\|_2`, of degree 2.  Params are ``(W, U)`` of shapes (r, d) and (r, K).  The polar is
    that of :class:`~theodolite.atoms.relu.ReLUAtom` with twice as many rows (:mod:`theodolite.polar.leaky`), so all that
    is proved there holds here.

    Parameters
    ----------
    X : array-like, shape (n, d)
        Inputs, finite.
    n_outputs : int
    negative_slope : float
        The slope s below 0, in [-1, 1], of ``torch.nn.LeakyReLU``; 0 is the ReLU, 1 the identity, -1 the absolute value.
    bias : bool
        Append a column of ones, whose weight (the bias) counts in ``||w||``.

    Raises
    ------
    ValueError
        As for ReLUAtom, and if the slope is out of range.
    """

    def __init__(self, X: Any, n_outputs: int, negative_slope: float = 0.01, bias: bool = False) -> None:
        super().__init__(X, n_outputs, bias)
        if not (math.isfinite(negative_slope) and abs(negative_slope) <= 1.0):
            raise ValueError(f"negative_slope: expected a number in [-1, 1], got {negative_slope}")
        self.negative_slope = float(negative_slope)

    def patterns(self, budget: float | None = None) -> Tensor | None:
        """Return all activation patterns of the rows x_i and -x_i, (p, 2 n) bool, or None where they are too many."""
        table = super().patterns(budget)
        return table if table is None or not self.negative_slope else torch.cat([table, ~table], 1)

    def polar(self, Q: Tensor, **options: Any) -> Value:
        """Return a bound of max over |w| = 1 of |sum_i Q_i sigma(x_i w)|, see :meth:`ReLUAtom.polar`.

        The products s Q_i are rounded, for which the upper end is raised by u times the sum of |Q_i| |x_i|.
        """
        value = super().polar(Q, **options)
        rounding = 2.0 * UNIT_ROUNDOFF * row_sum(check_dual(Q, self.shape), lengths(self.X.cpu()))
        return dataclasses.replace(value, upper=value.high + rounding)

"""Poisson loss of counts, with a logarithmic or an identity link."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from theodolite.losses.inputs import numbers, refuse
from theodolite.losses.separable import SeparableLoss

# beyond 1e-3 by more than the rounding of a sum of moderate numbers
_REACH = 1.001e-3
_UP = 1.0 + 2.0**-30
# the dual of the identity link falls to -inf at the end of its box, which is therefore left out
_OPEN = 1.0 - 2.0**-40


class PoissonLoss(SeparableLoss):
    r"""Negative Poisson log-likelihood of counts, without the constant ``ln y!``.

    With :math:`w = z + \text{offset}` it is ``scale`` times the sum of

    - :math:`e^w - yw` for the log link: the rate is :math:`e^w`, the offset a log exposure;
    - :math:`w - y\ln w` for the identity link: the rate is w itself, the offset a known
      background rate.

    With :math:`q` for an entry of Q/scale, the dual value is scale times the sum of

    - :math:`p - p\ln p - q\,\text{offset}`, :math:`p = y - q\ge0`, for the log link;
    - :math:`y + y\ln((1+q)/y) - q\,\text{offset}`, :math:`q>-1`, for the identity link, and
      :math:`-q\,\text{offset}`, :math:`q\ge-1`, where y = 0.

    The identity link is defined for rates > 0 only (>= 0 where y = 0).  Outside, its value and
    its ``smoothness`` are inf and its derivatives, which do not exist, are NaN.  Because every
    solver starts from zero predictions, these must be inside, so that a positive target
    needs a positive offset.  Where a rate is so small that 1e-3 less is not a rate,
    ``smoothness`` is inf too.  A count of zero ends its loss at a rate of zero with a slope: where an
    optimum touches that end there is no gradient, and a certificate stays valid but does not close.

    Parameters
    ----------
    y : array-like, shape (n,) or (n, k)
        Counts, or any numbers >= 0.
    scale : float
        1/n makes it the mean.
    link : {"log", "identity"}
    offset : float or array-like, broadcast to the targets
        Added to the predictions.

    Attributes
    ----------
    offset : Tensor, shape (n, k)

    Raises
    ------
    ValueError
        If a target is negative or not finite, there is none, ``scale`` is not positive, ``link``
        is unknown, or the offset does not fit or leaves zero predictions outside the domain.
    """

    def __init__(
        self, y: Any, scale: float = 1.0, link: Literal["log", "identity"] = "log", *, offset: Any = 0.0
    ) -> None:
        super().__init__(y, "y", scale)
        refuse(self.Y < 0.0, self.Y, "y", "numbers >= 0")
        if link not in ("log", "identity"):
            raise ValueError(f'link: expected "log" or "identity", got {link!r}')
        self.link = link
        given = numbers(np.full(1, float(offset)) if np.ndim(offset) == 0 else offset, "offset")
        try:
            self.offset = given.to(self.Y.device).expand(self.shape)
        except RuntimeError:
            raise ValueError(f"offset: expected shape {self.shape}, got {tuple(given.shape)}") from None
        if link == "identity":
            wrong = torch.where(self.Y > 0.0, self.offset <= 0.0, self.offset < 0.0)
            refuse(wrong, self.offset, "offset", "> 0 where y > 0 and >= 0 elsewhere (identity link)")

    def _rates(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rates of the identity link and where they are in the domain."""
        w = Z + self.offset
        return w, torch.where(self.Y > 0.0, w > 0.0, w >= 0.0)

    def _values(self, Z: Tensor) -> Tensor:
        if self.link == "log":
            w = Z + self.offset
            return torch.exp(w) - self.Y * w
        w, valid = self._rates(Z)
        return torch.where(valid, w - torch.xlogy(self.Y, w), torch.inf)

    def _slopes(self, Z: Tensor) -> Tensor:
        if self.link == "log":
            return torch.exp(Z + self.offset) - self.Y
        w, valid = self._rates(Z)
        slopes = 1.0 - torch.where(self.Y > 0.0, self.Y / w, 0.0)
        return torch.where(valid, slopes, torch.nan)

    def _bends(self, Z: Tensor) -> Tensor:
        if self.link == "log":
            return torch.exp(Z + self.offset)
        w, valid = self._rates(Z)
        bends = torch.where(self.Y > 0.0, self.Y / w / w, 0.0)
        return torch.where(valid, bends, torch.nan)

    def _duals(self, q: Tensor) -> Tensor:
        if self.link == "log":
            p = self.Y - q
            return p + torch.special.entr(p) - q * self.offset
        return self.Y + torch.xlogy(self.Y, self._ratios(q)) - q * self.offset

    def _ratios(self, q: Tensor) -> Tensor:
        return torch.where(self.Y > 0.0, (1.0 + q) / self.Y, 1.0)

    def _box(self) -> tuple[Tensor, Tensor]:
        infinite = torch.full_like(self.Y[:1, :1], torch.inf)
        if self.link == "log":
            return -infinite, self.Y
        return torch.where(self.Y > 0.0, _OPEN, torch.ones_like(self.Y)).neg(), infinite

    def _value_sizes(self, Z: Tensor) -> Tensor:
        # what the rounding of w = z + offset does to each term is part of it
        if self.link == "log":
            w = Z + self.offset
            return torch.exp(w) * (1.0 + w.abs()) + self.Y * w.abs()
        w, valid = self._rates(Z)
        return torch.where(valid, w + self.Y + torch.xlogy(self.Y, w).abs(), torch.inf)

    def _dual_sizes(self, q: Tensor) -> Tensor:
        shift = (q * self.offset).abs()
        if self.link == "log":
            size = self.Y + q.abs()  # y - q is off by 2^-52 times this, and may be as small
            least = torch.maximum(self.Y - q, 2.0**-53 * size).clamp(min=1e-300)
            return size * (2.0 + least.log().abs()) + shift
        ratio = self._ratios(q)
        return self.Y * (1.0 + ratio.log().abs()) + (1.0 + q.abs()) / ratio + shift

    def smoothness(self, Z: Tensor) -> float:
        """Return scale times the largest second derivative within 1e-3 of the predictions."""
        Z = self._check(Z, "Z")
        if self.link == "log":
            return self.scale * float(torch.exp((Z + self.offset).max() + _REACH)) * _UP
        w, valid = self._rates(Z)
        least = w - _REACH
        bends = torch.where(self.Y > 0.0, self.Y / least / least, 0.0)
        finite = valid & ((least > 0.0) | (self.Y == 0.0))
        return self.scale * float(torch.where(finite, bends, torch.inf).max()) * _UP

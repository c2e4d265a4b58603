r"""Dropout of units, of blocks of units and of weights, with rates that can follow the width.

Each keeps what it masks with probability :math:`\theta=1-p` and divides it by :math:`\theta`, so that
the output is right on average; the variance that remains is :math:`\kappa=(1-\theta)/\theta` times the
square of what is masked.  At one rate, a wider layer is regularized less.  The retention
:math:`\theta(d)=\bar\theta/(d-(d-1)\bar\theta)`, for which :math:`\kappa=d\,(1-\bar\theta)/\bar\theta`, makes up
for that: then the factor :math:`\kappa/d` of the squared nuclear norm is the same at every width (Cavazza,
Morerio, Haeffele, Lane, Murino and Vidal, arXiv 1710.05092).

In evaluation mode each is the identity, or the plain linear layer.  What penalty each of them amounts
to is computed in :mod:`theodolite.analysis.dropout`.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Side = Literal["in", "out"]


def kappa(p: float) -> float:
    """Return p / (1 - p), the variance of a mask that is divided by its mean.

    Parameters
    ----------
    p : float
        Probability with which a unit is dropped, as in ``torch.nn.Dropout``; in [0, 1).

    Raises
    ------
    ValueError
        If p is no such number.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p: expected a probability in [0, 1), got {p!r}")
    return p / (1.0 - p)


def theta_for_width(theta_bar: float, width: int) -> float:
    """Return the retention at a width that regularizes as much as `theta_bar` does at width one.

    Parameters
    ----------
    theta_bar : float
        Probability in (0, 1] of keeping the unit of a layer that has one.
    width : int
        Number of units (blocks of units in block dropout) that are masked independently.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> [round(theta_for_width(0.8, width), 6) for width in (1, 4, 16)]
    [0.8, 0.5, 0.2]
    """
    if not 0.0 < theta_bar <= 1.0:
        raise ValueError(f"theta_bar: expected a probability in (0, 1], got {theta_bar!r}")
    if width < 1:
        raise ValueError(f"width: expected at least one unit, got {width!r}")
    return theta_bar / (width - (width - 1) * theta_bar)


class _Rate(nn.Module):
    """A rate p, or one that follows the width from theta_bar."""

    def __init__(self, p: float | None, theta_bar: float | None) -> None:
        super().__init__()
        if (p is None) == (theta_bar is None):
            raise ValueError(f"p, theta_bar: expected exactly one of them, got {p!r} and {theta_bar!r}")
        if p is not None:
            kappa(p)
        if theta_bar is not None:
            theta_for_width(theta_bar, 1)
        self.p, self.theta_bar = p, theta_bar

    def rate(self, width: int) -> float:
        """Return the probability of dropping one of `width` units, or blocks of them."""
        if self.theta_bar is not None:
            return 1.0 - theta_for_width(self.theta_bar, width)
        return float(self.p or 0.0)

    def extra_repr(self) -> str:
        """Return the rate, for the module's repr."""
        return f"p={self.p}" if self.theta_bar is None else f"theta_bar={self.theta_bar}"


class BernoulliDropout(_Rate):
    r"""Dropout of units, each by itself: ``torch.nn.Dropout`` whose rate can follow the width.

    Before a linear layer U and with a squared loss it adds
    :math:`\kappa\sum_k\|u_k\|^2\sum_n h_k(x_n)^2` to the expected objective.

    Parameters
    ----------
    p : float, optional
        Probability of dropping a unit.  Give exactly one of `p` and `theta_bar`.
    theta_bar : float, optional
        Retention at width one; at the width of the input's last axis see :func:`theta_for_width`.
    shared : bool
        One mask for all samples of a batch.  The expected objective is the same, its variance larger.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), BernoulliDropout(theta_bar=0.9), torch.nn.Linear(32, 10))
    >>> round(net[1].rate(32), 3)
    0.78
    """

    def __init__(
        self, p: float | None = None, *, theta_bar: float | None = None, shared: bool = False
    ) -> None:
        super().__init__(p, theta_bar)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """Return the units, shape (..., width), some of them zero while training."""
        p = self.rate(x.shape[-1])
        if self.shared and self.training:
            return x * F.dropout(x.new_ones(x.shape[-1]), p)
        return F.dropout(x, p, self.training)


class DropBlock(_Rate):
    r"""Dropout of disjoint blocks of consecutive units, each block as one.

    Before a linear layer and with a squared loss it adds :math:`\kappa\sum_b\|U_bV_b^\top\|_F^2`, which
    leads to the spectral k-support norm.  For whole channels of a convolution, flatten first and take
    the number of positions as the block.  The square patches of the convolutional layer that goes by this name
    overlap, which no statement here covers.

    Parameters
    ----------
    block : int
        Units in a block; it must divide the width.
    p : float, optional
        Probability of dropping a block.  Give exactly one of `p` and `theta_bar`.
    theta_bar : float, optional
        Retention for a single block; it follows the number of blocks.
    shared : bool
        One mask for all samples of a batch.
    """

    def __init__(
        self,
        block: int,
        p: float | None = None,
        *,
        theta_bar: float | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(p, theta_bar)
        if block < 1:
            raise ValueError(f"block: expected at least one unit, got {block!r}")
        self.block, self.shared = block, shared

    def forward(self, x: Tensor) -> Tensor:
        """Return the units, shape (..., width), some blocks of them zero while training."""
        blocks, rest = divmod(x.shape[-1], self.block)
        if rest:
            raise ValueError(f"x: expected a multiple of {self.block} units, got {x.shape[-1]}")
        p = self.rate(blocks)
        if not self.training:
            return F.dropout(x, p, False)  # the identity, which keeps the layer's place in a traced graph
        mask = x.new_ones(blocks) if self.shared else x.new_ones(*x.shape[:-1], blocks)
        return x * F.dropout(mask, p).repeat_interleave(self.block, -1)

    def extra_repr(self) -> str:
        """Return the block and the rate, for the module's repr."""
        return f"block={self.block}, {super().extra_repr()}"


class DropConnect(_Rate):
    r"""A linear layer of which single weights are dropped, the same ones for all samples of a batch.

    With a squared loss, as the last layer it adds :math:`\kappa\sum_{k,j}W_{kj}^2\|h_j\|^2`, what dropout
    of its inputs adds.  As the layer that makes linear hidden units (the rows of W, read by U) it adds
    :math:`\kappa\sum_{k,j}\|u_k\|^2W_{kj}^2\|x_j\|^2`, which is what dropout of those units adds only if
    the inputs' features are orthogonal.  A bias is never dropped.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    p : float, optional
        Probability of dropping a weight.  Give exactly one of `p` and `theta_bar`.
    theta_bar : float, optional
        Retention for one hidden unit; it follows the number of hidden units.
    side : {"out", "in"}
        Where the hidden units are, which only `theta_bar` asks: "out" for the layer that reads
        them, "in" for the layer that makes them.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        p: float | None = None,
        theta_bar: float | None = None,
        side: Side = "out",
    ) -> None:
        super().__init__(p, theta_bar)
        if side not in ("in", "out"):
            raise ValueError(f"side: expected 'in' or 'out', got {side!r}")
        plain = nn.Linear(in_features, out_features, bias=bias)
        self.weight, self.side = plain.weight, side
        self.register_parameter("bias", plain.bias)

    @property
    def drop_rate(self) -> float:
        """Probability of dropping a weight."""
        return self.rate(self.weight.shape[1] if self.side == "out" else self.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (..., out_features)."""
        weight = F.dropout(self.weight, self.drop_rate) if self.training else self.weight
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        """Return sizes and rate, for the module's repr."""
        out, inn = self.weight.shape
        return f"in_features={inn}, out_features={out}, side={self.side!r}, {super().extra_repr()}"

r"""The squared nuclear norm and the squared spectral k-support norm: values, duals, proximal points.

Dropout leads to the first: among all factors of X with r columns, the least
:math:`\kappa\sum_k\|u_k\|^2\|v_k\|^2` is :math:`\frac\kappa r\|X\|_*^2` (attained, see `equalize`).  Dropout of
blocks of k units leads to the second, a lower bound that B blocks attain for many B but not for all: three
equal singular values cannot be shared by two blocks of two units.  Both problems

.. math:: \min_X\ \|Y-X\|_F^2+L\|X\|_*^2,\qquad \min_X\ \|Y-X\|_F^2+L\|X\|_{(k)}^2

keep the singular vectors of Y and have closed forms in its singular values.  Sources: Mianjy, Arora and
Vidal, arXiv 1806.09777; McDonald, Pontil and Stamos, NeurIPS 2014; Pal et al., arXiv 1910.14186.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.dropout import as_matrix
from theodolite.value import Value


@dataclass(frozen=True, eq=False)
class Proximal:
    r"""The minimizer of :math:`\|Y-X\|_F^2+L\|X\|^2` in one of the two norms, by its singular values.

    Attributes
    ----------
    left, right : Tensor, shapes (m, q) and (n, q)
        Singular vectors, those of Y, of the q largest values.
    singular : Tensor, shape (q,)
        Singular values of the minimizer, some of them zero.
    threshold : float
        What is taken off the singular values of Y that are neither dropped nor only scaled.
    value : float
        Attained objective, with what the q values leave out.
    """

    left: Tensor
    right: Tensor
    singular: Tensor
    threshold: float
    value: float

    @property
    def matrix(self) -> Tensor:
        """The minimizer, shape (m, n)."""
        return (self.left * self.singular) @ self.right.T

    @property
    def rank(self) -> int:
        """Number of positive singular values."""
        return int((self.singular > 0.0).sum())


def shrink(s: Tensor, L: float) -> tuple[Tensor, float]:
    r"""Return the minimizer of :math:`\sum_i(s_i-x_i)^2+L(\sum_ix_i)^2` over :math:`x\ge0`, and its threshold.

    With :math:`\mu_k=L\sum_{i\le k}s_i/(1+Lk)`, rho is the largest k with :math:`s_k>\mu_k`, and
    :math:`x_i=(s_i-\mu_\rho)_+`.  (:math:`\mu_k<s_k` holds iff :math:`\mu_{k-1}<s_k`, so that those k are the first
    rho: as soon as it fails, :math:`s_{k+1}\le s_k\le\mu_k`.)

    Parameters
    ----------
    s : Tensor, shape (q,)
        Nonnegative, in descending order.
    L : float
        Nonnegative.
    """
    k = torch.arange(1, len(s) + 1, dtype=s.dtype)
    candidates = L * s.cumsum(0) / (1.0 + L * k)
    kept = (s > candidates).nonzero()
    if not len(kept):
        return torch.zeros_like(s), 0.0
    threshold = float(candidates[int(kept[-1])])
    return (s - threshold).clamp_min(0.0), threshold


def squared_nuclear_prox(Y: Any, L: float, rank: int | None = None) -> Proximal:
    r"""Return the minimizer of :math:`\|Y-X\|_F^2+L\|X\|_*^2` over matrices of a rank at most `rank`.

    With :math:`L=\kappa/r` this is the global optimum of dropout at width r, and `rank` is r.

    Parameters
    ----------
    Y : array or Tensor, shape (m, n)
    L : float
        Nonnegative.
    rank : int, optional
        No limit by default.

    Raises
    ------
    ValueError
        If an entry is not finite, L is negative, or the rank is less than one.

    Examples
    --------
    >>> best = squared_nuclear_prox([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]], 0.5)
    >>> best.rank, best.threshold, best.value
    (2, 1.25, 7.25)
    """
    matrix = as_matrix(Y, "Y")
    _check_factor(L)
    if rank is not None and rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank!r}")
    left, s, right = torch.linalg.svd(matrix, full_matrices=False)
    q = len(s) if rank is None else min(rank, len(s))
    x, threshold = shrink(s[:q], L)
    value = float((s[:q] - x).square().sum() + s[q:].square().sum()) + L * float(x.sum()) ** 2
    return Proximal(left[:, :q], right[:q].T, x, threshold, value)


def squared_ksupport_norm(X: Any, k: int) -> Value:
    r"""Return the square of the spectral k-support norm, whose unit ball is spanned by :math:`\|A\|_F\le1`, rank k.

    It is the nuclear norm for k = 1, the Frobenius norm for k of at least the rank.

    Parameters
    ----------
    X : array or Tensor, shape (m, n)
    k : int
        At least one.

    Returns
    -------
    Value
        `exact`.
    """
    s = _singular_values(X, k)
    return Value.exact(_squared_ksupport(s, k))


def ksupport_dual_norm(Q: Any, k: int) -> Value:
    r"""Return :math:`(\sum_{i\le k}s_i(Q)^2)^{1/2}`, the dual of the spectral k-support norm, `exact`."""
    s = _singular_values(Q, k)
    return Value.exact(float(s[:k].norm()))


def _squared_ksupport(s: Tensor, k: int) -> float:
    """Return the squared norm of descending nonnegative values."""
    if len(s) <= k:
        return float(s.square().sum())
    # theta is 1 for the first values and shares what is left in proportion among the rest: the least of
    # these that are feasible, where no share exceeds 1; with j = 0 it always is
    tails = [float(s[k - j - 1 :].sum()) for j in range(k)]
    return min(
        float(s[: k - j - 1].square().sum()) + tail**2 / (j + 1)
        for j, tail in enumerate(tails)
        if j == 0 or tail >= (j + 1) * float(s[k - j - 1])
    )


def squared_ksupport_prox(Y: Any, L: float, k: int) -> Proximal:
    r"""Return the minimizer of :math:`\|Y-X\|_F^2+L\|X\|_{(k)}^2`.

    The squared norm is :math:`\min_\theta\sum_ix_i^2/\theta_i` over :math:`0\le\theta_i\le1`,
    :math:`\sum\theta_i\le k`.  Minimized over x first, :math:`x_i=s_i\theta_i/(\theta_i+L)`, and then
    :math:`\theta_i=\min(\max(as_i-L,0),1)` with the a that makes their sum k: a piecewise linear equation.
    Singular values are divided by 1 + L, reduced by L / a, or dropped.

    Parameters
    ----------
    Y : array or Tensor, shape (m, n)
    L : float
        Nonnegative.
    k : int
        At least one.
    """
    matrix = as_matrix(Y, "Y")
    _check_factor(L)
    left, s, right = torch.linalg.svd(matrix, full_matrices=False)
    x, threshold = shrink_ksupport(s, L, k)
    value = float((s - x).square().sum()) + L * _squared_ksupport(x, k)
    return Proximal(left, right.T, x, threshold, value)


def shrink_ksupport(s: Tensor, L: float, k: int) -> tuple[Tensor, float]:
    """Return the minimizer of the vector problem for descending nonnegative values, and its threshold L / a."""
    _check_k(k)
    if L == 0.0 or int((s > 0.0).sum()) <= k:
        return s / (1.0 + L), 0.0
    a = _scale(s, L, k)
    theta = (a * s - L).clamp(0.0, 1.0)
    return s * theta / (theta + L), L / a


def _scale(s: Tensor, L: float, k: int) -> float:
    r"""Return a with :math:`\sum_i\min(\max(as_i-L,0),1)=k`, of which more than k values are positive."""
    positive = s[s > 0.0]
    breaks = torch.cat([L / positive, (1.0 + L) / positive]).sort().values
    sums = (breaks[:, None] * positive - L).clamp(0.0, 1.0).sum(1)
    i = max(int(torch.searchsorted(sums, float(k))), 1)
    low, high = float(sums[i - 1]), float(sums[i])
    share = (k - low) / (high - low)
    return float(breaks[i - 1]) + share * float(breaks[i] - breaks[i - 1])


def _singular_values(X: Any, k: int) -> Tensor:
    _check_k(k)
    return torch.linalg.svdvals(as_matrix(X, "matrix"))


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k!r}")


def _check_factor(L: float) -> None:
    if not (L >= 0.0 and math.isfinite(L)):
        raise ValueError(f"L: expected a finite number >= 0, got {L!r}")

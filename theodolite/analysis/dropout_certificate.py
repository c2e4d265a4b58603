r"""How far factors trained with dropout can be from the best that any factors of their width attain.

For blocks of k units, B of them, and :math:`L=\kappa/B`, the expected squared error with dropout is

.. math:: P(U,V)=\|Y-UV^\top\|_F^2+\kappa\sum_b\|U_bV_b^\top\|_F^2\ \ge\ \|Y-X\|_F^2+L\|X\|_{(k)}^2,\quad X=UV^\top ,

the norm being the nuclear one for k = 1.  Two proved lower bounds of the right side:

*closed*: with :math:`s_i\le\sigma_i(Y)` and any nonnegative q on the first r of them,
:math:`\sum_{i\le r}(q_is_i-q_i^2/4)-\frac1{4L}\sum_{i\le k}q_{(i)}^2+\sum_{i>r}s_i^2`, by Mirsky's inequality, which knows that
X has rank at most r.  The q of the closed form makes it the optimal value, up to rounding.

*dual*: for every matrix Q, :math:`\langle Q,Y\rangle-\frac14\|Q\|_F^2-\frac1{4L}\|Q\|_{(k)*}^2`; here Q is the best multiple
of the residual.  It needs no decomposition of Y, but does not know that the rank is limited.

With inputs X, a column a sample, the products are restricted to the row space of X, spanned by rows B: then
:math:`Y\Pi` takes the place of Y, :math:`\|Y(I-\Pi)\|_F^2` is added, and what rounding does to B is enclosed.  Where the
inputs depend on each other but for rounding, the space cannot be told, and the bound is that without inputs.  Every
end is moved outward by a bound of its own rounding error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from theodolite.analysis.dropout import as_matrix, read_factors
from theodolite.analysis.squared_norms import shrink, shrink_ksupport
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, gamma
from theodolite.linalg.singular_values import defect, singular_value_bounds
from theodolite.linalg.spectral import sigma_max
from theodolite.nn.dropout import kappa
from theodolite.value import Value, relative_gap

Method = Literal["auto", "closed", "dual"]
_SVD = 3000  # up to this min(m, n) "auto" decomposes Y
RANK_TOLERANCE = 1e-10  # of the inputs' singular values, above which they count as independent


@dataclass(frozen=True)
class DropoutCertificate:
    """What is proved about factors under dropout.

    Attributes
    ----------
    objective : float
        Expected squared error with masks, P, rounded up.
    dual_bound : float
        No factors of this width have a smaller one; rounded down.
    gap : float
        ``(objective - dual_bound) / |objective|``, never negative.
    confidence : float
        Probability with which the bound holds: 1, or less where Lanczos from random starts proved a norm.
    note : str
        How the bound was proved, and of what.
    """

    objective: float
    dual_bound: float
    gap: float
    confidence: float = 1.0
    note: str = ""

    @property
    def optimum(self) -> Value:
        """Both ends of the least expected squared error that factors of this width attain."""
        return Value.bound(self.dual_bound, self.objective, confidence=self.confidence, note=self.note)


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The row space of inputs.

    Attributes
    ----------
    basis : Tensor, shape (q, n)
        Nearly orthonormal rows.
    error : float
        Bound of the norm of what must be added to `basis` so that its rows span the space.
    floor, ceiling : float
        Bounds of the singular values of that sum.
    """

    basis: Tensor
    error: float
    floor: float
    ceiling: float


def row_space(X: Tensor) -> RowSpace | None:
    """Return the row space of inputs (d, n), None where it cannot be told in float64 or is everything.

    It cannot where inputs depend on each other but for a share of 1e-10: large weights reach the directions of
    what is left, so that leaving them out would prove nothing.
    """
    X = torch.unique(X[X.any(1)], dim=0)  # zero features and duplicates add nothing
    U, s, Vt = torch.linalg.svd(X, full_matrices=False)
    rank = int((s > RANK_TOLERANCE * s[:1]).sum())
    if rank < len(X) or rank == X.shape[1]:
        return None
    # T X spans what X does, and is the basis but for rounding
    basis, T = Vt, U.T / s[:, None]
    error = float((T @ X - basis).norm()) + gamma(len(X) + 4) * float((T.abs() @ X.abs()).norm())
    error, off = PAD * error, defect(basis.T)
    floor = math.sqrt(max(1.0 - off, 0.0)) - error
    return RowSpace(basis, error, max(floor, 0.0), math.sqrt(1.0 + off) + error)


def certify_dropout(
    U: Any,
    V: Any,
    Y: Any,
    p: float,
    *,
    inputs: Any = None,
    block: int = 1,
    method: Method = "auto",
) -> DropoutCertificate:
    r"""Return what is proved about factors of Y trained with dropout of their columns.

    Parameters
    ----------
    U, V : array or Tensor, shapes (m, r) and (n, r), with inputs (d, r)
    Y : array or Tensor, shape (m, n)
        All entries observed.
    p : float
        Probability of dropping a unit (a block), in [0, 1).
    inputs : array or Tensor, shape (d, n), optional
        X of the model :math:`UV^\top X`.
    block : int
        Consecutive units that are dropped together.
    method : {"auto", "closed", "dual"}
        How the bound is proved, see the module's text; "auto" takes the closed form where Y can be decomposed.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or another argument is out of range.
    """
    U, V, X = read_factors(U, V, inputs)
    target, r = as_matrix(Y, "Y"), U.shape[1]
    n = len(V) if X is None else X.shape[1]
    if target.shape != (len(U), n):
        raise ValueError(f"Y: expected shape {(len(U), n)}, got {tuple(target.shape)}")
    if block < 1 or r % block or not r:
        raise ValueError(f"block: expected a divisor of the {r} units, got {block!r}")
    if method not in ("auto", "closed", "dual"):
        raise ValueError(f"method: expected 'auto', 'closed' or 'dual', got {method!r}")
    hidden, blur = (V, None) if X is None else (X.T @ V, gamma(len(X) + 2) * (X.abs().T @ V.abs()))
    objective = objective_upper(U, hidden, target, p, block=block, blur=blur)
    L, space = kappa(p) / (r // block), None if X is None else row_space(X)
    if method == "closed" or (method == "auto" and min(target.shape) <= _SVD):
        bound, confidence, note = (
            closed_bound(target, L, r, block=block, space=space),
            1.0,
            "closed form in Y",
        )
    else:
        Q = 2.0 * (target - U @ hidden.T)
        bound, confidence = dual_bound(Q, target, L, block=block, space=space)
        note = "dual at the residual, which does not know that the rank is limited"
    if X is not None and space is None:
        note += "; the row space of the inputs is not used: it is everything, or cannot be told in float64"
    gap = relative_gap(objective, bound)
    return DropoutCertificate(objective, min(bound, objective), gap, confidence, note)


def objective_upper(
    U: Tensor, H: Tensor, Y: Tensor, p: float, *, block: int = 1, blur: Tensor | None = None
) -> float:
    """Return an upper bound of the expected squared error with dropout, rounding enclosed.

    Parameters
    ----------
    U, H, Y : Tensor, shapes (m, r), (n, r) and (m, n)
    p : float
    block : int
    blur : Tensor, shape (n, r), optional
        Bound of the error of each entry of H; none by default.
    """
    blur = torch.zeros_like(H) if blur is None else blur
    width = U.shape[1]
    sizes, own = U.abs() @ H.abs().T, U.abs() @ blur.T
    off = gamma(width + 4) * (sizes + Y.abs()) + PAD * own
    rest = ((Y - U @ H.T).abs() + PAD * off).square().sum(1).sum()
    total = 0.0
    for u, h, e in zip(U.split(block, 1), H.split(block, 1), blur.split(block, 1), strict=True):
        if block == 1:
            total += float(u.square().sum() * (h.abs() + e).square().sum())
        else:
            product = (u @ h.T).abs() + PAD * (gamma(block + 4) * (u.abs() @ h.abs().T) + u.abs() @ e.T)
            total += float(product.square().sum(1).sum())
    grown = 1.0 + PAD * gamma(sum(Y.shape) + 2 * width + 32)
    return (float(rest) + kappa(p) * total) * grown


def closed_bound(Y: Tensor, L: float, width: int, *, block: int = 1, space: RowSpace | None = None) -> float:
    r"""Return a lower bound of :math:`\min\|Y-X\|_F^2+L\|X\|_{(k)}^2` over X of rank at most `width`, its optimal value.

    Parameters
    ----------
    Y : Tensor, shape (m, n)
    L : float
        kappa over the number of blocks.
    width : int
    block : int
        k, 1 for the nuclear norm.
    space : RowSpace, optional
        That the rows of X are in.
    """
    if space is None:
        s, outside = singular_value_bounds(Y)[0], 0.0
    else:
        F = Y @ space.basis.T
        size = PAD * float(Y.norm())
        off = PAD * (
            gamma(Y.shape[1] + 2) * float((Y.abs() @ space.basis.abs().T).norm()) + size * space.error
        )
        s = (singular_value_bounds(F)[0] - off).clamp_min(0.0) / (space.ceiling * (1.0 + 8.0 * UNIT_ROUNDOFF))
        inside = (
            (float(F.norm()) * (1.0 + gamma(sum(F.shape) + 8)) + off) / space.floor
            if space.floor > 0.0
            else math.inf
        )
        square = float(Y.square().sum(1).sum())
        outside = max(
            square * (1.0 - gamma(sum(Y.shape) + 8)) - inside**2 * (1.0 + 16.0 * UNIT_ROUNDOFF), 0.0
        )
    head, tail = s[:width], s[width:]
    x, _ = shrink(head, L) if block == 1 else shrink_ksupport(head, L, block)
    q = 2.0 * (head - x) if L > 0.0 else torch.zeros_like(head)
    gain, cost = float((q * head).sum()), 0.25 * float(q.square().sum())
    norm = float(q.sort(descending=True).values[:block].square().sum()) / (4.0 * L) if L > 0.0 else 0.0
    last = float(tail.square().sum())
    bound = gain - cost - norm + last + outside
    bound -= PAD * gamma(len(s) + 16) * (gain + cost + norm + last + outside)
    return max(bound, 0.0)


def dual_bound(
    Q: Tensor, Y: Tensor, L: float, *, block: int = 1, space: RowSpace | None = None
) -> tuple[float, float]:
    r"""Return the best dual value among the multiples of Q, rounded down, and its confidence.

    Parameters
    ----------
    Q, Y : Tensor, shape (m, n)
        Any Q gives a bound; twice the residual of an optimum gives the optimal value.
    L : float
    block : int
    space : RowSpace, optional
    """
    inner, size = float((Q * Y).sum(1).sum()), float((Q * Y).abs().sum(1).sum())
    square = float(Q.square().sum(1).sum())
    if not inner > 0.0 or L == 0.0:
        return 0.0, 1.0  # Q = 0
    part, off = Q, 0.0
    if space is not None:
        part = Q @ space.basis.T
        rounded = gamma(Q.shape[1] + 2) * float((Q.abs() @ space.basis.abs().T).norm())
        off = PAD * (rounded + PAD * float(Q.norm()) * space.error)
    if block == 1:
        top = sigma_max(part)
        norm, confidence = top.high + off, top.confidence
    else:
        norm, confidence = (
            float(singular_value_bounds(part)[1][:block].norm()) * (1.0 + gamma(block + 4)) + off,
            1.0,
        )
    if space is not None:
        norm = norm / space.floor if space.floor > 0.0 else math.inf
    if math.isinf(norm):
        return 0.0, confidence
    quadratic = square + norm**2 / L
    t = 2.0 * inner / quadratic
    bound = t * inner - 0.25 * t * t * quadratic
    bound -= PAD * gamma(sum(Y.shape) + 32) * (t * size + 0.25 * t * t * quadratic)
    return max(bound, 0.0), confidence

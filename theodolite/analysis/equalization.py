r"""Hidden units of equal weight: the factorizations at which dropout's penalty is least.

Every matrix X has factors U, V of any width r of at least its rank with :math:`\|u_k\|=\|v_k\|` and
:math:`\|u_k\|\|v_k\|=\|X\|_*/r` for all k: from its singular values S, :math:`U=WS^{1/2}R`,
:math:`V=ZS^{1/2}R` with an R for which :math:`R^\top SR` has a constant diagonal (Schur and Horn), found by at
most r - 1 plane rotations.  There :math:`\sum_k\|u_k\|^2\|v_k\|^2=\|X\|_*^2/r`, the least that any factors
of width r attain (Mianjy, Arora and Vidal, arXiv 1806.09777).  Rotations pass through linear units alone.

*Deep linear networks*, dropout after each hidden layer of widths :math:`d_i`, with
:math:`\kappa_i=p_i/(1-p_i)`.  The penalty is a sum over the nonempty sets T of hidden layers, of
:math:`\prod_{i\in T}\kappa_i` times the squares of the norms of all paths through one unit of each layer
in T.  There are :math:`\prod_{i\in T}d_i` of those, and the norms add up to at least :math:`\|X\|_*`; hence
it is at least :math:`\nu\|X\|_*^2` with

.. math:: \nu=\prod_i(1+\kappa_i/d_i)-1 .

A matrix of rank one attains it, by constant middle layers, so that this is the convex envelope (Mianjy and Arora,
arXiv 1905.11887).  For rank :math:`\rho>1` and two hidden layers or more no factors attain it: all paths
would have to be parallel.  With every layer equalized, the network attains about
:math:`\frac1\rho(\prod_i(1+\rho\kappa_i/d_i)-1)\|X\|_*^2` (exactly so for two hidden layers; from three on the middle ones
would need columns of equal norms, too).  So both ends are known, and agree at rank one, which is the rank of the
optimum for large rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.dropout import as_matrix, deep_dropout_regularizer, read_factors
from theodolite.analysis.squared_norms import Proximal, squared_nuclear_prox
from theodolite.nn.dropout import kappa
from theodolite.value import Value


@dataclass(frozen=True, eq=False)
class Balance:
    """How equal hidden units are.

    Attributes
    ----------
    products : Tensor, shape (r,)
        ``||u_k|| ||v_k||``.
    spread : float
        Standard deviation over mean of the products; 0 where all are zero.
    imbalance : float
        Largest ``| ||u_k||^2 - ||v_k||^2 | / (||u_k||^2 + ||v_k||^2)``; it changes when units are rescaled.
    """

    products: Tensor
    spread: float
    imbalance: float


def balance(U: Any, V: Any, *, inputs: Any = None) -> Balance:
    """Return how equal the units of U (m, r) and V (n, r) are; with inputs X, those of U and ``X' V``.

    All products equal is what an optimum of dropout must have (exact as a number); that it is optimal
    does not follow.
    """
    U, V, X = read_factors(U, V, inputs)
    u, v = U.norm(dim=0), (V if X is None else X.T @ V).norm(dim=0)
    products, sizes = u * v, u.square() + v.square()
    mean = float(products.mean()) if len(products) else 0.0
    spread = float(products.std(correction=0)) / mean if mean > 0.0 else 0.0
    apart = torch.where(sizes > 0.0, (u.square() - v.square()).abs() / sizes, 0.0)
    return Balance(products, spread, float(apart.max()) if len(apart) else 0.0)


def equalizing_rotation(singular: Tensor, width: int) -> Tensor:
    r"""Return T, shape (q, width), orthonormal rows, with a constant diagonal of :math:`T^\top\operatorname{diag}(s)T`.

    Parameters
    ----------
    singular : Tensor, shape (q,)
        Nonnegative values s.
    width : int
        At least q.
    """
    if width < len(singular):
        raise ValueError(f"width: expected at least the rank {len(singular)}, got {width}")
    T = torch.eye(len(singular), width, dtype=torch.float64)
    if not len(singular):
        return T
    columns = singular.sqrt()[:, None] * T
    squares = columns.square().sum(0)
    mean = float(singular.sum()) / width
    for _ in range(width - 1):
        i, j = int(squares.argmin()), int(squares.argmax())
        a, b, c = float(squares[i]), float(squares[j]), float(columns[:, i] @ columns[:, j])
        if b - a <= 4.0 * width * torch.finfo(torch.float64).eps * mean:
            break
        # the rotated column (x_i + t x_j) / sqrt(1 + t^2) has the mean as its square: a quadratic in t
        below, above = mean - a, b - mean
        t = below / (c + math.copysign(math.sqrt(c * c + below * above), c))
        cos = 1.0 / math.hypot(1.0, t)
        turn = torch.tensor([[cos, -t * cos], [t * cos, cos]], dtype=torch.float64)
        columns[:, [i, j]], T[:, [i, j]] = columns[:, [i, j]] @ turn, T[:, [i, j]] @ turn
        squares[j] = columns[:, j].square().sum()
        squares[i] = mean  # so that rounding never picks it again
    return T


def equalize(U: Any, V: Any, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return factors of the same product all of whose columns have equal norms.

    Parameters
    ----------
    U, V : array or Tensor, shapes (m, r) and (n, r)
    width : int, optional
        Columns of the new factors, at least the rank of the product; r by default.

    Returns
    -------
    U, V : Tensor, shapes (m, width) and (n, width)
        :math:`UV^\top` as before, :math:`\|u_k\|^2=\|v_k\|^2=\|UV^\top\|_*/\mathrm{width}`.
    rotation : Tensor, shape (rank, width)
        Orthonormal rows: the columns are :math:`WS^{1/2}` and :math:`ZS^{1/2}` times it.

    Raises
    ------
    ValueError
        If the shapes disagree or the width is below the rank.
    """
    U, V, _ = read_factors(U, V)
    width = U.shape[1] if width is None else width
    # the singular value decomposition of the product from those of small factors
    left, P = torch.linalg.qr(U)
    right, R = torch.linalg.qr(V)
    W, s, Zt = torch.linalg.svd(P @ R.T, full_matrices=False)
    scale = float(P.norm() * R.norm())
    rank = int((s > max(U.shape[0], V.shape[0]) * torch.finfo(torch.float64).eps * scale).sum())
    root = s[:rank].sqrt()
    T = equalizing_rotation(s[:rank], width)
    return (left @ W[:, :rank] * root) @ T, (right @ Zt[:rank].T * root) @ T, T


def equalized_factors(solution: Proximal, width: int) -> tuple[Tensor, Tensor]:
    """Return the equalized factors, shapes (m, width) and (n, width), of a matrix given by singular vectors."""
    rank = solution.rank
    root, T = solution.singular[:rank].sqrt(), equalizing_rotation(solution.singular[:rank], width)
    return (solution.left[:, :rank] * root) @ T, (solution.right[:, :rank] * root) @ T


def deep_factor(rates: Sequence[float], widths: Sequence[int], rank: int = 1) -> float:
    r"""Return :math:`\frac1\rho(\prod_i(1+\rho\kappa_i/d_i)-1)`, the envelope's factor for rank one.

    Parameters
    ----------
    rates, widths : sequences of the same length
        Probability of dropping a unit, and number of units, of each hidden layer.
    rank : int
        Above one, the factor that equalized layers attain if there are at most two of them.
    """
    if len(rates) != len(widths) or not len(rates):
        raise ValueError(f"rates, widths: expected one each a hidden layer, got {len(rates)}, {len(widths)}")
    logs = [math.log1p(rank * kappa(p) / d) for p, d in zip(rates, widths, strict=True)]
    return math.expm1(math.fsum(logs)) / rank


def equalized_layers(X: Any, widths: Sequence[int]) -> list[Tensor]:
    """Return the weights of a deep linear network that computes X with every hidden layer equalized.

    Parameters
    ----------
    X : array or Tensor, shape (m, n)
    widths : sequence of int
        Of the hidden layers, each at least the rank of X.

    Returns
    -------
    list of Tensor
        Weights of shapes (d_1, n), (d_2, d_1), ..., (m, d_h).
    """
    matrix = as_matrix(X, "X")
    W, s, Zt = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > max(matrix.shape) * torch.finfo(torch.float64).eps * (s[0] if len(s) else 0.0)).sum())
    root, turns = s[:rank].sqrt(), [equalizing_rotation(s[:rank], width) for width in widths]
    if not turns:
        raise ValueError("widths: expected at least one hidden layer, got none")
    layers = [turns[0].T @ (root[:, None] * Zt[:rank])]
    layers += [after.T @ before for before, after in pairwise(turns)]
    return [*layers, (W[:, :rank] * root) @ turns[-1]]


def deep_dropout_optimum(Y: Any, rates: Sequence[float], widths: Sequence[int]) -> tuple[list[Tensor], Value]:
    r"""Return a deep linear network and both ends of the least expected squared error with dropout.

    Minimized is :math:`\mathbb E\|Y-W_{h+1}D_hW_h\cdots D_1W_1\|_F^2` over all weights of these widths.

    Parameters
    ----------
    Y : array or Tensor, shape (m, n)
    rates, widths : sequences
        Of the hidden layers.

    Returns
    -------
    weights : list of Tensor
        They attain the upper end.
    optimum : Value
        A `bound`, up to float64 rounding; its ends agree if one hidden layer, or the optimum's rank one.
    """
    matrix, narrow = as_matrix(Y, "Y"), min(widths, default=0)
    lower = squared_nuclear_prox(matrix, deep_factor(rates, widths), narrow).value
    ranks = range(1, min(narrow, *matrix.shape) + 1) if len(widths) > 1 else (narrow,)
    best, upper = [], math.inf
    for rank in ranks:
        L = deep_factor(rates, widths, rank if len(widths) > 1 else 1)
        X = squared_nuclear_prox(matrix, L, rank).matrix
        layers = equalized_layers(X, widths)
        penalty = deep_dropout_regularizer(layers, rates).value
        value = float((matrix - X).square().sum()) + float(penalty or 0.0)
        if value < upper:
            best, upper = layers, value
    note = "lower end: convex envelope; upper end: attained by equalized layers; rounding is not enclosed"
    return best, Value.bound(min(lower, upper), upper, note=note)

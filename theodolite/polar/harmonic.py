r"""Moments of the ReLU polar's rows on the sphere, from which its harmonic bound is made.

Let :math:`\hat x=x/\|x\|`, :math:`\tilde Q_i=\|x_i\|Q_i`, and P_l the Gegenbauer polynomials of the sphere
S^{d-1} with P_l(1) = 1.  :math:`P_l(\hat x\cdot\hat y)` is a positive definite kernel, so that for every unit w and
:math:`u=(u_c)`, one part for each cell,

.. math:: \Big|\sum_i\tilde Q_i\cdot u_{c(i)}\,P_l(\hat x_i\cdot w)\Big|\le(u^TM_lu)^{1/2},\qquad
   M_l=\Big(\sum_{i\in c,j\in c'}\tilde Q_i\tilde Q_j^TP_l(\hat x_i\cdot\hat x_j)\Big)_{cc'} .

At degree 2 the same sum is a quadratic form in w for each u, of which also
:math:`\lambda_{\max}(\sum_kB_k^2)^{1/2}` is a bound, with one matrix B_k for each output and cell: the smaller of
the two where d is large.  :mod:`theodolite.polar.harmonic_program` makes a bound of relu from them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.blas import ssyrk
from torch import Tensor

from theodolite.linalg.dense import gram
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.symmetric import proved_eigenvalue
from theodolite.polar.rows import Rows

__all__ = ["Moment", "Moments", "gegenbauer", "harmonic_moments", "kernel_error", "seconds_of_squares"]

_TILE, _GPU_TILE = 256, 4_096  # rows and columns of the kernel that are in cache together
_CHEAP = 2e9  # products that are not worth a measurement of their time
_NUMBERS = 2**27  # most entries of all B_k together
_SINGLE = 2e11  # products from which B_k is made in float32
_SHORT = 2_048  # rows whose sum may be in float32
_ROUNDOFF_32 = 2.0**-24


@dataclass(frozen=True)
class Moment:
    """A bound (u' matrix u + error)^(1/2) + shift of the sum of degree l, for unit u, where S = 1."""

    degree: int
    matrix: Tensor
    error: float
    shift: float = 0.0


@dataclass(frozen=True)
class Moments:
    r"""What the harmonic bound needs to know of rows whose S is 1.

    Attributes
    ----------
    d : int
        Dimension of the sphere's space.
    S : float
        :math:`(\sum_cS_c^2)^{1/2}` before scaling, rounded up, :math:`S_c=\sum_{i\in c}\|\tilde Q_i\|`.
    several : list of Moment
        Matrices of shape (C K, C K); a degree may have several.
    plus, minus : dict of degree to float
        Bounds of the norm over cells of :math:`\max_w\pm\sum_{i\in c}\|\tilde Q_i\|P_l(\hat x_i\cdot w)`.
    sizes : Tensor, shape (C,)
        S_c / S.
    spread : Tensor, shape (C, K, K)
        :math:`\sum_{i\in c}\tilde Q_i\tilde Q_i^T/\|\tilde Q_i\|` over S.
    spread_error : float
        Bound of its error in the spectral norm.
    """

    d: int
    S: float
    several: list[Moment]
    plus: dict[int, float]
    minus: dict[int, float]
    sizes: Tensor
    spread: Tensor
    spread_error: float

    @property
    def degree(self) -> int:
        """The largest degree."""
        return max(moment.degree for moment in self.several)


def gegenbauer(t: Tensor, d: int, degree: int) -> list[Tensor]:
    r"""Return P_0(t), ..., P_degree(t) of the sphere in R^d (d >= 2), normalized to P_l(1) = 1.

    For \|t\| <= 1 the value as computed is within ``8 l^2 u`` of P_l(t), u = 2^-53: one step of the
    recurrence, :math:`P_{l+1}=(1+b)tP_l-bP_{l-1}` with b = l/(l+d-2) <= 1, rounds by at most 12 u (1 + o(1)), and an
    error made at step k is multiplied by at most l - k.  *Proof.*  A solution y satisfies
    :math:`z_l=y_{l+1}-ty_l`, :math:`z_{l+1}=b(tz_l-(1-t^2)y_l)`; so
    :math:`(1-t^2)y_l^2+z_l^2` does not grow, it is z_k^2 at the start y_k = 0, and
    :math:`|y_{l+1}|\le|y_l|+|z_l|`.
    """
    values = [torch.ones_like(t), t][: degree + 1]
    for k in range(1, degree):
        b = k / (k + d - 2)
        values.append((values[k - 1] * -b).addcmul_(t, values[k], value=1.0 + b))
    return values


def kernel_error(d: int, degree: int) -> float:
    """Return a bound of the error of P_l(x . y), l <= degree, for directions normalized in float64.

    The inner product errs by at most (4 d + 16) u, which P_l' <= P_l'(1) = l (l + d - 2) / (d - 1)
    multiplies; the recurrence adds 8 l^2 u.
    """
    slope = degree * (degree + d - 2) / (d - 1) if degree else 0.0
    return PAD * UNIT_ROUNDOFF * ((4 * d + 16) * slope + 8 * degree**2)


def harmonic_moments(
    rows: Rows,
    degree: int,
    *,
    deadline: float = math.inf,
    device: torch.device | str = "cpu",
) -> Moments:
    r"""Return the moments of degrees 0, 1 and the even ones up to `degree` or what time allows.

    Degrees 0, 1 and 2 cost O(n d^2 K) through explicit features, the others O(n^2 (d + l K)) in tiles.  Neither
    forms a matrix with a column for each cell and output but for those of that size squared.  relu(t) - t/2
    is even, and odd degrees from 3 on did not make any bound smaller.  Each computed M_l is within
    :math:`\epsilon_lI` of the exact one, where S = 1: an entry is a sum of products of weights with a kernel, which
    errs by :func:`kernel_error`, in any order, and :math:`\sum_i|\tilde Q_i\cdot u_{c(i)}|\le1`; features of degree 2
    add one of their d^2 entries.

    Parameters
    ----------
    rows : Rows
        At least one, d >= 2.
    degree : int
        Largest l.
    deadline : float
        ``time.monotonic()`` by which to be done; a first tile is timed to choose the degree.
    device : torch.device or str
        Where kernels are computed, in float64.
    """
    X, Q = rows.X, rows.Q
    n, d = X.shape
    C, K = len(rows.cells), Q.shape[1]
    norms = torch.linalg.vector_norm(X, dim=1)
    weights = Q * norms[:, None]
    sizes = torch.linalg.vector_norm(weights, dim=1)
    of_cells = torch.stack([sizes[cell].sum() for cell in rows.cells])
    g = gamma(2 * n + 4 * d + K + C + 64)
    S = float(torch.linalg.vector_norm(of_cells)) * (1.0 + 2.0 * g)
    weights = torch.cat([weights, sizes[:, None]], 1) / S
    spread = [gram(Q[c], Q[c] * (norms[c] ** 2 / sizes[c] / S)[:, None]) for c in rows.cells]
    grams, extra = _by_features(rows, norms, weights, min(degree, 2))
    least = 4 if 2 in grams else 2  # the first degree that is new
    if degree >= least:
        grams = _by_tiles(rows, norms, weights, degree, least, deadline, device) | grams
    several, plus, minus = [], {}, {}
    for k, product in sorted(grams.items()):
        product = product.reshape(C, K + 1, C, K + 1)
        error = (kernel_error(d, k) + 8.0 * g + (8.0 * gamma(d * d + 64) if k == 2 else 0.0)) * PAD
        M = product[:, :K, :, :K].reshape(C * K, C * K)
        several.append(Moment(k, 0.5 * (M + M.T), error, extra.shift if k == 2 else 0.0))
        if k:
            single = product[:, K, :, K]
            top = proved_eigenvalue(0.5 * (single + single.T))
            plus[k] = minus[k] = min(1.0, math.sqrt(max(0.0, top) + error) + several[-1].shift) * UP
    if 2 in plus:
        several += extra.several
        # P_2 >= -1 / (d - 1)
        plus[2], minus[2] = min(plus[2], extra.plus), min(minus[2], PAD / (d - 1))
    return Moments(
        d, S, several, plus, minus, of_cells / S, 0.5 * torch.stack([A + A.T for A in spread]), 8.0 * g
    )


def seconds_of_squares(rows: Rows) -> float:
    """Return about how long the features of degree 2 take, from some of the rows; 0 where that is short."""
    (n, d), K = rows.X.shape, rows.Q.shape[1] + 1
    if n * d * d * K < _CHEAP:
        return 0.0
    some = rows.X[: _SHORT // 2].numpy()
    begin = time.monotonic()
    if n * d * d * K < _SINGLE:
        gram(torch.from_numpy(some))
    else:
        ssyrk(1.0, some.astype(np.float32).T)
    # and K products of d x d matrices
    return (time.monotonic() - begin) * K * (n + d) / len(some) * 1.2


@dataclass(frozen=True)
class _Quadratic:
    """What explicit features of degree 2 say beside their Gram matrix."""

    several: list[Moment]
    plus: float = 1.0
    shift: float = 0.0


def _by_features(
    rows: Rows, norms: Tensor, weights: Tensor, degree: int
) -> tuple[dict[int, Tensor], _Quadratic]:
    """Return weights' P_l(directions directions') weights for l <= 2 from sums over rows.

    Columns are ordered by cell.  Without degree 2 where its features would take too much memory.
    """
    d, K, C = rows.X.shape[1], weights.shape[1], len(rows.cells)
    total, linear = weights.new_zeros(C, K), weights.new_zeros(C, K, d)
    for c, part in rows.parts():
        total[c] += weights[part].sum(0)
        linear[c] += weights[part].T @ (rows.X[part] / norms[part, None])
    total, linear = total.reshape(-1, 1), linear.reshape(-1, d)
    grams = {0: total @ total.T}
    if degree >= 1:
        grams[1] = linear @ linear.T
    if degree < 2 or C * K * d * d > _NUMBERS:
        return grams, _Quadratic([])
    square, relative = _squares(rows, norms, weights)
    flat = square.view(C * K, d * d)
    grams[2] = (d * (flat @ flat.T) - grams[0]) / (d - 1)
    # P_2(t) = (d t^2 - 1) / (d - 1): the sum is w' (d B - tr B I) w / (d - 1)
    square.mul_(d / (d - 1))
    square.diagonal(dim1=-2, dim2=-1).sub_(total.view(C, K, 1) / (d - 1))
    error = PAD * (relative * d / (d - 1) + 32.0 * gamma(2 * len(norms) + 4 * d + C * K + 64))
    outer = weights.new_zeros(d, d)
    for c in range(C):  # of the outputs alone, not of the sizes
        stack = square[c, :-1].reshape(-1, d)
        outer += gram(stack)
    bound = proved_eigenvalue(outer) + PAD * gamma((C * K + 8) * d) * float(outer.trace())
    several = [Moment(2, max(0.0, bound) * torch.eye(C * (K - 1)).double(), 0.0, error)]
    tops = [max(0.0, proved_eigenvalue(square[c, -1])) for c in range(C)]
    return grams, _Quadratic(several, (math.hypot(*tops) + error) * UP, PAD * relative * d / (d - 1))


def _squares(rows: Rows, norms: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Return sum_i weights_ik x_i x_i' over each cell's directions, (C, K, d, d), and its error beyond float64's.

    Where there is much to do, sums of at most _SHORT rows are in float32: BLAS adds products in any order,
    so that an entry of such a sum is within gamma_32(_SHORT + 16) of the sum of absolute values, 16 for the entries'
    own conversion, root and product; all together within that times sum |weights_i| = 1 in the Frobenius norm.
    """
    (n, d), K = rows.X.shape, weights.shape[1]
    square = weights.new_zeros(len(rows.cells), K, d, d)
    if n * d * d * K < _SINGLE:
        for c, part in rows.parts():
            y = rows.X[part] / norms[part, None]
            for k in range(K):
                square[c, k] += gram(y, y * weights[part, k, None])
        return square, 0.0
    view = square.numpy()
    for c, part in rows.parts(2 * _SHORT):
        directions = (rows.X[part] / norms[part, None]).numpy()
        for k, column in enumerate(weights[part].numpy().T):
            for sign in (1.0, -1.0):
                used = np.flatnonzero(sign * column > 0.0)
                for start in range(0, len(used), _SHORT):
                    some = used[start : start + _SHORT]
                    root = np.sqrt(sign * column[some])[:, None]
                    # the upper triangle in Fortran's order, hence the lower one of the transpose
                    single = ssyrk(1.0, (directions[some] * root).astype(np.float32).T).T
                    (np.add if sign > 0.0 else np.subtract)(view[c, k], single, out=view[c, k])
    for A in square.flatten(0, 1):
        A.tril_().add_(A.tril(-1).T)
    u = (_SHORT + 16) * _ROUNDOFF_32
    return square, u / (1.0 - u) + 1e-30


def _by_tiles(
    rows: Rows,
    norms: Tensor,
    weights: Tensor,
    degree: int,
    least: int,
    deadline: float,
    device: torch.device | str,
) -> dict[int, Tensor]:
    """Return weights' P_l(directions directions') weights for l = 0, 1 and even l, tile by tile of one triangle.

    Up to a lower degree where time would not do for all, or none where not for the least that is useful.
    """
    (n, d), K = rows.X.shape, weights.shape[1]
    cell = torch.zeros(n, dtype=torch.int64)
    for c, part in enumerate(rows.cells):
        cell[part] = c
    size = _TILE if torch.device(device).type == "cpu" else _GPU_TILE
    parts = []
    for start in range(0, n, size):
        some = slice(start, start + size)
        first, last = int(cell[some][0]), int(cell[some][-1])
        wide = weights.new_zeros(len(cell[some]), last - first + 1, K)
        wide[torch.arange(len(wide)), cell[some] - first] = weights[some]
        x = rows.X[some] / norms[some, None]
        parts.append((x.to(device), wide.flatten(1).to(device), slice(first * K, (last + 1) * K)))
    if math.isfinite(deadline):
        degree = _affordable(parts, d, degree, len(parts) * (len(parts) + 1) / 2, deadline)
        if degree < least:
            return {}
    kept = [k for k in range(degree + 1) if k < 2 or k % 2 == 0]
    grams = {k: weights.new_zeros(len(rows.cells) * K, len(rows.cells) * K, device=device) for k in kept}
    for i, left in enumerate(parts):
        for right in parts[i:]:
            for k, block in _tile(left, right, d, degree):
                grams[k][left[2], right[2]] += block
                if left is not right:
                    grams[k][right[2], left[2]] += block.T
    return {k: M.cpu() for k, M in grams.items()}


_Part = tuple[Tensor, Tensor, slice]


def _affordable(parts: list[_Part], d: int, degree: int, tiles: float, deadline: float) -> int:
    """Return the largest degree for which there seems to be time, from a tile of degree 2 and one of the wanted."""
    seconds = []
    _tile(parts[0], parts[-1], d, 2)
    for most in (2, degree):
        begin = time.monotonic()
        sum(float(block.sum()) for _, block in _tile(parts[0], parts[0], d, most))
        seconds.append((time.monotonic() - begin) * 1.2 * tiles)
    left = deadline - time.monotonic() - seconds[0]
    if left < 0.0:
        return 0
    slope = max(0.0, seconds[1] - seconds[0]) / max(1, degree - 2)
    return degree if slope * (degree - 2) <= left else 2 + int(max(0.0, left) / max(slope, 1e-300))


def _tile(left: _Part, right: _Part, d: int, degree: int) -> list[tuple[int, Tensor]]:
    (x, p, _), (y, q, _) = left, right
    t = (x @ y.T).clamp_(-1.0, 1.0)
    found = [(0, p.sum(0)[:, None] * q.sum(0)), (1, p.T @ (t @ q))]
    before, now = torch.ones_like(t), t
    for k in range(2, degree + 1):  # the recurrence of `gegenbauer`, in place but for t
        b = (k - 1) / (k + d - 3)
        fresh = before.mul_(-b).addcmul_(t, now, value=1.0 + b)
        before, now = (now.clone() if now is t else now), fresh
        if k % 2 == 0:
            found.append((k, p.T @ (now @ q)))
    return found[: degree + 1]

r"""The harmonic bound of the ReLU polar, for any number of inputs and outputs.

Let :math:`\hat x=x/\|x\|`, :math:`\tilde Q_i=\|x_i\|Q_i`, and P_l the Gegenbauer polynomials of the sphere
S^{d-1} with P_l(1) = 1.  :math:`P_l(\hat x\cdot\hat y)` is a positive definite kernel, so that
:math:`\|\sum_i\tilde Q_iP_l(\hat x_i\cdot w)\|\le m_l=\lambda_{\max}(\tilde Q^TP_l(\hat X\hat X^T)\tilde Q)^{1/2}`
for every unit w.  With :math:`s_i=\|\tilde Q_i\|` in place of Q this bounds
:math:`\sum_is_iP_l(\hat x_i\cdot w)` by :math:`m'_l`.  Hence

.. math:: \max_{\|w\|=1}\|Q^T\mathrm{relu}(Xw)\|\le\sum_l|c_l|m_l+e_0S+\sum_{l\ge1}|e_l|m'_l,\qquad S=\sum_is_i,

for all coefficients with :math:`|\mathrm{relu}(t)-\sum_lc_lP_l(t)|\le\sum_le_lP_l(t)` on [-1, 1].  A constant
envelope e_0 = tau is the simplest; one that is large near the kink only is much tighter.
The best coefficients solve a linear program.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from theodolite.linalg.dense import gram
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.spectral import sigma_max

__all__ = ["gegenbauer", "harmonic_coefficients", "harmonic_moments"]

_TILE = 512  # rows and columns of the kernel that are in cache together
_FINE = 1 << 15  # angles at which an envelope is checked


def gegenbauer(t: Tensor, d: int, degree: int) -> list[Tensor]:
    r"""Return P_0(t), ..., P_degree(t) of the sphere in R^d (d >= 2), normalized to P_l(1) = 1.

    For \|t\| <= 1 the value as computed is within ``8 l^2 u`` of P_l(t), u = 2^-53: one step of the
    recurrence, :math:`(l+d-2)P_{l+1}=(2l+d-2)tP_l-lP_{l-1}`, rounds by at most 8 u (1 + o(1)), and an
    error made at step k is multiplied by at most l - k.  *Proof.*  A solution y satisfies, with
    b = l/(l+d-2) <= 1, :math:`z_l=y_{l+1}-ty_l`, :math:`z_{l+1}=b(tz_l-(1-t^2)y_l)`; so
    :math:`(1-t^2)y_l^2+z_l^2` does not grow, it is z_k^2 at the start y_k = 0, and
    :math:`|y_{l+1}|\le|y_l|+|z_l|`.
    """
    values = [torch.ones_like(t), t][: degree + 1]
    for k in range(1, degree):
        a, b = (2 * k + d - 2) / (k + d - 2), k / (k + d - 2)
        values.append((t * values[k]).mul_(a).sub_(values[k - 1], alpha=b))
    return values


def kernel_error(d: int, degree: int) -> float:
    """Return a bound of the error of P_l(x . y), l <= degree, for directions normalized in float64.

    The inner product errs by at most (4 d + 16) u, which P_l' <= P_l'(1) = l (l + d - 2) / (d - 1)
    multiplies; the recurrence adds 8 l^2 u.
    """
    slope = degree * (degree + d - 2) / (d - 1) if degree else 0.0
    return PAD * UNIT_ROUNDOFF * ((4 * d + 16) * slope + 8 * degree**2)


def harmonic_moments(
    X: Tensor,
    Q: Tensor,
    degree: int,
    *,
    deadline: float = math.inf,
    device: torch.device | str = "cpu",
) -> tuple[list[float], list[float], float]:
    r"""Return proved upper bounds of m_l, of m'_l and of S, for l up to `degree` or what time allows.

    Degrees 0, 1 and 2 cost O(n d^2 K) through explicit features, the others O(n^2 (l + K)) in tiles.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64, no zero rows, d >= 2.
    Q : Tensor, shape (n, K)
        Float64, no zero rows.
    degree : int
        Largest l.
    deadline : float
        ``time.monotonic()`` by which to be done; a first tile is timed to choose the degree.
    device : torch.device or str
        Where the kernel is computed, in float64.
    """
    n, d = X.shape
    norms = torch.linalg.vector_norm(X, dim=1)
    directions = X / norms[:, None]
    weights = Q * norms[:, None]
    sizes = torch.linalg.vector_norm(weights, dim=1)
    S = float(sizes.sum()) * (1.0 + 2.0 * gamma(n + d + Q.shape[1] + 8))
    weights = torch.cat([weights, sizes[:, None]], 1)
    if degree <= 2 or (n > 4 * d * d and n > 4 * _TILE):
        grams = _by_features(directions, weights, min(degree, 2))
        if degree > 2:
            tiled = _by_tiles(directions, weights, degree, deadline, device)
            grams = tiled if len(tiled) > len(grams) else grams
    else:
        grams = _by_tiles(directions, weights, degree, deadline, device)
        grams = grams if len(grams) > 1 else _by_features(directions, weights, min(degree, 2))
    several, single = [], []
    for k, product in enumerate(grams):
        error = (kernel_error(d, k) + 2.0 * gamma(2 * n + 4 * d + Q.shape[1] + 32)) * (S * PAD) ** 2
        several.append(math.sqrt(sigma_max(product[:-1, :-1]).high + error) * UP)
        single.append(math.sqrt(max(0.0, float(product[-1, -1])) + error) * UP)
    return several, single, S


def _by_features(directions: Tensor, weights: Tensor, degree: int) -> list[Tensor]:
    """Return weights' P_l(directions directions') weights for l <= 2 from sums over rows."""
    d = directions.shape[1]
    total = weights.sum(0)[:, None]
    grams = [total @ total.T]
    if degree >= 1:
        linear = weights.T @ directions
        grams.append(linear @ linear.T)
    if degree >= 2:
        columns = []
        for column in weights.unbind(1):  # one column at a time: sum_i q_i x_i x_i' is one d x d product
            columns.append(gram(directions, directions * column[:, None]).flatten())
        square = torch.stack(columns)
        grams.append((d * (square @ square.T) - grams[0]) / (d - 1))
    return grams


def _by_tiles(
    directions: Tensor, weights: Tensor, degree: int, deadline: float, device: torch.device | str
) -> list[Tensor]:
    directions, weights = directions.to(device), weights.to(device)
    d = directions.shape[1]
    parts = list(zip(directions.split(_TILE), weights.split(_TILE), strict=True))
    tiles = len(parts) * (len(parts) + 1) / 2
    if math.isfinite(deadline):
        begin = time.monotonic()
        _tile(parts[0], parts[0], d, degree)
        each = (time.monotonic() - begin) * tiles * 1.2 / (degree + 1)
        degree = min(degree, int((deadline - begin) / each) - 1) if each > 0.0 else degree
        if degree < 1:
            return []
    K = weights.shape[1]
    grams = torch.zeros(degree + 1, K, K, dtype=weights.dtype, device=weights.device)
    for i, left in enumerate(parts):
        for right in parts[i:]:
            block = _tile(left, right, d, degree)
            grams += block if left is right else block + block.mT
    return list(grams.cpu())


def _tile(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], d: int, degree: int) -> Tensor:
    (x, p), (y, q) = left, right
    kernels = gegenbauer((x @ y.T).clamp_(-1.0, 1.0), d, degree)
    return torch.stack([p.T @ (kernel @ q) for kernel in kernels])


def harmonic_coefficients(
    several: list[float], single: list[float], S: float, d: int, *, envelope: bool = True
) -> float:
    r"""Return the least harmonic bound that the linear program finds, proved on all of [-1, 1].

    The program has its constraints at cosines of equidistant angles.  Between the angles of a finer grid,
    h apart, a trigonometric polynomial of degree L bounded by B exceeds its chord by at most
    :math:`h^2L^2B/8` (Bernstein); the kink is a node, and relu's own second derivative in the angle is at most 1.
    What the envelope lacks is added to e_0.

    Parameters
    ----------
    several, single, S
        From :func:`harmonic_moments`.
    d : int
        Dimension of the sphere's space.
    envelope : bool
        False for a constant envelope.
    """
    L = len(several) - 1
    nodes = _cosines(16 * max(L, 4))
    basis = torch.stack(gegenbauer(torch.from_numpy(nodes), d, L), 1).numpy()
    relu = np.maximum(nodes, 0.0)
    extra = L + 1 if envelope else 1
    # Variables: c = c+ - c-, e_0 free, e_l = e+ - e- for l >= 1.
    shape = [basis[:, :1], basis[:, 1:extra], -basis[:, 1:extra]]
    upper = np.hstack([basis, -basis, *(-part for part in shape)])
    lower = np.hstack([-basis, basis, *(-part for part in shape)])
    m, m1 = np.array(several) / S, np.array(single)[1:extra] / S
    cost = np.concatenate([m, m, [1.0], m1, m1])
    bounds = [(0.0, None)] * (2 * L + 2) + [(None, None)] + [(0.0, None)] * (2 * len(m1))
    solved = linprog(
        cost, np.vstack([upper, lower]), np.concatenate([relu, -relu]), bounds=bounds, method="highs"
    )
    x = solved.x if solved.status == 0 else np.zeros(len(cost))
    c = x[: L + 1] - x[L + 1 : 2 * L + 2]
    e = np.zeros(L + 1)
    e[0] = x[2 * L + 2]
    e[1:extra] = x[2 * L + 3 : 2 * L + 2 + extra] - x[2 * L + 2 + extra :]
    lack = _lack(c, e, d)
    total = float(np.abs(c) @ np.array(several) + (e[0] + lack) * S + np.abs(e[1:]) @ np.array(single)[1:])
    return total + 4.0 * gamma(4 * L + 16) * float(np.abs(c).sum() + np.abs(e).sum() + lack) * S


def _cosines(size: int) -> NDArray[np.float64]:
    nodes = np.cos(np.linspace(0.0, math.pi, 2 * size + 1))
    nodes[size] = 0.0
    return nodes


def _lack(c: NDArray[np.float64], e: NDArray[np.float64], d: int) -> float:
    """Return a proved bound of the maximum of |relu - sum c_l P_l| - sum e_l P_l, or 0 if that is negative."""
    L = len(c) - 1
    nodes = _cosines(_FINE)
    basis = gegenbauer(torch.from_numpy(nodes), d, L)
    model, envelope = (
        sum((float(a) * P for a, P in zip(x, basis, strict=True)), torch.zeros(len(nodes)).double())
        for x in (c, e)
    )
    worst = float(((torch.from_numpy(nodes).clamp(min=0.0) - model).abs() - envelope).max())
    size = float(np.abs(c).sum() + np.abs(e).sum())
    between = (math.pi / (2 * _FINE)) ** 2 / 8.0 * (L**2 * size + 1.0)
    rounding = (kernel_error(d, L) + gamma(4 * L + 16)) * (size + 1.0) + 8.0 * UNIT_ROUNDOFF
    return max(0.0, worst + PAD * (between + rounding))

r"""The polar of one ReLU layer over all activation patterns: exact for one output, a bound for several.

On the cell of a pattern D, :math:`F(w)=\|Q^T\mathrm{relu}(Xw)\|=\|Q^TDXw\|` and
:math:`(2D-I)Xw\ge0`.  Upper ends come from weak duality on each cell and hold for any multipliers:

- one output, either sign of q, :math:`g=\pm X^TDq`: :math:`g^Tw\le\|g+A^T\mu\|` for every
  :math:`\mu\ge0`, A the unit rows of :math:`(2D-I)X`;
- several outputs, :math:`H=X^TDQQ^TDX`: :math:`F(w)^2\le\lambda_{\max}(H+A^TNA)` for every
  :math:`N\ge0`, since :math:`w^TA^TNAw\ge0` on the cell.

Both are minimized where the cheap bound, without multipliers, does not rule the cell out.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, minimize, nnls
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.polar.ascent import distinct, relu_ascent, relu_values, rounding_margin, unit_rows
from theodolite.polar.cells import PARALLEL, TooManyPatterns, pattern_bound, patterns
from theodolite.polar.scaling import balanced, scaled_back
from theodolite.value import Value

__all__ = ["TooManyPatterns", "arrangement_polar", "pattern_bound", "patterns"]

WIDTH = 1e-9
"""Relative width at which a cell counts as settled, for one output; 100 times that for several."""
_CUTS = 16  # greedy steps of a cell's bound; what they leave open is relaxed fully
_CHUNK = 1 << 21  # numbers in a temporary tensor


def arrangement_polar(
    X: Tensor,
    Q: Tensor,
    *,
    patterns: Tensor | None = None,
    target: float | None = None,
    budget: float | None = None,
    starts: Tensor | None = None,
    k_best: int = 16,
    seed: int = 0,
    limit: int = 100_000,
) -> Value:
    r"""Return a two-sided bound of max F(w), F(w) = |Q' relu(X w)| over unit w, from all patterns of X.

    For one output it is exact up to 1e-9 and rounding.  For several the upper end may be larger than the
    maximum; in 5,000 random small problems it was, by 2e-5 at most.

    Rounding: every upper end carries ``(1e-12 + gamma_k)`` times :math:`\sum_i\|Q_i\|\|x_i\|` plus the
    multipliers' sum: that covers the float64 rounding of the products and signs of entries of Xw below
    1e-12 ||x_i||.  Cells that float64 cannot tell from their boundary, thinner than about 1e-7, may not be
    listed: a maximum inside one, where F is stationary, exceeds F on its boundary, and so a neighbor's bound, by
    half the square of the distance at most, relatively.  Rows are scaled by powers of two first.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    patterns : Tensor of bool, shape (p, n), optional
        What :func:`patterns` returned for X, to be kept by a caller who asks for several Q.
    target : float, optional
        Cells proved to be at most this are not refined further; once F exceeds it the search ends.
    budget : float, optional
        Seconds after which the bound is returned as it stands, valid but looser.
    starts : Tensor, shape (m, d), optional
        Directions to start the search from.
    k_best : int
        Number of directions in the witness at most.
    seed : int
        Of the random starts.
    limit : int
        As in :func:`patterns`.

    Returns
    -------
    Value
        A `bound`; its witness is a tensor (m, d) of unit directions, best first: the first attains the
        lower end, the others are local maxima of other cells.

    Raises
    ------
    TooManyPatterns
        If X has more patterns than `limit`.
    ValueError
        If X or Q is not a finite float64 matrix, or the shapes disagree.
    """
    deadline = math.inf if budget is None else time.monotonic() + budget
    for name, A in (("X", X), ("Q", Q)):
        if A.ndim != 2 or A.dtype != torch.float64 or not A.isfinite().all():
            raise ValueError(f"{name}: expected a finite float64 matrix, got {A.dtype}, {tuple(A.shape)}")
    if len(X) != len(Q):
        raise ValueError(f"Q: expected {len(X)} rows, as X has, got {len(Q)}")
    if patterns is None:
        patterns = _patterns(X, limit=limit)
    elif patterns.ndim != 2 or patterns.shape[1] != len(X):
        raise ValueError(f"patterns: expected shape (p, {len(X)}), got {tuple(patterns.shape)}")
    used = (X != 0.0).any(1) & (Q != 0.0).any(1)
    if not used.any() or X.shape[1] == 0:
        w = torch.eye(1, X.shape[1], dtype=X.dtype)
        return Value.bound(0.0, 0.0, witness=w, note="no row has both an input and a weight")
    if not used.all():
        X, Q, patterns = X[used], Q[used], patterns[:, used]
    X, Q, exponent = balanced(X, Q)
    search = _Search(X, Q, None if target is None else ldexp_rounded(target, -exponent, -1), deadline)
    search.ascend(starts, seed)
    upper = _one_output(search, patterns) if Q.shape[1] == 1 else _several_outputs(search, patterns)
    W, values = torch.cat(search.pool), torch.cat(search.values)
    witness = distinct(W, values, most=k_best)
    note = f"{len(patterns):,} activation patterns (cells told apart in float64), weak duality on each, its rounding enclosed"
    found = Value.bound(search.lower, max(search.lower, upper * UP), witness=witness, note=note)
    return scaled_back(found, exponent)


_patterns = patterns  # the argument of that name hides it


@dataclass
class _Search:
    """The problem, the best points found, and below which number a cell need not be looked at."""

    X: Tensor
    Q: Tensor
    target: float | None
    deadline: float
    pool: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    lower: float = 0.0

    def __post_init__(self) -> None:
        norms = torch.linalg.vector_norm(self.X, dim=1)
        self.units = self.X / norms[:, None]
        self.S = float((torch.linalg.vector_norm(self.Q, dim=1) * norms).sum()) * PAD
        self.margin = rounding_margin(self.X, self.Q)

    @property
    def enough(self) -> float:
        width = WIDTH if self.Q.shape[1] == 1 else 100.0 * WIDTH
        return max(self.lower * (1.0 + width), self.target or 0.0)

    @property
    def over(self) -> bool:
        """Out of time, or the target is exceeded for certain."""
        return time.monotonic() > self.deadline or (self.target is not None and self.lower > self.target)

    def offer(self, W: Tensor) -> None:
        W = unit_rows(W[(W != 0.0).any(1)])
        if len(W):
            self._keep(W, relu_values(self.X, self.Q, W))

    def ascend(self, starts: Tensor | None, seed: int) -> None:
        left = None if self.deadline == math.inf else max(0.0, 0.3 * (self.deadline - time.monotonic()))
        W, values = relu_ascent(self.X, self.Q, starts, n_starts=24, seed=seed, budget=left, max_steps=40)
        self._keep(W, values)

    def polish(self) -> None:
        """Raise the best points inside their cells: u = Q'Xw on a cell, then w = the projection of X'DQu on it."""
        W = distinct(torch.cat(self.pool), torch.cat(self.values), most=3, fraction=0.98)
        for i in range(len(W)):
            w = W[i]
            active = self.X @ w > 0.0
            A = torch.where(active[:, None], self.units, -self.units).T
            M = self.X.T @ (active[:, None] * self.Q)
            for _ in range(20):
                u = M.T @ w
                g = M @ (u / float(torch.linalg.vector_norm(u).clamp(min=1e-300)))
                mu = _multipliers(A, -g)
                w = unit_rows((g + A @ mu)[None])[0]
            W[i] = w
        self.offer(W)

    def _keep(self, W: Tensor, values: Tensor) -> None:
        self.pool.append(W)
        self.values.append(values)
        self.lower = max(self.lower, float(values.max()) - self.margin)


def _one_output(search: _Search, patterns: Tensor) -> float:
    q = search.Q[:, 0]
    n, d = search.X.shape
    A = search.X * q[:, None]
    G = torch.cat([part.double() @ A for part in patterns.split(max(1, _CHUNK // n))])
    unit = PARALLEL + gamma(2 * n + 8 * d + 256)  # relative error of a bound after at most 50 steps
    cheap = torch.linalg.vector_norm(G, dim=1) + unit * search.S
    order = cheap.argsort(descending=True)
    search.offer(G[order[:32]])
    search.offer(-G[order[:32]])
    upper, open_cells = 0.0, []
    for sign in (1.0, -1.0):
        left = order[: int((cheap[order] > search.enough).sum())]
        for which in left.split(max(1, _CHUNK // n)):
            which = which[cheap[which] > search.enough]
            if search.over:
                upper = max(upper, float(cheap[which].max(0).values) if len(which) else 0.0)
                continue
            closed, cells = _descend_dual(search, sign * G[which], patterns[which], cheap[which], unit)
            upper = max(upper, closed)
            open_cells += [(bound, sign, int(which[i])) for bound, i in cells]
    settled = float(cheap[cheap <= search.enough].max()) if bool((cheap <= search.enough).any()) else 0.0
    open_cells.sort(reverse=True)
    for bound, sign, i in open_cells:
        if bound > search.enough and not search.over:
            bound = min(bound, _project(search, sign * G[i], patterns[i], unit))
        upper = max(upper, bound)
    return max(upper, settled)


def _descend_dual(
    search: _Search, V: Tensor, patterns: Tensor, bounds: Tensor, unit: float
) -> tuple[float, list[tuple[float, int]]]:
    """Minimize |V_i + A_i' mu| over mu >= 0 for many cells by greedy coordinate descent.

    Returns the largest bound among cells that were settled, and (bound, index) of the others.
    """
    V, bounds = V.clone(), bounds.clone()
    signs = patterns.double().mul_(2.0).sub_(1.0)
    mu = torch.zeros_like(signs)
    path = torch.zeros(len(V), dtype=V.dtype)
    index = torch.arange(len(V))
    closed = 0.0
    done: list[tuple[float, int]] = []
    for k in range(50):
        heights = (V @ search.units.T).mul_(signs)
        change = torch.maximum(-mu, -heights)
        size, j = change.abs().max(1)
        step = change.gather(1, j[:, None])
        V = V + step * signs.gather(1, j[:, None]) * search.units[j]
        mu.scatter_add_(1, j[:, None], step)
        path = path + size
        norm = torch.linalg.vector_norm(V, dim=1)
        bounds = torch.minimum(bounds, norm + unit * (search.S + path))
        if k % 4 == 3:
            top = bounds.topk(min(16, len(V))).indices
            search.offer(V[top])
        settled = bounds <= search.enough
        converged = (size <= 1e-11 * norm) & ~settled
        if bool(settled.any()):
            closed = max(closed, float(bounds[settled].max()))
        done += zip(bounds[converged].tolist(), index[converged].tolist(), strict=True)
        left = ~(settled | converged)
        if not left.all():
            V, bounds, signs, mu = V[left], bounds[left], signs[left], mu[left]
            path, index = path[left], index[left]
        if not len(V) or search.over:
            break
    return closed, done + list(zip(bounds.tolist(), index.tolist(), strict=True))


def _project(search: _Search, g: Tensor, pattern: Tensor, unit: float) -> float:
    """Return an upper end on one cell, with the multipliers of the projection on its cone."""
    A = torch.where(pattern[:, None], search.units, -search.units)
    multipliers = _multipliers(A.T, -g)
    v = g + A.T @ multipliers
    search.offer(v[None])
    return float(torch.linalg.vector_norm(v)) + unit * (search.S + float(multipliers.sum()) * PAD)


def _multipliers(A: Tensor, b: Tensor) -> Tensor:
    """Return mu >= 0 that minimizes |A mu - b|; any is valid, so that a method may run out of steps."""
    best = np.zeros(A.shape[1])
    if not len(best):  # on which SciPy 1.17 frees memory twice
        return torch.from_numpy(best)
    matrix, target = A.numpy(), b.numpy()
    with suppress(RuntimeError):
        best, _ = nnls(matrix, target, maxiter=50 * len(best))
    rest = target - matrix @ best
    if not float((matrix.T @ rest).max()) <= 1e-9 * float(np.linalg.norm(target)):
        # not optimal, as at times with SciPy 1.15
        other = lsq_linear(matrix, target, bounds=(0.0, np.inf), method="bvls", tol=1e-15).x.clip(min=0.0)
        if not np.linalg.norm(target - matrix @ other) >= np.linalg.norm(rest):
            best = other
    return torch.from_numpy(best if np.isfinite(best).all() else np.zeros_like(best))


def _several_outputs(search: _Search, patterns: Tensor) -> float:
    X, Q = search.X, search.Q
    n, d = X.shape
    K = Q.shape[1]
    products = (X[:, :, None] * Q[:, None, :]).reshape(n, d * K)
    error = (PARALLEL + gamma(2 * n + 8)) * search.S
    upper, forms, bounds, indices = 0.0, [], [], []
    step = max(1, _CHUNK // (n + d * K + d * d))
    for first in range(0, len(patterns), step):
        M = (patterns[first : first + step].double() @ products).view(-1, d, K)
        H = M @ M.mT
        lost = gamma(K + 4 * d + 16) * PAD * M.square().sum((1, 2))
        bound = (torch.linalg.matrix_norm(H) * UP + lost).sqrt() * UP + error  # sigma_max^2 <= |H|_F
        best = bound.topk(min(16, len(bound))).indices
        _, _, vectors = proved_top(H[best], lost[best])
        search.offer(torch.cat([vectors[..., -1], -vectors[..., -1]]))
        index = torch.arange(first, first + len(M))
        settled = bound <= search.enough
        if bool(settled.any()):
            upper = max(upper, float(bound[settled].max()))
            H, lost, bound, index = (x[~settled] for x in (H, lost, bound, index))
        forms.append(H)
        bounds.append(bound)
        indices.append(index)
    H, bound, index = torch.cat(forms), torch.cat(bounds), torch.cat(indices)
    order = bound.argsort(descending=True)
    for which in order.split(max(1, _CHUNK // (4 * n))) if len(order) else ():
        if search.over:
            upper = max(upper, float(bound[which].max()))
        else:
            upper = max(upper, _cut(search, H[which], patterns[index[which]], bound[which], error))
            search.polish()
    return upper


def _cut(search: _Search, H: Tensor, patterns: Tensor, bounds: Tensor, error: float) -> float:
    r"""Minimize the largest eigenvalue of H + A'NA over N >= 0 for many cells; return the largest bound.

    A step adds t (b c' + c b'), where b and c are nonnegative combinations of the cell's unit normals,
    so that (b . w)(c . w) >= 0 on the cell: b = v - e where v is the projection of the top eigenvector e on the
    cone, c the same for W b, W a density matrix around e e' that anticipates a double eigenvalue.
    """
    signs = patterns.double().mul_(2.0).sub_(1.0)
    unit = PARALLEL + gamma(search.X.shape[1] + search.Q.shape[1] + 64)
    loss = unit * H.diagonal(dim1=-2, dim2=-1).sum(-1)  # of the relaxation, by rounding
    closed, start = 0.0, H
    for k in range(_CUTS):
        top, values, V = proved_top(H, loss)
        bounds = torch.minimum(bounds, top.sqrt() * UP + error)
        settled = bounds <= search.enough
        if bool(settled.any()):
            closed = max(closed, float(bounds[settled].max()))
            left = ~settled
            H, signs, bounds, loss, values, V = (x[left] for x in (H, signs, bounds, loss, values, V))
            start = start[left]
        if not len(H) or search.over:
            break
        b, spread, inside = _normal_part(search.units, signs, V[..., -1])
        _, _, inside_opposite = _normal_part(search.units, signs, -V[..., -1])
        best = bounds.topk(min(16, len(bounds))).indices
        search.offer(torch.cat([inside[best], inside_opposite[best]]))
        if k % 4 == 3:
            search.polish()
        # ever sharper, and blunt again where that has led to a double eigenvalue
        weights = (2.0 ** (1 + k % 8) * (values / values[:, -1:].clamp(min=1e-300) - 1.0)).exp()
        W = (V * (weights / weights.sum(1, keepdim=True))[:, None, :]) @ V.mT
        for _ in range(2):
            c, spread_c, _ = _normal_part(search.units, signs, (W @ b[:, :, None])[:, :, 0])
            b, spread, c, spread_c = c, spread_c, b, spread
        E = 0.5 * (b[:, :, None] * c[:, None, :] + c[:, :, None] * b[:, None, :])
        top = values[:, -1]
        size = torch.linalg.matrix_norm(E)
        far = torch.where(size > 1e-9, 4.0 * top / size, 0.0)
        t, top = _line_search(H, E, top, far, 6 if k == 0 else 14)
        H = H + t[:, None, None] * E
        if k % 2:  # N as a whole may have become too large
            back, top = _line_search(H, start - H, top, torch.ones_like(top), 14)
            H = H + back[:, None, None] * (start - H)
        # Normals are unit vectors, so b . w >= -unit spread and |b . w| <= 1: the product is >= -unit (...).
        loss = loss + unit * (t * (spread + spread_c + 1.0) + torch.linalg.matrix_norm(H))
    for i in bounds.argsort(descending=True).tolist():
        bound = float(bounds[i])
        if bound > search.enough and not search.over:
            bound = min(bound, _relax(search.units * signs[i][:, None], start[i], unit) + error)
        closed = max(closed, bound)
    return closed


def _relax(A: Tensor, H: Tensor, unit: float) -> float:
    """Return the root of the least eigenvalue bound of one cell over all N, by L-BFGS on the cell's facets."""
    facets = _facets(A)
    if len(facets) < 2:
        return math.inf
    first, second = torch.triu_indices(len(facets), len(facets), 1)
    E = facets[first][:, :, None] * facets[second][:, None, :]
    E = 0.5 * (E + E.mT)
    size = float(torch.linalg.matrix_norm(H))

    def smoothed(x: NDArray[np.float64], sharpness: float) -> tuple[float, NDArray[np.float64]]:
        values, V = torch.linalg.eigh(H / size + torch.einsum("p,pij->ij", torch.from_numpy(x), E))
        weights = (sharpness * (values - values[-1])).exp()
        W = (V * (weights / weights.sum())) @ V.T
        return float(values[-1] + weights.sum().log() / sharpness), torch.einsum("ij,pij->p", W, E).numpy()

    x = np.zeros(len(E))
    for sharpness in (10.0, 100.0, 1000.0, 1e4, 1e5, 1e6):
        x = minimize(smoothed, x, (sharpness,), "L-BFGS-B", jac=True, bounds=[(0.0, None)] * len(x)).x
    relaxed = H + size * torch.einsum("p,pij->ij", torch.from_numpy(x), E)
    total = size * float(x.sum())
    loss = unit * (float(H.trace()) + 4.0 * total + float(torch.linalg.matrix_norm(relaxed)))
    return float(proved_top(relaxed[None], torch.tensor([loss]).to(H))[0]) ** 0.5 * UP


def _facets(A: Tensor) -> Tensor:
    """Return those rows of A that are no nonnegative combination of the others."""
    kept = list(range(len(A)))
    for i in range(len(A)):
        others = A[[j for j in kept if j != i]].T
        mu = _multipliers(others, A[i])
        if float(torch.linalg.vector_norm(others @ mu - A[i])) < 1e-9:
            kept.remove(i)
    return A[kept]


def _normal_part(units: Tensor, signs: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit (or zero) b = sum_i mu_i s_i units_i, mu >= 0, about where g + b is g's projection on the cone.

    Also the sum of mu over |sum|, and the projection.
    """
    v, b = g.clone(), torch.zeros_like(g)
    mu, total = torch.zeros_like(signs), torch.zeros_like(g[:, :1])
    for _ in range(2 * g.shape[1]):
        change = torch.maximum(-mu, (v @ units.T).mul_(signs).neg_())
        size, j = change.abs().max(1, keepdim=True)
        step = change.gather(1, j)
        added = step * signs.gather(1, j) * units[j[:, 0]]
        v, b, total = v + added, b + added, total + size
        mu.scatter_add_(1, j, step)
    norm = torch.linalg.vector_norm(b, dim=1, keepdim=True).clamp(min=1e-300)
    return b / norm, (total / norm)[:, 0], v


def _line_search(H: Tensor, E: Tensor, top: Tensor, far: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Return t in [0, far] that nearly minimizes the largest eigenvalue of H + t E, and that eigenvalue.

    t is 0 where none lowers it below `top`.
    """
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)

    def value(t: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(H + t[:, None, None] * E)[:, -1]

    low, high = torch.zeros_like(top), far
    a, c = high - ratio * (high - low), low + ratio * (high - low)
    fa, fc = value(a), value(c)
    for _ in range(rounds):
        left = fa < fc
        high, low = torch.where(left, c, high), torch.where(left, low, a)
        fresh = torch.where(left, high - ratio * (high - low), low + ratio * (high - low))
        fresh_value = value(fresh)
        a, c = torch.where(left, fresh, c), torch.where(left, a, fresh)
        fa, fc = torch.where(left, fresh_value, fc), torch.where(left, fa, fresh_value)
    t, best = torch.where(fa < fc, a, c), torch.minimum(fa, fc)
    lower = best < top
    return torch.where(lower, t, 0.0), torch.where(lower, best, top)


def proved_top(H: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return proved upper bounds of the largest eigenvalues of symmetric matrices, and LAPACK's eigenpairs.

    With any V for which :math:`\|V^TV-I\|\le e<1`:
    :math:`\lambda_{\max}(H)\le\max(0,\lambda_{\max}(V^THV))/(1-e)`, and Gershgorin's disks bound the
    right side tightly when the columns of V are nearly eigenvectors.

    Parameters
    ----------
    H : Tensor, shape (p, s, s)
    error : Tensor, shape (p,)
        Bound of ||H - exact H||, to be added.
    """
    s = H.shape[-1]
    values, V = torch.linalg.eigh(H)
    size = torch.linalg.matrix_norm(H)
    e = torch.linalg.matrix_norm(V.mT @ V - torch.eye(s, dtype=H.dtype)) * PAD + 4.0 * s * gamma(s + 2)
    B = V.mT @ H @ V
    radius = B.abs().sum(-1) - B.diagonal(dim1=-2, dim2=-1).abs()
    disks = (B.diagonal(dim1=-2, dim2=-1) + radius).amax(-1).clamp(min=0.0)
    rounding = 4.0 * s * gamma(2 * s + 4) * size
    return (disks + rounding + error) * UP / (1.0 - e).clamp(min=1e-300), values, V

r"""Search for good directions: what it finds is a lower end, never a certificate.

:func:`relu_ascent` maximizes :math:`F(w)=\|Q^T\mathrm{relu}(Xw)\|_2` over unit vectors,
:func:`ascend` any differentiable function of stacked parameters.  With cells of rows, as of pooled patches,
:math:`F(w)^2=\sum_c\|Q_c^T\mathrm{relu}(X_cw)\|_2^2`: columns of Q that are zero outside a cell need not be held.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from theodolite.linalg.lanczos import gamma

__all__ = [
    "ascend",
    "climb",
    "distinct",
    "relu_ascent",
    "relu_values",
    "rounding_margin",
    "segments",
    "unit_rows",
]

Params = tuple[Tensor, ...]
_CHUNK = 1 << 23  # numbers in a temporary tensor
_MANY, _SAMPLE, _FINALISTS = 16_000, 4_000, 4  # beyond so many rows, starts ascend on a sample first


def unit_rows(W: Tensor) -> Tensor:
    """Return each row over its norm, however small that is; zero rows stay zero."""
    return W / torch.linalg.vector_norm(W, dim=1, keepdim=True).clamp(min=1e-300)


def relu_values(X: Tensor, Q: Tensor, W: Tensor, cells: Tensor | None = None) -> Tensor:
    """Return F(w) = |Q' relu(X w)| for each row of W, shape (m,), as computed in float64.

    ``cells``, nondecreasing, says to which cell each row belongs.  For unit rows F is within
    :func:`rounding_margin` of the exact value.
    """
    step = max(1, _CHUNK // max(1, len(X)))
    parts = segments(cells, len(X))
    values = [torch.linalg.vector_norm(_outputs((V @ X.T).relu_(), Q, parts), dim=1) for V in W.split(step)]
    return torch.cat(values) if values else W.new_zeros(0)


def segments(cells: Tensor | None, n: int) -> list[slice]:
    """Return which of n rows each cell has, for nondecreasing cells; None is a single cell."""
    if cells is None or not n:
        return [slice(0, n)]
    ends = [0, *cells.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _outputs(hidden: Tensor, Q: Tensor, parts: list[slice]) -> Tensor:
    """Return the sums of hidden_i Q_i over each cell, shape (m, cells K), from hidden units (m, n)."""
    if len(parts) == 1:
        return hidden @ Q
    return torch.cat([hidden[:, part] @ Q[part] for part in parts], 1)


def _slopes(u: Tensor, Q: Tensor, parts: list[slice]) -> Tensor:
    """Return Q_i . u_c for each row i, of cell c, shape (m, n): the adjoint of :func:`_outputs`."""
    if len(parts) == 1:
        return u @ Q.T
    return torch.cat([v @ Q[part].T for v, part in zip(u.split(Q.shape[1], 1), parts, strict=True)], 1)


def rounding_margin(X: Tensor, Q: Tensor, cells: Tensor | None = None) -> float:
    """Return a bound of the rounding error of F(w) at unit w: 2 gamma_k sum |Q_i| |x_i|, k = n + d + CK + 16.

    Inner products of d terms, sums of n and a norm of K for each of C cells; another 16 for |w| = 1 up to
    rounding.
    """
    columns = Q.shape[1] * len(segments(cells, len(X)))
    S = float((torch.linalg.vector_norm(Q, dim=1) * torch.linalg.vector_norm(X, dim=1)).sum())
    return 2.0 * gamma(len(X) + X.shape[1] + columns + 16) * S


def relu_ascent(
    X: Tensor,
    Q: Tensor,
    starts: Tensor | None = None,
    *,
    cells: Tensor | None = None,
    n_starts: int = 32,
    seed: int = 0,
    budget: float | None = None,
    max_steps: int = 100,
    tol: float = 1e-10,
) -> tuple[Tensor, Tensor]:
    r"""Ascend F(w) = |Q' relu(X w)| over unit vectors from many starts at once; monotone for each.

    A step tries the power step :math:`w\leftarrow X^TDQu/\|\cdot\|` (D the active rows,
    :math:`u=Q^T\mathrm{relu}(Xw)/\|\cdot\|`) and moves along gradients in which the kinks are smoothed,
    :math:`D_i=\mathrm{clip}(\frac12+x_i^Tw/2s\|x_i\|,0,1)`, with a step and a width s of each start's own
    that grow when they help and shrink when they do not.  So it creeps along kinks,
    where maxima of F often lie, without knowing which of them are active.  Where there are many rows, all
    starts ascend on a sample of them and only a few, the best on all rows, go on there.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    starts : Tensor, shape (m, d), optional
        Further starts; zero rows are left out.
    cells : Tensor of int64, shape (n,), optional
        The cell of each row, nondecreasing; one cell by default.
    n_starts : int
        Random starts: half of them Gaussian, half rows of X with either sign.
    seed : int
        Of the random starts.
    budget : float, optional
        Seconds after which to stop.
    max_steps : int
        Steps of every start.
    tol : float
        A start stops when ten steps raise it by less than this, relatively.

    Returns
    -------
    W : Tensor, shape (m, d)
        Unit rows, best first: one for each start, or those few.
    values : Tensor, shape (m,)
        F at these rows, as computed.
    """
    deadline = math.inf if budget is None else time.monotonic() + budget
    W = _starting_points(X, starts, n_starts, seed)
    used = torch.linalg.vector_norm(X, dim=1) > 0.0
    X, Q, cells = X[used], Q[used], None if cells is None else cells[used]
    if not len(W) or not len(X):
        return W, W.new_zeros(len(W))
    if len(X) <= _MANY:
        best, values = climb(X, Q, W, cells=cells, deadline=deadline, max_steps=max_steps, tol=tol)
    else:
        now = time.monotonic()
        chosen = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))[:_SAMPLE].sort().values
        some, their_cells = (X[chosen], Q[chosen]), None if cells is None else cells[chosen]
        before = relu_values(*some, W, their_cells)
        soon = now + 0.25 * (deadline - now)
        tried, after = climb(*some, W, cells=their_cells, deadline=soon, max_steps=max_steps, tol=tol)
        # a sample misleads: the best starts themselves stay in the field, and so do those of the caller
        fields = [A[v.argsort(descending=True)[: 2 * _FINALISTS]] for v, A in ((after, tried), (before, W))]
        field = torch.cat([*fields, W[: len(W) - n_starts]])
        top = relu_values(X, Q, field, cells).argsort(descending=True, stable=True)[:_FINALISTS]
        best, values = climb(X, Q, field[top], cells=cells, deadline=deadline, max_steps=max_steps, tol=tol)
    order = values.argsort(descending=True, stable=True)
    return best[order], values[order]


def climb(
    X: Tensor,
    Q: Tensor,
    W: Tensor,
    *,
    cells: Tensor | None = None,
    deadline: float = math.inf,
    max_steps: int = 100,
    tol: float = 1e-10,
    reach: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Ascend F on all rows from each unit row of W, as :func:`relu_ascent` does.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64, no row zero.
    Q : Tensor, shape (n, K)
    W : Tensor, shape (m, d)
    cells : Tensor of int64, shape (n,), optional
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    max_steps, tol : int, float
        As in :func:`relu_ascent`.
    reach : float
        First step, less where the starts are near a maximum.

    Returns
    -------
    W : Tensor, shape (m, d)
        In the order of the starts.
    values : Tensor, shape (m,)
    """
    norms = torch.linalg.vector_norm(X, dim=1)
    values, best, parts = relu_values(X, Q, W, cells), W.clone(), segments(cells, len(X))
    step = torch.full((len(W), 1), reach, dtype=W.dtype)
    width = torch.full((len(W), 1), 0.6 * reach, dtype=W.dtype)
    alive = torch.arange(len(W))
    marked = values.clone()
    for k in range(max_steps):
        if time.monotonic() > deadline or not len(alive):
            break
        w = best[alive]
        T = w @ X.T
        u = _outputs(T.relu(), Q, parts)
        u = unit_rows(u) if u.shape[1] > 1 else torch.sign(u)
        slopes = _slopes(u, Q, parts)
        power = unit_rows((slopes * (T > 0.0)) @ X)
        soft = (slopes * (0.5 + T / (2.0 * width[alive] * norms)).clamp_(0.0, 1.0)) @ X
        tangent = soft - (soft * w).sum(1, keepdim=True) * w
        tangent = unit_rows(tangent)
        along = unit_rows(w + step[alive] * tangent)
        tried = torch.stack([relu_values(X, Q, power, cells), relu_values(X, Q, along, cells)])
        top, which = tried.max(0)
        moved = top > values[alive]
        chosen = torch.where((which == 0)[:, None], power, along)
        best[alive[moved]], values[alive[moved]] = chosen[moved], top[moved]
        helped = (tried[1] > values[alive] * (1.0 - 1e-15)) & (which == 1) & moved
        step[alive] *= torch.where(helped, 1.6, torch.where(moved, 1.0, 0.4))[:, None]
        width[alive] = torch.where(moved[:, None], width[alive], (0.6 * width[alive]).clamp(min=1e-9))
        step[alive] = torch.maximum(step[alive], 0.05 * width[alive]).clamp_(max=1.0)
        if k % 10 == 9:
            going = values[alive] > (1.0 + tol) * marked[alive]
            going |= width[alive, 0] > 1e-6
            marked[alive] = values[alive]
            alive = alive[going]
    return best, values


def _starting_points(X: Tensor, starts: Tensor | None, n_starts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n_starts, X.shape[1], dtype=X.dtype, generator=generator)
    if len(X):
        rows = torch.randint(len(X), (n_starts // 2,), generator=generator)
        sign = torch.where(torch.arange(n_starts // 2) % 2 == 0, 1.0, -1.0)[:, None]
        random[: n_starts // 2] = sign * X[rows]
    W = random if starts is None else torch.cat([starts.to(X), random])
    W = W[torch.linalg.vector_norm(W, dim=1) > 0.0]
    return unit_rows(W)


def distinct(W: Tensor, values: Tensor, *, most: int, fraction: float = 0.5, angle: float = 1e-4) -> Tensor:
    """Return the rows of W worth keeping, best first: values above a fraction of the best, directions apart.

    Parameters
    ----------
    W : Tensor, shape (m, d)
        Unit rows.
    values : Tensor, shape (m,)
    most : int
        Number of rows to return at most; at least one is returned if there is one.
    fraction : float
        Of the best value that a row must reach.
    angle : float
        Distance between rows below which the worse is dropped.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[values[order] >= fraction * values[order[:1]]]
    kept: list[int] = []
    for i in order.tolist():
        if len(kept) >= most:
            break
        if not kept or float((W[kept] - W[i]).abs().amax(1).min()) > angle:
            kept.append(i)
    return W[kept]


def ascend(
    ratio: Callable[[Params], Tensor],
    starts: Params,
    *,
    budget: float | None = None,
    max_steps: int = 100,
    memory: int = 8,
    tol: float = 1e-9,
) -> tuple[Params, Tensor]:
    """Maximize a function of each of r stacked parameter sets by L-BFGS, all at once.

    Each set has curvature pairs and a line search of its own, so that each is monotone.

    Parameters
    ----------
    ratio : function(Params) -> Tensor of shape (r,)
        Differentiable by autograd; entry i depends on the i-th subnetwork alone, for example
        <Q, phi(W_i)> / theta(W_i).
    starts : tuple of Tensor
        Stacked along the leading axis.
    budget : float, optional
        Seconds after which to stop.
    max_steps : int
        Of each set.
    memory : int
        Curvature pairs kept.
    tol : float
        Stop when ten steps raise no value by more than this, relatively to the largest.

    Returns
    -------
    params : tuple of Tensor
        In the order of the starts.
    values : Tensor, shape (r,)
    """
    deadline = math.inf if budget is None else time.monotonic() + budget
    shapes = [p.shape for p in starts]
    sizes = [math.prod(shape[1:]) for shape in shapes]
    x = torch.cat([p.detach().flatten(1) for p in starts], 1)

    def unstack(flat: Tensor) -> Params:
        return tuple(p.reshape(s) for p, s in zip(flat.split(sizes, 1), shapes, strict=True))

    def value(flat: Tensor) -> Tensor:
        with torch.no_grad():
            return ratio(unstack(flat)).nan_to_num(nan=-math.inf)

    def both(flat: Tensor) -> tuple[Tensor, Tensor]:
        flat = flat.detach().requires_grad_()
        values = ratio(unstack(flat))
        (gradient,) = torch.autograd.grad(values.sum(), flat)
        return values.detach().nan_to_num(nan=-math.inf), gradient.nan_to_num()

    f, g = both(x)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    marked = f.clone()
    for k in range(max_steps):
        if time.monotonic() > deadline:
            break
        direction = _two_loop(g, pairs)
        slope = (direction * g).sum(1, keepdim=True)
        direction = torch.where(slope > 0.0, direction, g)
        slope = (direction * g).sum(1, keepdim=True)
        size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        longest = (0.5 * size / length).nan_to_num(posinf=1.0)
        t = torch.minimum(torch.ones_like(longest), longest) if pairs else 0.1 * longest
        done = torch.zeros_like(t, dtype=torch.bool)
        for _ in range(30):
            trial = value(x + t * direction)[:, None]
            done |= trial >= f[:, None] + 1e-4 * t * slope
            if bool(done.all()):
                break
            t = torch.where(done, t, 0.4 * t)
        t = torch.where(done & (slope > 0.0), t, 0.0)
        x_new = x + t * direction
        f_new, g_new = both(x_new)
        worse = (f_new < f)[:, None]
        x_new, f_new = torch.where(worse, x, x_new), torch.maximum(f, f_new)
        g_new = torch.where(worse, g, g_new)
        s, y = x_new - x, g - g_new
        curvature = (s * y).sum(1, keepdim=True)
        good = curvature > 1e-12 * torch.linalg.vector_norm(s, dim=1, keepdim=True) ** 2
        pairs.append((s, y, torch.where(good, 1.0 / curvature, 0.0)))
        del pairs[:-memory]
        x, f, g = x_new, f_new, g_new
        if k % 10 == 9:
            if bool((f - marked <= tol * f.abs().max()).all()):
                break
            marked = f.clone()
    return unstack(x), f


def _two_loop(g: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the L-BFGS ascent direction of each row; pairs with 1 / (s . y) = 0 have no effect."""
    q, alphas = g.clone(), []
    for s, y, rho in reversed(pairs):
        alpha = rho * (s * q).sum(1, keepdim=True)
        q = q - alpha * y
        alphas.append(alpha)
    scale = torch.ones_like(g[:, :1])
    for _, y, rho in pairs:  # the latest useful pair of each row
        scale = torch.where(rho > 0.0, 1.0 / (rho * (y * y).sum(1, keepdim=True)).clamp(min=1e-300), scale)
    q = scale * q
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - rho * (y * q).sum(1, keepdim=True)) * s
    return q

r"""Anisotropic total variation on a grid: :math:`\|Du\|_1` with D the differences of neighbors.

Its dual is a box: every z with :math:`|z|\le1` on the edges gives :math:`\langle D^\top z, u\rangle\le\|Du\|_1`,
which is why splittings of a polar (:mod:`theodolite.polar.splitting`) take this total variation rather than
the isotropic one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EVERY = 10  # iterations between two looks at the gap

__all__ = ["differences", "differences_adjoint", "prox_total_variation", "squared_norm_bound"]


def differences(X: Tensor, grid: tuple[int, ...], axis: int = -1) -> Tensor:
    """Return the differences between neighbors of signals on a grid.

    Parameters
    ----------
    X : Tensor, shape (k, n) or, with axis 0, (n, k)
        Signals of n = prod(grid) values each, the last grid axis running fastest.
    grid : tuple of int
    axis : {-1, 0}
        Where the signals lie.

    Returns
    -------
    Tensor, shape (k, edges) or (edges, k)
        Edges along the first grid axis first.
    """
    k = X.shape[1] if axis == 0 else X.shape[0]
    whole = X.reshape(*grid, k) if axis == 0 else X.reshape(k, *grid)
    first = 0 if axis == 0 else 1
    parts = [whole.diff(dim=first + d) for d in range(len(grid))]
    return torch.cat([p.flatten(0, -2) if axis == 0 else p.flatten(1) for p in parts], axis)


def differences_adjoint(Z: Tensor, grid: tuple[int, ...], axis: int = -1) -> Tensor:
    """Return D^T Z for Z of the shape that :func:`differences` returns."""
    k = Z.shape[1] if axis == 0 else Z.shape[0]
    first, start = (0 if axis == 0 else 1), 0
    shape = (*grid, k) if axis == 0 else (k, *grid)
    total = Z.new_zeros(shape)
    for d, length in enumerate(grid):
        edges = [*grid[:d], length - 1, *grid[d + 1 :]]
        size = math.prod(edges)
        part = Z.narrow(first, start, size).reshape((*edges, k) if axis == 0 else (k, *edges))
        start += size
        if length > 1:
            total.narrow(first + d, 1, length - 1).add_(part)
            total.narrow(first + d, 0, length - 1).sub_(part)
    return total.flatten(0, -2) if axis == 0 else total.flatten(1)


def squared_norm_bound(grid: tuple[int, ...]) -> float:
    """Return a bound of the largest eigenvalue of D^T D: four for each axis."""
    return 4.0 * max(1, sum(length > 1 for length in grid))


def prox_total_variation(
    Y: Tensor,
    t: Tensor,
    grid: tuple[int, ...],
    *,
    dual: Tensor | None = None,
    tol: float = 1e-10,
    max_iterations: int = 500,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\arg\min_X\frac12\|X-Y\|^2+\sum_it_i\|DX_i\|_1` for several signals at once.

    Accelerated projected gradient on the dual, restarted, until the duality gap is below tol times the
    squared norm of Y.

    Parameters
    ----------
    Y : Tensor, shape (k, n)
    t : Tensor, shape (k,)
        Nonnegative weights.
    grid : tuple of int
    dual : Tensor, shape (k, edges), optional
        Where to start, such as the solution of a problem nearby.
    tol : float
    max_iterations : int

    Returns
    -------
    X : Tensor, shape (k, n)
    dual : Tensor, shape (k, edges)

    References
    ----------
    Beck and Teboulle, Fast gradient-based algorithms for constrained total variation image denoising
    and deblurring problems, IEEE Trans. Image Process. 18 (2009).
    """
    limit = t[:, None]
    k, lengths = len(Y), [math.prod(grid) // n * (n - 1) for n in grid]
    # one flat buffer for the dual variables of all axes, with views for each: overhead decides on small grids
    point = Y.new_zeros(k, sum(lengths))
    if dual is not None:
        torch.clamp(dual, -limit, limit, out=point)
    z, fresh, slope, change = point.clone(), *(torch.empty_like(point) for _ in range(3))
    whole, signals = Y.reshape(k, *grid), torch.empty_like(Y)
    X = signals.view(k, *grid)
    axes = [d for d, n in enumerate(grid) if n > 1]
    places = [(X.narrow(d + 1, 1, grid[d] - 1), X.narrow(d + 1, 0, grid[d] - 1)) for d in axes]

    def split(flat: Tensor) -> list[Tensor]:
        parts = flat.split(lengths, 1)
        return [parts[d].view(k, *grid[:d], grid[d] - 1, *grid[d + 1 :]) for d in axes]

    rises = split(slope)

    def forward(parts: list[Tensor]) -> None:
        X.copy_(whole)
        for (after, before), part in zip(places, parts, strict=True):
            after.sub_(part)
            before.add_(part)
        for (after, before), rise in zip(places, rises, strict=True):
            torch.sub(after, before, out=rise)

    step, allowed = 1.0 / squared_norm_bound(grid), tol * float(Y.square().sum())
    views = {id(b): split(b) for b in (point, z, fresh)}
    momentum, last = 1.0, math.inf
    for iteration in range(max_iterations):
        if iteration % _EVERY == 0:
            forward(views[id(z)])
            gap = float(torch.addcmul(limit * slope.abs(), z, slope, value=-1.0).sum())
            if gap <= allowed:
                break
            if gap > last:  # momentum led astray
                point.copy_(z)
                momentum = 1.0
            last = gap
        forward(views[id(point)])
        torch.add(point, slope, alpha=step, out=fresh)
        torch.clamp(fresh, -limit, limit, out=fresh)
        following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum * momentum))
        torch.sub(fresh, z, out=change)
        torch.add(fresh, change, alpha=(momentum - 1.0) / following, out=point)
        momentum, z, fresh = following, fresh, z
    forward(views[id(z)])
    return signals, z

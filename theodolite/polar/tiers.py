"""The order in which upper bounds of a ReLU polar are tried: relaxations, then branch and bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from theodolite.polar.branch_and_bound import DIMENSIONS, branch_and_bound
from theodolite.polar.relaxation import relaxation_bound
from theodolite.value import Value

__all__ = ["CLOSING", "upper_bounds"]

CLOSING = 6
"""Dimensions up to which branch and bound closes in reasonable time, and gets all of it."""
_RELAXED, _MOST = 0.3, 30.0  # of the time for the relaxations before it, and seconds at most


def upper_bounds(
    X: Tensor,
    Q: Tensor,
    *,
    cells: Tensor | None = None,
    starts: Tensor,
    target: float | None,
    left: Callable[[], float | None],
    patience: float,
    tol: float,
    relax: bool = True,
    device: torch.device | str | None = None,
) -> Iterator[Value]:
    """Yield proved bounds of the polar of rows; the least holds.

    Parameters
    ----------
    X, Q : Tensor, shapes (n, d) and (n, K)
        Float64, on the CPU.
    cells : Tensor of int64, shape (n,), optional
        Cell of each row.
    starts : Tensor, shape (m, d)
        Directions to begin with as the lower end.
    target : float, optional
        An upper end that is enough.
    left : function() -> float or None
        Seconds that are left, None for no limit.
    patience : float
        Seconds of branch and bound where there is no limit.
    tol : float
        Relative width at which branch and bound stops.
    relax : bool
        Whether to try relaxations; in few dimensions they seldom are within a factor of 1.5 of the maximum.
    device : torch.device or str, optional
        Where relaxations are computed.
    """
    d, seconds = X.shape[1], left()
    if d > CLOSING and relax:
        some = seconds
        if seconds is not None and d <= DIMENSIONS:
            some = min(max(seconds * _RELAXED, 1e-3), _MOST)
        relaxed = relaxation_bound(X, Q, cells, budget=some, device=device)
        yield relaxed
        if target is not None and relaxed.high <= target:
            return
    if d <= DIMENSIONS:
        rest = left()
        rest = patience if rest is None else rest
        yield branch_and_bound(X, Q, cells=cells, target=target, budget=rest, starts=starts, tol=tol)

"""Branch and bound for the polar of a ReLU layer: an upper bound that is useful at any moment.

The search itself is :class:`BranchAndBound`; here it is given rows, and workers to share it where joblib has some.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from theodolite.linalg.lanczos import UP
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.polar.ascent import relu_values, rounding_margin
from theodolite.polar.box_search import DIMENSIONS, BranchAndBound, Step
from theodolite.polar.rows import merged
from theodolite.polar.scaling import scaled_back
from theodolite.polar.shared_search import run_shared
from theodolite.value import Value

__all__ = ["DIMENSIONS", "BranchAndBound", "Step", "branch_and_bound"]


def branch_and_bound(
    X: Tensor,
    Q: Tensor,
    *,
    cells: Tensor | None = None,
    target: float | None = None,
    budget: float | None = None,
    starts: Tensor | None = None,
    tol: float = 1e-6,
    callback: Callable[[Step], bool | None] | None = None,
) -> Value:
    r"""Return a two-sided bound of max F(w) over unit w, valid whenever it ends.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64, d <= 12; the cost grows steeply with d.
    Q : Tensor, shape (n, K)
        Float64.
    cells : Tensor, shape (n,), int64, optional
        The cell of each row, any numbers; one cell by default.
    target : float, optional
        An upper end that is enough, and a lower end that is.
    budget : float, optional
        Seconds after which to stop; None for no limit.
    starts : Tensor, shape (m, d), optional
        Directions to begin with as the lower end: without good ones more boxes are opened.
    tol : float
        Relative width that is enough.
    callback : function(Step) -> bool, optional
        Called after each step, with numbers in the units of a scaled problem; returning True stops.

    Returns
    -------
    Value
        A `bound`, rounding enclosed; its witness is a tensor (m, d) of unit directions, the first
        attains the lower end.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, the shapes disagree, or d is too large.
    """
    device, width = X.device, X.shape[1]
    rows = merged(X, Q, cells)
    if not len(rows.X):
        w = torch.eye(1, width, dtype=X.dtype, device=device)
        return Value.bound(0.0, 0.0, witness=w, note="no row has both an input and a weight")
    X, Q = rows.X.to(device), rows.Q.to(device)
    counts = torch.tensor([part.stop - part.start for part in rows.cells])
    cells = torch.repeat_interleave(counts).to(device)
    if width == 1:
        w = torch.tensor([[1.0], [-1.0]], dtype=X.dtype, device=device)
        values, off = relu_values(X, Q, w, cells), rows.slack + rounding_margin(X, Q, cells)
        top, best = float(values.max()), int(values.argmax())
        low, high = max(top - off, 0.0) / UP, (top + off) * UP
        found = Value.bound(low, high, witness=w[best : best + 1], note="both directions")
        return scaled_back(found, rows.exponent)
    search = BranchAndBound(X, Q, cells)
    if starts is not None and len(starts):
        search.offer(starts)
    if target is not None:
        target = ldexp_rounded(target, -rows.exponent, -1) - rows.slack
    run_shared(search, target, budget, tol=tol, callback=callback)
    what = f"{search.boxes:,} boxes of directions, polynomials of degree {search.degree} on each, rounding enclosed"
    upper = (search.upper + rows.slack) * UP
    lower = min(max(search.lower - rows.slack, 0.0) / UP, upper)
    return scaled_back(Value.bound(lower, upper, witness=search.witness, note=what), rows.exponent)

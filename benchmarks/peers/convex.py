"""Convex solvers without a certificate: cvxpy with SCS, and accelerated proximal gradient with a full SVD in NumPy."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np

from benchmarks.entries import Entries, Floats


def missing() -> str | None:
    """Return why SCS cannot run, or None."""
    installed = find_spec("cvxpy") and find_spec("scs")
    return None if installed else "not installed; run: pip install cvxpy scs"


def scs(entries: Entries) -> Floats:
    """Return the matrix that SCS finds at its default tolerance."""
    import cvxpy as cp

    rows, cols, values = entries.rows, entries.cols, entries.values
    Z = cp.Variable(entries.shape)
    loss = 0.5 * cp.sum_squares(Z[rows, cols] - values)
    cp.Problem(cp.Minimize(loss + entries.lam * cp.normNuc(Z))).solve(solver=cp.SCS)
    return np.asarray(Z.value)


def full_svd(entries: Entries, target: float, limit: int = 3000) -> tuple[float, int]:
    """Return the objective and the steps of FISTA with restarts, ended by the knowledge of a target."""
    rows, cols, values, lam = entries.rows, entries.cols, entries.values, entries.lam
    Z = M = np.zeros(entries.shape)
    t, value, steps = 1.0, math.inf, 0
    while steps < limit:
        steps += 1
        point = M.copy()
        point[rows, cols] = values
        U, s, V = np.linalg.svd(point, full_matrices=False)
        s = np.maximum(s - lam, 0.0)
        new = (U * s) @ V
        last, value = value, 0.5 * float(np.square(new[rows, cols] - values).sum()) + lam * float(s.sum())
        if value <= target:
            break
        if value > last:  # restart the momentum
            t = 1.0
        t_new = 0.5 * (1 + math.sqrt(1 + 4 * t * t))
        Z, M, t = new, new + (t - 1) / t_new * (new - Z), t_new
    return value, steps


def objective(entries: Entries, Z: Floats) -> float:
    """Return the objective of a matrix."""
    loss = 0.5 * float(np.square(Z[entries.rows, entries.cols] - entries.values).sum())
    return loss + entries.lam * float(np.linalg.svd(Z, compute_uv=False).sum())

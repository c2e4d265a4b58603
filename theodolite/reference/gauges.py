"""Gauges of rank-one matrices, their polars and proximal optima: enumerations and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}
DUAL_ORDERS = {"l1": np.inf, "l2": 2, "linf": 1}


def extreme_points(size: int, norm: str) -> list[Matrix]:
    """Return the extreme points, up to sign, of the unit ball of l1 or linf in R^size."""
    if norm == "l1":
        return list(np.eye(size))
    return [np.array([1.0, *signs]) for signs in itertools.product((-1.0, 1.0), repeat=size - 1)]


def polar(
    Q: Matrix, norms: tuple[str, str], weights: tuple[Matrix | None, Matrix | None] = (None, None)
) -> float:
    """Return max u^T Q v over ||D_u u||_a <= 1, ||D_v v||_b <= 1.

    The maximum is at an extreme point of a polyhedral ball, where the other factor gives a dual norm.

    Parameters
    ----------
    Q : array, shape (n, m)
        At most about 15 rows or columns for linf.
    norms : tuple of str
        Norms a and b, each l1, l2 or linf.
    weights : tuple of (array or None)
        Diagonals or invertible matrices.
    """
    left, right = (None if D is None else np.diag(D) if np.ndim(D) == 1 else D for D in weights)
    Q = Q if left is None else np.linalg.inv(left).T @ Q
    Q = Q if right is None else Q @ np.linalg.inv(right)
    a, b = norms
    if a == b == "l2":
        return float(np.sqrt(max(np.linalg.eigvalsh(Q @ Q.T)[-1], 0.0)))
    if b == "l2":
        Q, a, b = Q.T, b, a
    return max(float(np.linalg.norm(Q @ v, DUAL_ORDERS[a])) for v in extreme_points(Q.shape[1], b))


def gauge(Z: Matrix, norms: tuple[str, str]) -> float:
    """Return min sum ||u_i||_a ||v_i||_b over Z = sum u_i v_i^T, for (l2, l2) or a pair with l1."""
    a, b = norms
    if a == b == "l2":
        return float(np.linalg.svd(Z, compute_uv=False).sum())
    columns, norm = (Z.T, a) if b == "l1" else (Z, b)
    return float(sum(np.linalg.norm(column, ORDERS[norm]) for column in columns))


def thresholded(Y: Matrix, lam: float) -> tuple[Matrix, float]:
    """Return argmin_Z 1/2 ||Y - Z||_F^2 + lam ||Z||_* and the minimum, by singular-value thresholding."""
    U, s, Vh = np.linalg.svd(Y, full_matrices=False)
    kept = np.maximum(s - lam, 0.0)
    return (U * kept) @ Vh, float(0.5 * ((s - kept) ** 2).sum() + lam * kept.sum())

"""Singular values and random starts, slowly: exact rational arithmetic and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc


def compare_sigma_max(A: Sequence[Sequence[float]], tau: float) -> int:
    """Return the sign of sigma_max(A) - tau, in exact rational arithmetic.

    sigma_max is below tau where tau^2 I - A'A is positive definite, and equal to tau where it is
    positive semidefinite and singular; elimination on the diagonal decides which.

    Parameters
    ----------
    A : sequence of rows
        Floats, taken as the rational numbers that they are; at most about 10 columns.
    tau : float
        Nonnegative number to compare with; infinity is larger than every norm.
    """
    if math.isinf(tau):
        return -1
    rows = [[Fraction(float(x)) for x in row] for row in A]
    n = len(rows[0])
    square = Fraction(tau) ** 2
    M = [[square * (i == j) - sum(row[i] * row[j] for row in rows) for j in range(n)] for i in range(n)]
    singular = False
    for k in range(n):
        pivot = M[k][k]
        if pivot < 0 or (pivot == 0 and any(M[k][k:])):
            return 1
        if pivot == 0:
            singular = True
            continue
        for i in range(k + 1, n):
            factor = M[i][k] / pivot
            M[i] = [a - factor * b for a, b in zip(M[i], M[k], strict=True)]
    return 0 if singular else -1


def sigma_max(A: ArrayLike) -> float:
    """Return the largest singular value of a dense matrix, refined in extended precision.

    A float64 SVD names the singular vectors; their Rayleigh quotient, whose error is the square of
    theirs, is taken in long double.
    """
    dense = np.asarray(A, dtype=np.float64)
    if dense.size == 0:
        return 0.0
    left, _, right = np.linalg.svd(dense, full_matrices=False)
    u, v = left[:, 0].astype(np.longdouble), right[0].astype(np.longdouble)
    return float(u @ (dense.astype(np.longdouble) @ v) / np.sqrt((u @ u) * (v @ v)))


def ritz_value(A: ArrayLike, b: ArrayLike, k: int) -> float:
    """Return the largest Ritz value of a symmetric matrix on span(b, A b, ..., A^(k-1) b).

    The basis is built by Arnoldi's recurrence in long double, every vector orthogonalized three
    times against all others, and the projected matrix is formed from A itself.
    """
    M, vector = np.asarray(A).astype(np.longdouble), np.asarray(b).astype(np.longdouble)
    basis: list[np.ndarray] = []
    for _ in range(k):
        for _ in range(3):
            for q in basis:
                vector = vector - (q @ vector) * q
        norm = np.sqrt(vector @ vector)
        if norm < 1e-15 * np.abs(M).max():
            break
        basis.append(vector / norm)
        vector = M @ basis[-1]
    Q = np.array(basis)
    return float(np.linalg.eigvalsh((Q @ M @ Q.T).astype(np.float64))[-1])


def overlap_probability(n: int, t: float) -> float:
    """Return Pr[|b_1| <= t] for b uniform on the unit sphere of R^n, n >= 2.

    b_1^2 has the Beta(1/2, (n-1)/2) distribution.
    """
    return float(betainc(0.5, 0.5 * (n - 1), t * t))


def kuczynski_wozniakowski_inflation(n: int, k: int, delta: float) -> float:
    """Return f with sigma_max <= f sqrt(theta_k) except with probability delta, as published.

    Pr[lambda_max - theta_k > eps lambda_max] <= 1.648 sqrt(n) exp(-(2 k - 1) sqrt(eps)) for a random
    start and k products; infinite where the formula gives eps >= 1.

    References
    ----------
    Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094-1122.
    """
    eps = (math.log(1.648 * math.sqrt(n) / delta) / (2 * k - 1)) ** 2
    return 1.0 / math.sqrt(1.0 - eps) if eps < 1.0 else math.inf

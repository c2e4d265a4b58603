"""The largest eigenvalue of a symmetric matrix that is at hand: estimated, or bounded with a proof."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, gamma, lanczos, start_generator

__all__ = ["leading_eigenpairs", "proved_eigenvalue"]

_DIRECT = 800  # rows up to which all eigenvalues are computed
_STEPS = 150  # of Lanczos in a larger matrix


def leading_eigenpairs(H: Tensor, count: int, *, tol: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return (nearly) the largest eigenvalues, ascending, and their vectors as columns; nothing is proved.

    All of them are returned where that is as cheap.

    Parameters
    ----------
    H : Tensor, shape (n, n)
        Symmetric.
    count : int
        How many are wanted at least.
    tol : float
        Relative accuracy in a large matrix.
    """
    if len(H) > max(_DIRECT, 4 * count):
        start = np.random.default_rng(0).standard_normal(len(H)).astype(H.numpy().dtype)
        try:
            values, vectors = eigsh(
                H.numpy(), count, which="LA", tol=tol, v0=start, ncv=2 * count + 20, maxiter=100
            )
            order = np.argsort(values)
            return torch.from_numpy(values[order]), torch.from_numpy(vectors[:, order])
        except ArpackNoConvergence:
            pass  # all of them, then
    values, vectors = torch.linalg.eigh(H)
    return values, vectors


def proved_eigenvalue(H: Tensor, *, tol: float = 1e-9) -> float:
    """Return a proved upper bound of the largest eigenvalue of H as stored, or inf if none was found.

    With g = gamma(n + 4), Cholesky of fl((tau - c) I - H) that completes proves that its least eigenvalue is at
    least -g / (1 - g) times its trace (Rump 2006, theorem 2.3; see :class:`theodolite.linalg.inertia.Grams`), and
    rounding on the diagonal costs at most u (2 |tau| + 2 max |H_jj|).  So lambda_max(H) <= tau where c is the sum.

    Parameters
    ----------
    H : Tensor, shape (n, n)
        Float64, exactly symmetric, of moderate size (no overflow or underflow of squares).
    tol : float
        Relative distance aimed at.

    References
    ----------
    Rump, BIT Numer. Math. 46 (2006) 433-452.
    """
    n = len(H)
    if n == 0:
        return -math.inf
    diagonal = H.diagonal()
    if n == 1:
        return float(diagonal[0])
    if n > _DIRECT:  # a Ritz value, whose error is the square of the residual
        run = lanczos(
            H.mv, n, steps=_STEPS, generator=start_generator(0), tol=math.sqrt(tol), which="largest"
        )
        low = float(run.ritz_values[-1])
    else:
        low = float(leading_eigenpairs(H, 1)[0][-1])
    size, g = float(diagonal.abs().max()), gamma(n + 4)
    excess = tol * max(abs(low), 2.0**-40 * size) + 2.0**-1000
    for _ in range(12):
        tau = low + excess
        trace = max(0.0, n * tau - float(diagonal.sum())) + gamma(n + 4) * n * (abs(tau) + size)
        c = PAD * (g / (1.0 - g) * trace + 2.0 * UNIT_ROUNDOFF * (abs(tau) + size)) + 2.0**-1000
        # a distance below the margin could not be seen
        tau += 2.0 * c
        B = -H
        B.diagonal().add_(tau - 2.0 * c)
        if int(torch.linalg.cholesky_ex(B).info) == 0:
            return tau
        excess *= 8.0
    return math.inf

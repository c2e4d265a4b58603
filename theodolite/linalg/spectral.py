"""Rigorous two-sided bounds of the largest singular value.

The lower end is always a Rayleigh quotient.  Upper ends (see :func:`sigma_max`) come from

- ``inertia``: a Cholesky factorization that completes, its rounding enclosed with proved constants;
- ``random``: Lanczos from random starts, with a stated failure probability;
- ``chebyshev``: Chebyshev polynomials applied to a random block, the same, in fewer passes over the
  matrix where a leading singular vector is known;
- ``split``: bases of the dominant subspaces and a 2 x 2 block bound; ``random`` for the rest;
- ``svd``: LAPACK's singular values with a customary (not a proved) error margin;
- ``norms``: Frobenius, sqrt(norm_1 norm_inf) and a trace power: cheap and loose.

Certificates are computed on the CPU in float64, rounding to nearest.  Inner products may be
summed in any order, with or without fused multiply-add, but not by Strassen-like schemes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theodolite.linalg import chebyshev
from theodolite.linalg.inertia import SMALL, Grams, inertia
from theodolite.linalg.lanczos import (
    PAD,
    UNIT_ROUNDOFF,
    UP,
    FailureLedger,
    gamma,
    largest_eigenvalue,
    spend,
    start_generator,
)
from theodolite.linalg.scaled_matrix import ScaledMatrix, exponent_of, ldexp_rounded, read, scale
from theodolite.value import Value

__all__ = ["FailureLedger", "batched_sigma_max", "first_proved", "proves_at_most", "sigma_max", "spend"]

INERTIA = "upper end: Cholesky of tau^2 I - A'A completed, rounding enclosed (Rump 2006)"
_NOTES = {
    "inertia": INERTIA,
    "random": "upper end: Lanczos from random starts, rounding enclosed (Kuczynski and Wozniakowski 1992)",
    "chebyshev": "upper end: Chebyshev polynomials of a random block, rounding enclosed",
    "split": "upper end: 2 x 2 norm of blocks, the rest by Lanczos from random starts, rounding enclosed",
    "svd": "LAPACK's singular value within its customary backward error 8 (m + n) u",
    "norms": "upper end: Frobenius norm, sqrt(norm_1 norm_inf) or a trace power",
}


def sigma_max(
    A: Any,
    *,
    method: str = "auto",
    basis: tuple[Tensor, Tensor] | None = None,
    delta: float = 1e-9,
    seed: int = 0,
    tol: float = 1e-10,
    max_steps: int = 100,
    product_error: float | None = None,
) -> Value:
    """Return a two-sided bound of the largest singular value, rounding enclosed.

    Parameters
    ----------
    A : matrix of shape (m, n)
        A real torch tensor (dense or sparse), numpy array, scipy sparse matrix, or an operator with
        `shape`, `matvec` and `rmatvec`: a scipy ``LinearOperator`` is given numpy vectors, any other
        operator CPU tensors, both float64.  Entries are converted to float64.
    method : {"auto", "inertia", "random", "chebyshev", "split", "svd", "norms"}
        How the upper end is proved.  "auto" takes inertia where the smaller Gram matrix is
        affordable, split where `basis` is given and min(m, n) exceeds 1024, else random.
    basis : (Tensor (m, r), Tensor (n, s)), optional
        Bases of subspaces near the leading left and right singular vectors, such as the factors of
        a current iterate.  They need be neither orthonormal nor accurate; "chebyshev" takes the first
        columns alone, which should be close to leading singular vectors.
    delta : float
        Failure probability of "random", "chebyshev" and "split"; see `FailureLedger` for repeated calls.
    seed : int
        Seed of the starts, which must not depend on A: a matrix chosen after seeing an earlier
        answer needs a seed of its own.
    tol : float
        Relative width aimed at; the bound is valid whether or not it is reached.
    max_steps : int
        Lanczos steps: in "random" of all starts together; in "inertia" once, then three times as many.
        Pairs of products with a block in "chebyshev".
    product_error : float, optional
        For operators: products are within ``product_error * sigma_max * norm(x)`` of the exact ones.
        By default 1000 roundoffs of the dtype in which they come back.

    Returns
    -------
    Value
        A `bound` with both ends; `confidence` is ``1 - delta`` where randomness proved the upper
        end, else 1; the note names the proof.  Zero for a matrix without rows or columns.

    Raises
    ------
    ValueError
        If A is not a finite real matrix, or another argument is out of range.

    References
    ----------
    Rump, BIT Numer. Math. 46 (2006) 433-452; Kuczynski and Wozniakowski, SIAM J. Matrix Anal.
    Appl. 13 (1992) 1094-1122.
    """
    if method != "auto" and method not in _NOTES:
        raise ValueError(f"method: expected auto, {', '.join(_NOTES)}, got {method!r}")
    if not (tol > 0.0 and max_steps >= 2 and 0.0 < delta < 1.0):
        expected = "expected tol > 0, max_steps >= 2, 0 < delta < 1"
        raise ValueError(f"tol, max_steps, delta: {expected}, got {tol}, {max_steps}, {delta}")
    if method in ("chebyshev", "split") and basis is None:
        raise ValueError(f"basis: expected a pair of tensors for method {method!r}, got None")
    generator = start_generator(seed)
    search: dict[str, Any] = {"steps": max_steps, "delta": delta, "generator": generator, "tol": tol}
    matrix = read(A, product_error, generator)
    if matrix.ceiling == 0.0:
        return Value.bound(0.0, 0.0, note="the matrix is zero or has no entries")
    if method == "auto":
        by_inertia = matrix.affordable and (basis is None or min(matrix.shape) <= SMALL)
        method = "inertia" if by_inertia else "random" if basis is None else "split"
    if method == "random":
        lower, upper = _random(matrix, **search)
    elif method == "split" and basis is not None:
        lower, upper = _split(matrix, basis, **search)
    elif matrix.dense is None:
        raise ValueError(f"method: expected 'random' or 'split' for an operator, got {method!r}")
    elif method == "chebyshev" and basis is not None:
        lower, upper = _chebyshev(matrix, basis, **search)
    elif method == "svd":
        top, margin = float(torch.linalg.svdvals(matrix.dense())[0]), 8.0 * sum(matrix.shape) * UNIT_ROUNDOFF
        lower, upper = top * (1.0 - margin), top * (1.0 + margin)
    elif method == "norms":
        lower, upper = _trace_power(_tall(matrix.dense()))
    else:
        lower, upper = inertia(_tall(matrix.dense())[None], tol, max_steps)
    confidence, note = 1.0, _NOTES[method] + matrix.assumption
    if upper > matrix.ceiling:
        upper, note = matrix.ceiling, _NOTES["norms"]
    elif method in ("random", "chebyshev", "split"):
        confidence = min(1.0 - delta, math.nextafter(1.0, 0.0))
    lower, upper = (
        ldexp_rounded(min(lower, upper), matrix.exponent, -1),
        ldexp_rounded(upper, matrix.exponent, 1),
    )
    return Value.bound(lower, upper, confidence=confidence, note=note)


def proves_at_most(A: Any, tau: float) -> bool:
    """Return True if one Cholesky factorization proves that sigma_max(A) <= tau, else False.

    Parameters
    ----------
    A : matrix of shape (m, n)
        As in :func:`sigma_max`, but not an operator.
    tau : float
        Nonnegative number to compare with.

    Raises
    ------
    ValueError
        If A is not a finite real matrix, or tau is negative or NaN.
    """
    return first_proved(A, [tau]) == tau


def first_proved(A: Any, taus: Iterable[float]) -> float:
    """Return the first tau for which one Cholesky factorization proves that sigma_max(A) <= tau, or inf.

    Parameters
    ----------
    A : matrix of shape (m, n)
        As in :func:`sigma_max`, but not an operator.  Its Gram matrix is computed once.
    taus : iterable of float
        Nonnegative numbers, usually increasing.

    Raises
    ------
    ValueError
        As :func:`proves_at_most`.
    """
    matrix = read(A, None, start_generator(0))
    grams = None
    for tau in taus:
        if not tau >= 0.0:
            raise ValueError(f"tau: expected a nonnegative number, got {tau!r}")
        scaled = ldexp_rounded(tau, -matrix.exponent, -1)
        if scaled >= matrix.ceiling:
            return tau
        if matrix.dense is None:
            raise ValueError("A: expected a matrix with entries, got an operator")
        if scaled < 0.25:  # under half the largest entry; the underflow term of the proof relies on that
            continue
        grams = Grams(_tall(matrix.dense())[None]) if grams is None else grams
        if bool(grams.at_most(scaled, [0])[0]):
            return tau
    return math.inf


def batched_sigma_max(
    mats: Tensor, *, tol: float = 1e-6, max_steps: int = 60, chunk_bytes: int = 2**28
) -> tuple[float, float]:
    """Return lower and upper bounds of the largest operator norm in a batch, proved by inertia.

    One shared threshold is tested by one Cholesky factorization a block, so that only the
    few blocks that can hold the maximum are ever looked at closely.

    Parameters
    ----------
    mats : Tensor, shape (b, m, n), real or complex
        The blocks, for example a convolution's symbol at each frequency.
    tol : float
        Relative width aimed at.
    max_steps : int
        Lanczos steps in a block of more than 256 rows and columns.
    chunk_bytes : int
        Blocks are handled in chunks of about this size.

    Returns
    -------
    tuple of float
        (lower, upper); (0, 0) if there are no entries.

    Raises
    ------
    ValueError
        If `mats` is not a finite tensor with three dimensions.
    """
    if not isinstance(mats, Tensor) or mats.ndim != 3:
        got = tuple(mats.shape) if isinstance(mats, Tensor) else type(mats).__name__
        raise ValueError(f"mats: expected a tensor of shape (b, m, n), got {got}")
    mats = mats.detach().resolve_conj()
    parts = torch.view_as_real(mats) if mats.is_complex() else mats
    exponent = exponent_of("mats", parts)
    if not parts.any():
        return 0.0, 0.0
    m, n = mats.shape[1:]
    lower = upper = 0.5  # at least half the largest entry
    for chunk in mats.split(max(1, chunk_bytes // (16 * (m * n + 3 * min(m, n) ** 2)))):
        exact = chunk.to("cpu", torch.complex128 if mats.is_complex() else torch.float64)
        lower, tau = inertia(_tall(scale(exact, -exponent)), tol, max_steps, lower)
        upper = max(upper, tau)
    return ldexp_rounded(lower, exponent, -1), ldexp_rounded(upper, exponent, 1)


def _tall(A: Tensor) -> Tensor:
    return A if A.shape[-2] >= A.shape[-1] else A.mH


def _random(
    matrix: ScaledMatrix, floor: float = 0.0, enough: float = 0.0, **search: Any
) -> tuple[float, float]:
    sides = matrix.forward, matrix.adjoint
    forward, adjoint = sides if matrix.shape[0] >= matrix.shape[1] else sides[::-1]
    error = 2.0 * matrix.relative + matrix.relative**2
    search |= {"product_error": error, "floor": floor**2, "enough": enough**2}
    low, high = largest_eigenvalue(lambda x: adjoint(forward(x)), min(matrix.shape), **search)
    return math.sqrt(low) / UP, math.sqrt(high) * UP


def _orthonormal(matrix: ScaledMatrix, basis: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return orthonormal bases of the same subspaces, in float64."""
    bases = []
    for name, rows, B in zip("UV", matrix.shape, basis, strict=True):
        if B.ndim != 2 or B.shape[0] != rows or B.shape[1] < 1:
            raise ValueError(f"basis: expected {name} of shape ({rows}, r), got {tuple(B.shape)}")
        B = B.detach().to("cpu", torch.float64)
        bases.append(torch.linalg.qr(scale(B, -exponent_of("basis", B))).Q)
    return bases


def _chebyshev(matrix: ScaledMatrix, basis: tuple[Tensor, Tensor], **search: Any) -> tuple[float, float]:
    u, v = (B[:, :1] for B in _orthonormal(matrix, basis))
    found = float((u * matrix.forward(v)).sum().abs())
    # |u|, |v| and the product are as exact as their rounding; the largest entry is at least 1/2
    low = max(0.5, found / (1.0 + matrix.relative + gamma(4 * sum(matrix.shape)))) / UP
    sides = matrix.forward, matrix.adjoint
    forward, adjoint = sides if matrix.shape[0] >= matrix.shape[1] else sides[::-1]
    high = chebyshev.largest_singular_value(
        forward,
        adjoint,
        min(matrix.shape),
        mu=low,
        ceiling=matrix.ceiling,
        enough=low * (1.0 + search.pop("tol")),
        product_error=matrix.relative,
        **search,
    )
    return low, high


def _split(matrix: ScaledMatrix, basis: tuple[Tensor, Tensor], **search: Any) -> tuple[float, float]:
    """Bound A by the 2 x 2 matrix M of the norms of its blocks in and outside the bases U, V.

    Let e bound |U'U - I| and |V'V - I| after a QR factorization.  The nearest orthonormal bases are
    within e, so each exact block is within 3 e |A| of the one built from U and V; the blocks as
    computed are within k |A| of those.  Hence |A| <= |M| + (6 e + 2 k) |A|.
    """
    bases = U, V = _orthonormal(matrix, basis)
    squares = max(float(B.square().sum()) for B in bases) * PAD
    g = gamma(sum(matrix.shape) + U.shape[1] + V.shape[1] + 8)
    e = max(float((B.T @ B - torch.eye(B.shape[1])).norm()) for B in bases) * PAD + g * squares
    k = 3.0 * matrix.relative * math.sqrt(squares) + 4.0 * g * squares
    AV, UA = matrix.forward(V), matrix.adjoint(U).T
    core = U.T @ AV
    blocks = core, UA - core @ V.T, AV - U @ core
    (low, a), (_, b), (_, c) = (batched_sigma_max(X[None], tol=search["tol"]) for X in blocks)

    def project(B: Tensor, x: Tensor) -> Tensor:
        return x - B @ (B.T @ x)

    # The rest D matters beside the core only: where |D| >= floor its products, which err by
    # (2 relative + 7 g |U|_F) |A|, err relatively by |A| / |D| <= (a + b + c) / floor + 1 times that.
    floor = 0.25 * max(a, b, c)
    ratio = (a + b + c) / floor + 1.0 if floor > 0.0 else 1.0
    rest = ScaledMatrix(
        matrix.shape,
        lambda x: project(U, matrix.forward(project(V, x))),
        lambda y: project(V, matrix.adjoint(project(U, y))),
        relative=ratio * (2.0 * matrix.relative + 7.0 * g * math.sqrt(squares)),
    )
    _, d = _random(rest, floor, enough=3.6 * floor, **search)
    loss = 6.0 * e + 2.0 * k
    if loss >= 0.01 or math.isinf(d):
        return 0.0, math.inf
    return low / (1.0 + loss), float(np.linalg.norm([[a, b], [c, d]], 2)) * UP / (1.0 - loss)


def _trace_power(dense: Tensor) -> tuple[float, float]:
    """Bound |A'A| = |H| by tr(H^32)^(1/32), for symmetric X from |X|^2 <= |fl(X X)|_F + g_{n+8} |X|_F^2."""
    grams = Grams(dense[None])
    H, g, sizes = grams.H[0], gamma(grams.n + 8), []
    for _ in range(5):
        H = 0.5 * (H + H.T)
        sizes.append(float(H.norm()) * (1.0 + gamma(grams.n**2 + 8)))
        H = H / sizes[-1]
        H = H @ H
    above = 1.0
    for size in reversed(sizes):
        above = size * min(1.0, math.sqrt(above + g))
    lower = math.sqrt(float(grams.diagonal.max())) * (1.0 - gamma(grams.m + 4))  # a column's norm
    return lower, math.sqrt(above + gamma(grams.m + 2) * float(grams.F2)) * UP

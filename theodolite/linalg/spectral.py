"""Rigorous two-sided bounds of the largest singular value.

The lower end is always a Rayleigh quotient.  Upper ends (see :func:`sigma_max`) come from

``inertia``
    a Cholesky factorization that completes, its rounding enclosed with proved constants;
``random``
    Lanczos from random starts, with a stated failure probability;
``split``
    bases of the dominant subspaces and a 2 x 2 block bound; ``random`` for the rest;
``svd``
    LAPACK's singular values with a customary error margin;
``norms``
    Frobenius, sqrt(norm_1 norm_inf) and a trace power: cheap and loose.

Certificates are computed on the CPU in float64, rounding to nearest.  Inner products may be
summed in any order, with or without fused multiply-add, but not by Strassen-like schemes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from theodolite.linalg.lanczos import (
    UNIT_ROUNDOFF,
    FailureLedger,
    gamma,
    lanczos,
    largest_eigenvalue,
    spend,
)
from theodolite.value import Value

__all__ = ["FailureLedger", "batched_sigma_max", "proves_at_most", "sigma_max", "spend"]

METHODS = ("auto", "svd", "inertia", "random", "split", "norms")
_PAD = 1.0 + 2.0**-20  # covers the rounding inside the formulas of the margins themselves
_SMALL = 1024  # up to this min(m, n), inertia is cheaper than any other proof
_LARGE = 4096  # above it, or above this many flops and entries, a Gram matrix is not affordable
_FLOPS, _ENTRIES = 4e11, 2.5e8


def sigma_max(
    A: Any,
    *,
    method: str = "auto",
    basis: tuple[Tensor, Tensor] | None = None,
    delta: float = 1e-9,
    seed: int = 0,
    tol: float = 1e-8,
    max_steps: int = 100,
    product_error: float | None = None,
) -> Value:
    """Return a two-sided bound of the largest singular value, rounding enclosed.

    Parameters
    ----------
    A : matrix of shape (m, n)
        A real torch tensor (dense or sparse), numpy array, scipy sparse matrix, or an operator
        with `shape`, `matvec` and `rmatvec`.  A scipy ``LinearOperator`` is given float64 numpy
        vectors, any other operator float64 CPU tensors.  Entries are converted to float64
        (exactly, up to integers above 2^53); duplicate sparse entries are added in float64.
    method : {"auto", "svd", "inertia", "random", "split", "norms"}
        How the upper end is proved.  "auto" takes inertia where the smaller Gram matrix is
        affordable, the split where `basis` is given and the matrix is not small, else random.
    basis : (Tensor (m, r), Tensor (n, s)), optional
        Bases of subspaces that hold the leading left and right singular vectors, as the factors
        of a current iterate do.  They need be neither orthonormal nor accurate.
    delta : float
        Failure probability of "random" and "split".  For repeated calls see `FailureLedger`.
    seed : int
        Seed of the starts.  They must not depend on A: give each call on a matrix that was chosen
        after seeing an earlier answer a seed of its own.
    tol : float
        Relative width aimed at; the bound is valid whether or not it is reached.
    max_steps : int
        Largest number of products with A'A that find the Ritz values (in "random", all starts
        together).
    product_error : float, optional
        For operators only: computed products are within ``product_error * sigma_max * norm(x)``.
        By default 1000 roundoffs of the dtype in which the products come back.

    Returns
    -------
    Value
        A `bound` with both ends; `confidence` is ``1 - delta`` if randomness proved the upper
        end, else 1; the note names the proof.  Zero for a matrix without rows or columns.

    Raises
    ------
    ValueError
        If A is not a finite real matrix, or another argument is out of range.

    References
    ----------
    Rump, BIT Numer. Math. 46 (2006) 433-452; Kuczynski and Wozniakowski, SIAM J. Matrix Anal.
    Appl. 13 (1992) 1094-1122.

    Examples
    --------
    >>> import torch
    >>> print(sigma_max(torch.diag(torch.tensor([3.0, 1.0]))))
    in [2.999, 3.001]
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    spend(delta, 1)
    if not tol > 0.0:
        raise ValueError(f"tol: expected a positive number, got {tol!r}")
    if max_steps < 2:
        raise ValueError(f"max_steps: expected at least 2, got {max_steps!r}")
    generator = _generator(seed)
    matrix = _read(A, product_error, generator)
    if matrix.ceiling == 0.0:
        return Value.bound(0.0, 0.0, note="the matrix is zero or has no entries")
    if method == "auto":
        if matrix.affordable and (basis is None or min(matrix.shape) <= _SMALL):
            method = "inertia"
        else:
            method = "random" if basis is None else "split"
    if method == "split":
        if basis is None:
            raise ValueError("basis: expected a pair of tensors for method 'split', got None")
        lower, upper = _split(matrix, basis, delta, generator, tol, max_steps)
    elif method == "random":
        lower, upper = _random(matrix, delta, generator, tol, max_steps)
    else:
        if matrix.dense is None:
            raise ValueError(f"method: expected 'random' or 'split' for an operator, got {method!r}")
        lower, upper = _DENSE[method](matrix.dense(), tol, max_steps)
    confidence, note = 1.0, _NOTES[method]
    if upper > matrix.ceiling:
        upper, note = matrix.ceiling, _NOTES["norms"]
    elif method in ("random", "split"):
        confidence = min(1.0 - delta, math.nextafter(1.0, 0.0))
        note += matrix.assumption
    lower, upper = _ldexp(min(lower, upper), matrix.exponent, -1), _ldexp(upper, matrix.exponent, 1)
    return Value.bound(lower, upper, confidence=confidence, note=note)


def proves_at_most(A: Any, tau: float) -> bool:
    """Return True if one Cholesky factorization proves that sigma_max(A) <= tau.

    False means "not proved"; it is certain to come only when sigma_max(A) exceeds tau.

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
    if not tau >= 0.0:
        raise ValueError(f"tau: expected a nonnegative number, got {tau!r}")
    matrix = _read(A, None, _generator(0))
    if matrix.dense is None:
        raise ValueError("A: expected a matrix with entries, got an operator")
    scaled = _ldexp(tau, -matrix.exponent, -1)
    if scaled >= matrix.ceiling:
        return True
    gram = _Gram.of(_tall(matrix.dense())[None])
    return scaled > 0.0 and bool(gram.at_most(scaled, torch.tensor([0])).all())


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
    if mats.numel() == 0:
        return 0.0, 0.0
    mats = mats.detach()
    _check_finite("mats", torch.view_as_real(mats) if mats.is_complex() else mats)
    top = float(max(mats.real.abs().max(), mats.imag.abs().max()) if mats.is_complex() else mats.abs().max())
    exponent = math.frexp(top)[1]
    m, n = mats.shape[1:]
    lower = upper = 0.0
    for chunk in mats.split(max(1, chunk_bytes // (16 * (m * n + 3 * min(m, n) ** 2)))):
        chunk = chunk.to("cpu", torch.complex128 if mats.is_complex() else torch.float64)
        chunk = _tall(_scale(chunk, -exponent))
        chunk = chunk[chunk.abs().amax((1, 2)) > 0]
        if len(chunk):
            lower, threshold = _inertia(chunk, tol, max_steps, lower)
            upper = max(upper, threshold)
    return _ldexp(lower, exponent, -1), _ldexp(upper, exponent, 1)


# Input


@dataclass(frozen=True)
class _Matrix:
    """An input times 2^-exponent, its products, and what is known about it for free."""

    shape: tuple[int, int]
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    exponent: int = 0
    relative: float = 0.0  # |fl(A x) - A x| <= relative * sigma_max * |x|; the same for A'
    ceiling: float = math.inf  # min(Frobenius, sqrt(norm_1 norm_inf)), which bounds the norm of |A| too
    dense: Callable[[], Tensor] | None = None
    assumption: str = ""

    @property
    def affordable(self) -> bool:
        m, n = max(self.shape), min(self.shape)
        return self.dense is not None and n <= _LARGE and 2.0 * m * n * n <= _FLOPS and m * n <= _ENTRIES

    def rayleigh(self, x: Tensor) -> float:
        """Return a proved lower bound |A x| / |x|."""
        y = float(torch.linalg.vector_norm(self.forward(x))) / float(torch.linalg.vector_norm(x))
        return y * (1.0 - 2.0 * gamma(sum(self.shape) + 4)) / (1.0 + self.relative)


def _generator(seed: int) -> torch.Generator:
    # SplitMix64: a user's own torch.manual_seed(seed) must not reproduce the starts in the matrix.
    z = (seed * 0x9E3779B97F4A7C15 + 0x7E0D011E) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator().manual_seed((z ^ (z >> 31)) >> 1)


def _check_finite(name: str, A: Tensor) -> None:
    bad = ~torch.isfinite(A)
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise ValueError(f"{name}: expected finite entries, got {A[tuple(where)].item()} at index {where}")


def _scale(A: Tensor, exponent: int) -> Tensor:
    # Exact (but for entries that vanish beside the largest); in halves, as 2^exponent may overflow.
    return A * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


def _ldexp(x: float, exponent: int, toward: int) -> float:
    """Return x 2^exponent, rounded up (toward = 1) or down (-1) where it is not exact."""
    try:
        y = math.ldexp(x, exponent)
    except OverflowError:
        return math.inf if toward > 0 else math.nextafter(math.inf, 0.0)
    inexact = 0.0 < x and y < 2.0**-1021
    return max(0.0, math.nextafter(y, math.inf * toward)) if inexact else y


def _tall(A: Tensor) -> Tensor:
    return A if A.shape[-2] >= A.shape[-1] else A.mH


def _read(A: Any, product_error: float | None, generator: torch.Generator) -> _Matrix:
    if isinstance(A, Tensor) and A.layout != torch.strided:
        coo = A.detach().to("cpu", torch.float64).to_sparse_coo().coalesce()
        A = sp.csr_array((coo.values().numpy(), coo.indices().numpy()), shape=tuple(A.shape))
    shape = tuple(getattr(A, "shape", ()))
    if len(shape) != 2 or not (isinstance(A, Tensor | np.ndarray) or sp.issparse(A) or hasattr(A, "rmatvec")):
        raise ValueError(f"A: expected a matrix or an operator, got {type(A).__name__} of shape {shape}")
    kind = A.dtype if isinstance(A, Tensor) else getattr(A, "dtype", None) or np.dtype(float)
    if kind.is_complex if isinstance(kind, torch.dtype) else kind.kind not in "buif" or kind.itemsize > 8:
        raise ValueError(f"A: expected real entries of at most 64 bits, got {kind}")
    if 0 in shape:
        return _Matrix(shape, torch.clone, torch.clone, ceiling=0.0)
    if hasattr(A, "rmatvec") and not sp.issparse(A):
        return _operator(A, shape, product_error, generator)
    if product_error is not None:
        raise ValueError("product_error: expected None for a matrix with entries; its products are bounded here")
    if sp.issparse(A):
        csr = sp.csr_array(A, dtype=np.float64, copy=True)
        csr.sum_duplicates()
        _check_finite("A", torch.from_numpy(csr.data))
        exponent = math.frexp(float(abs(csr.data).max(initial=0.0)))[1]
        csr.data = _scale(torch.from_numpy(csr.data), -exponent).numpy()
        csc = sp.csr_array(csr.T)
        size = abs(csr)
        rows, columns = (torch.from_numpy((size**p).sum(axis=1)) for p in (1, 2)), (
            torch.from_numpy((size**p).sum(axis=0)) for p in (1, 2)
        )
        terms = int(max(np.diff(csr.indptr).max(), np.diff(csc.indptr).max()))
        products = (lambda x: torch.from_numpy(csr @ x.numpy())), (lambda y: torch.from_numpy(csc @ y.numpy()))
        return _measured(shape, products, exponent, terms, *rows, *columns, lambda: torch.from_numpy(csr.toarray()))
    dense = A.detach().to("cpu", torch.float64) if isinstance(A, Tensor) else torch.from_numpy(np.array(A, float))
    _check_finite("A", dense)
    exponent = math.frexp(float(dense.abs().max()))[1]
    dense = _scale(dense, -exponent)
    size = dense.abs()
    sums = size.sum(1), (size * size).sum(1), size.sum(0), (size * size).sum(0)
    return _measured(shape, (dense.mv, dense.T.mv), exponent, max(shape), *sums, lambda: dense)

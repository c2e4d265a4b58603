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
        lower, upper = _DENSE[method](_tall(matrix.dense()), tol, max_steps)
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
    return scaled > 0.0 and bool(_Grams(_tall(matrix.dense())[None]).at_most(scaled, [0])[0])


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
    mats = mats.detach().resolve_conj()
    parts = torch.view_as_real(mats) if mats.is_complex() else mats
    _check_finite("mats", parts)
    m, n = mats.shape[1:]
    exponent = math.frexp(float(parts.abs().max()))[1]
    lower = upper = 0.0
    for chunk in mats.split(max(1, chunk_bytes // (16 * (m * n + 3 * min(m, n) ** 2)))):
        exact = chunk.to("cpu", torch.complex128 if mats.is_complex() else torch.float64)
        blocks = _tall(_scale(exact, -exponent))
        blocks = blocks[(blocks != 0).any(2).any(1)]
        if len(blocks):
            lower, threshold = _inertia(blocks, tol, max_steps, lower)
            upper = max(upper, threshold)
    return _ldexp(lower, exponent, -1), _ldexp(upper, exponent, 1)


# Input


@dataclass(frozen=True)
class _Matrix:
    """An input times 2^-exponent, its products, and what is known about it for free."""

    shape: tuple[int, ...]
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
        size = float(torch.linalg.vector_norm(x))
        y = float(torch.linalg.vector_norm(self.forward(x))) / size if size > 0.0 else 0.0
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
    # Exact, but for entries that vanish beside the largest. In halves, as 2^exponent may overflow.
    return A * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2) if exponent else A


def _ldexp(x: float, exponent: int, toward: int) -> float:
    """Return x 2^exponent, rounded up (toward = 1) or down (-1) where it is not exact."""
    try:
        y = math.ldexp(x, exponent)
    except OverflowError:
        return math.inf if toward > 0 else math.nextafter(math.inf, 0.0)
    return max(0.0, math.nextafter(y, math.inf * toward)) if 0.0 < x and y < 2.0**-1021 else y


def _tall(A: Tensor) -> Tensor:
    return A if A.shape[-2] >= A.shape[-1] else A.mH


def _read(A: Any, product_error: float | None, generator: torch.Generator) -> _Matrix:
    """Check the input, scale it so that its largest entry is in [1/2, 1), and measure it."""
    if isinstance(A, Tensor) and A.layout != torch.strided:
        coo = A.detach().to("cpu").to_sparse_coo().coalesce()
        A = sp.csr_array((coo.values().double().numpy(), tuple(coo.indices().numpy())), shape=tuple(A.shape))
    matrix = isinstance(A, Tensor | np.ndarray) or sp.issparse(A)
    shape = tuple(getattr(A, "shape", ()))
    if len(shape) != 2 or not (matrix or (hasattr(A, "matvec") and hasattr(A, "rmatvec"))):
        raise ValueError(f"A: expected a matrix or an operator, got {type(A).__name__} of shape {shape}")
    real = not A.is_complex() if isinstance(A, Tensor) else not matrix or A.dtype.kind in "buif"
    if not real or (isinstance(A, np.ndarray) and A.dtype.itemsize > 8):
        raise ValueError(f"A: expected real entries of at most 64 bits, got {A.dtype}")
    if 0 in shape:
        return _Matrix(shape, torch.clone, torch.clone, ceiling=0.0)
    if not matrix:
        return _operator(A, shape, product_error, generator)
    if product_error is not None:
        raise ValueError("product_error: expected None for a matrix, whose own rounding is bounded here")
    if sp.issparse(A):
        csr = sp.csr_array(A, dtype=np.float64, copy=True)
        csr.sum_duplicates()
        entries = torch.from_numpy(csr.data)
        _check_finite("A", entries)
        exponent = math.frexp(float(entries.abs().max()))[1] if len(entries) else 0
        csr.data = _scale(entries, -exponent).numpy()
        csc = sp.csr_array(csr.T)  # as rows, so that both products run over contiguous rows
        terms = int(max(np.diff(csr.indptr).max(), np.diff(csc.indptr).max()))
        sums = [torch.from_numpy((abs(csr) ** p).sum(axis=i)) for p in (1, 2) for i in (0, 1)]
        return _Matrix(
            shape,
            lambda x: torch.from_numpy(csr @ x.numpy()),
            lambda y: torch.from_numpy(csc @ y.numpy()),
            exponent,
            *_measure(shape, terms, sums),
            lambda: torch.from_numpy(csr.toarray()),
        )
    dense = A.detach().to("cpu", torch.float64) if isinstance(A, Tensor) else torch.from_numpy(np.array(A, float))
    _check_finite("A", dense)
    exponent = math.frexp(float(dense.abs().max()))[1]
    dense = _scale(dense, -exponent)
    sums = [(dense.abs() ** p).sum(i) for p in (1, 2) for i in (0, 1)]
    measures = _measure(shape, max(shape), sums)
    return _Matrix(shape, lambda x: dense @ x, lambda y: dense.T @ y, exponent, *measures, lambda: dense)


def _measure(shape: tuple[int, ...], terms: int, sums: list[Tensor]) -> tuple[float, float]:
    """Return (relative product error, free upper bound) from the column and row sums of |A|, |A|^2."""
    up = 1.0 + 2.0 * gamma(sum(shape) + 8)
    one, inf, square = float(sums[0].max()), float(sums[1].max()), float(sums[2].sum())
    ceiling = up * min(math.sqrt(square), math.sqrt(one * inf))
    floor = math.sqrt(max(float(sums[2].max()), float(sums[3].max()), square / min(shape))) / up
    return gamma(terms + 2) * ceiling / floor if floor > 0.0 else 0.0, ceiling


def _operator(A: Any, shape: tuple[int, ...], error: float | None, generator: torch.Generator) -> _Matrix:
    numpy = isinstance(A, sp.linalg.LinearOperator)
    exponent = 0

    def apply(name: str, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return torch.stack([apply(name, column) for column in x.T], 1)
        y = torch.as_tensor(getattr(A, name)(x.numpy() if numpy else x)).detach().to("cpu")
        if y.is_complex() or y.shape != (shape[0 if name == "matvec" else 1],) or not y.isfinite().all():
            raise ValueError(f"A.{name}: expected a finite real vector, got {y.dtype} of shape {tuple(y.shape)}")
        if error is None:
            roundoff.append(torch.finfo(y.dtype).eps if y.is_floating_point() else 2.0 * UNIT_ROUNDOFF)
        return _scale(y.double(), -exponent)

    roundoff: list[float] = [] if error is None else [error / 500.0]
    x, y = (torch.randn(k, dtype=torch.float64, generator=generator) for k in (shape[1], shape[0]))
    exponent = math.frexp(float(apply("matvec", x).abs().max()))[1]
    Ax, Aty = apply("matvec", x), apply("rmatvec", y)
    relative = 500.0 * max(roundoff)
    gap = abs(float(Ax @ y) - float(Aty @ x))
    norms = [float(torch.linalg.vector_norm(v)) for v in (Ax, y, Aty, x)]
    if gap > (4.0 * relative + 1e-8) * (norms[0] * norms[1] + norms[2] * norms[3]):
        raise ValueError("A.rmatvec: expected the adjoint of A.matvec, got products that disagree")
    return _Matrix(
        shape,
        lambda v: apply("matvec", v),
        lambda v: apply("rmatvec", v),
        exponent,
        relative,
        math.inf if max(norms[0], norms[2]) > 0.0 else 0.0,
        assumption=f", if its products are accurate to {relative:.1g} sigma_max",
    )


# Proofs


class _Grams:
    """Gram matrices H = fl(A'A) of tall blocks (b, m, n), and the test sigma_max(A) <= tau.

    Let s = fl(tau^2 - c), B = fl(s I - H) and suppose that Cholesky of B completes with factor R.
    Then sigma_max(A) <= tau, for g_k = k u / (1 - k u), u = 2^-53, if

        c >= g_{n+4} / (1 - g_{n+4}) tr(tau^2 I - H) + g_{m+2} N^2 + 4 u tau^2,  N >= norm of |A| .

    1. *Cholesky*: |B - R'R|_ij <= g_{n+1} (|R|'|R|)_ij in any order of summation (Higham 2002,
       theorem 10.3); n + 4 leaves room for reciprocals in place of divisions. Column j of R has
       |r_j|^2 <= B_jj / (1 - g), so |B - R'R| <= g sum |r_j|^2 <= g / (1 - g) tr B, and
       lambda_min(B) >= -g / (1 - g) tr B. This is theorem 2.3 of Rump (2006), also proved formally
       (Roux, J. Autom. Reasoning 2016).
    2. *Gram*: |H - A'A| <= g_m |A|'|A| entrywise, hence |H - A'A| <= g_m N^2. Only one triangle of
       H is used, so that a computed H need not be symmetric.
    3. *Diagonal*: squaring tau, subtracting c and subtracting H_jj cost u tau^2 each.
    4. *Underflow*: entries are scaled to at most 1 with tau >= 1/4, so underflow adds at most
       (m + 4 n (n + 2)) 2^-1074, which the fourth u tau^2 covers.

    Together A'A <= H + g_m N^2 <= s I - B + ... <= tau^2 I. Complex sums of k terms are two real ones
    of 2 k terms: there g_k becomes sqrt(2) g_{2k}.
    """

    def __init__(self, blocks: Tensor) -> None:
        _, self.m, self.n = blocks.shape
        self.blocks = blocks
        self.H = blocks.mH @ blocks
        self.diagonal = self.H.diagonal(dim1=-2, dim2=-1).real
        size = blocks.abs()
        sums = size.sum(1).amax(1) * size.sum(2).amax(1)
        squares = torch.linalg.vector_norm(torch.linalg.vector_norm(size, dim=1), dim=1) ** 2
        self.N2 = torch.minimum(sums, squares) * (1.0 + 4.0 * gamma(self.m + self.n + 8))

    def _gamma(self, k: int) -> float:
        return math.sqrt(2.0) * gamma(2 * k + 2) if self.blocks.is_complex() else gamma(k)

    def margin(self, tau: float, which: list[int]) -> Tensor:
        """Return c, shape (len(which),)."""
        g = self._gamma(self.n + 4)
        trace = (tau * tau - self.diagonal[which]).clamp(min=0.0).sum(1)
        c = g / (1.0 - g) * trace + self._gamma(self.m + 2) * self.N2[which]
        return _PAD * (c + 4.0 * UNIT_ROUNDOFF * tau * tau)

    def at_most(self, tau: float, which: list[int]) -> Tensor:
        """Return for which of the blocks sigma_max <= tau is proved."""
        B = -self.H[which]
        B.diagonal(dim1=-2, dim2=-1).add_((tau * tau - self.margin(tau, which))[:, None])
        return torch.linalg.cholesky_ex(B).info == 0

    def rayleigh(self, i: int, steps: int, tol: float) -> float:
        """Return a proved lower bound |A v| / |v| for a top eigenvector v of H_i (all of it if steps = 0)."""
        H, n = self.H[i], self.n
        if steps == 0:
            v = torch.linalg.eigh(H).eigenvectors[:, -1]
        else:
            # The residual is squared in the eigenvalue's error, whence the square root.
            options = {"steps": steps, "tol": 0.01 * math.sqrt(tol), "generator": _generator(i), "which": "largest"}
            if H.is_complex():  # C^n as R^2n: the same eigenvalues, each twice
                real, imag = H.real.contiguous(), H.imag.contiguous()
                H = torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])
            v = lanczos(H.mv, len(H), **options).ritz_vectors([-1])[:, 0]
            v = torch.complex(v[:n], v[n:]) if len(H) > n else v
        image, size = (float(torch.linalg.vector_norm(x)) for x in (self.blocks[i] @ v, v))
        error = self._gamma(self.n + 2) * math.sqrt(float(self.N2[i]))
        return image / size * (1.0 - 2.0 * self._gamma(self.m + 4)) - error


def _inertia(blocks: Tensor, tol: float, steps: int, lower: float = 0.0) -> tuple[float, float]:
    """Return (lower, tau) with lower <= max_i sigma_max(A_i), if it is not below, and all <= tau."""
    grams = _Grams(blocks)
    full = steps if grams.n > 256 else 0
    x = torch.randn(len(blocks), grams.n, 1, dtype=blocks.dtype, generator=_generator(0))
    for _ in range(3):  # a ranking only
        x = torch.nn.functional.normalize(grams.H @ x, dim=1)
    score = torch.linalg.vector_norm(blocks @ x, dim=(1, 2)).tolist()
    pending = sorted(range(len(blocks)), key=score.__getitem__, reverse=True)
    looks = [0] * len(blocks)
    tau, excess, some = 0.0, 0.5 * tol, 1
    while pending:
        fresh = [i for i in pending if looks[i] < 2][:some]
        for i in fresh:
            if looks[i] == 0 and 1.5 * score[i] < lower:
                continue
            exact = full == 0 or (looks[i] == 1 and grams.n <= _SMALL)
            lower = max(lower, grams.rayleigh(i, 0 if exact else full * (1 + 2 * looks[i]), tol))
            looks[i] = 2 if exact else looks[i] + 1
        if not fresh:
            excess *= 4.0
        margins = grams.margin(lower, pending) / (lower * lower)
        tau = max(tau, lower * (1.0 + max(excess, float(margins.max()))))
        passed = grams.at_most(tau, pending).tolist()
        pending = [i for i, ok in zip(pending, passed, strict=True) if not ok]
        some = max(2, len(pending) // 2)
    return lower, tau

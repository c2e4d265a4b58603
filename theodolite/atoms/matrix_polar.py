"""The spectral polar of a matrix, dense or sparse: a search from inside, and proofs from outside."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from theodolite.core.params import Params
from theodolite.linalg.chebyshev import WIDTH, steps_needed
from theodolite.linalg.dense import largest, physical_memory
from theodolite.linalg.lanczos import UNIT_ROUNDOFF, gamma, lanczos
from theodolite.linalg.pattern import Pattern
from theodolite.linalg.scaled_matrix import GRAM_SIDE
from theodolite.linalg.spectral import INERTIA, first_proved, sigma_max
from theodolite.linalg.subspace import Product, leading_triplets
from theodolite.value import Value

_SMALL = 256  # up to this min(n, m) a full SVD costs less than a search
_FAR = 2.0  # times the target
_CHEAP = 1024  # up to this min(n, m) one Cholesky factorization is cheaper than any other proof
_FEW = 8  # random directions beside the starts of a first look
_PART = 1 << 16  # entries summed together: they stay in the cache
_LANCZOS, _LONG = 200, 200_000  # steps of a search, and the longest vectors of which so many are held
_STEPS = 400  # at most, of a proof by a block of random vectors,
_SPARSE = 5.0  # where a multiplication costs so many of those in a product of dense matrices
# the side of a Gram matrix that is factored where it is all but sure to prove enough, given time and memory
_GRAM_AT_LAST = 12_000
_RATE = 1e10  # multiplications in dense products a second, at least
_DENSE = 4e6  # with a sparse matrix of at most so many entries made dense for a search,
_DENSE_AT_LAST = 1.7e7  # and so many for a proof


def spectral_bound(
    T: Tensor, starts: Tensor | None, wanted: int, stop: float, seed: int, delta: float, target: float
) -> tuple[Params, Value | None]:
    """Return pairs of leading singular vectors, and a proved bound of sigma_max(T) if there is time for it.

    Without starts and far above the target, where a dual bound is of little use, there is none.

    Parameters
    ----------
    T : Tensor, shape (n, m)
        Dense or sparse COO, not zero.
    starts : Tensor, shape (r, m), optional
        Right vectors to start a search from.
    wanted : int
        How many pairs.
    stop : float
        Value of ``time.monotonic()`` from which on to prove nothing.
    seed, delta : int, float
        Of a randomized proof.
    target : float
        What bound is enough; inf for as close a one as can be had.
    """
    if starts is None and min(T.shape) > _SMALL and float(heavy_column(T)[0].norm()) > _FAR * target:
        U, V, _ = triplets(T, None, wanted + 2, seed, passes=2)
        return (U.T[:wanted], V.T[:wanted]), None
    missed = None
    if starts is not None and min(T.shape) > _CHEAP:  # what the starts attain may be all there is
        U, V, _ = triplets(T, starts, _FEW, seed, passes=2)
        goal = attained(T, (U, V), target)
        if goal[0] > 0.0 and goal[1] < math.inf and time.monotonic() < stop:
            search = cache(lambda: krylov(T, wanted, seed, stop))
            missed = just_enough(T, (U, V), goal, search, 0.5 * delta, seed, stop)
            if missed is not None and missed.high <= target:
                return (U.T[:wanted], V.T[:wanted]), missed
            starts = torch.cat([search().T, starts])
    U, V, q = triplets(T, starts, wanted + 2, seed)
    pairs = U.T[:wanted], V.T[:wanted]
    if time.monotonic() >= stop:
        return pairs, missed
    if missed is None:
        return pairs, prove(T, (U[:, :q], V[:, :q]), delta, seed, target)
    proved = prove(T, (U[:, :q], V[:, :q]), 0.5 * delta, seed, target)
    # a choice between two: both must hold
    better = proved if proved.high < missed.high else missed
    return pairs, replace(better, confidence=min(1.0 - delta, proved.confidence, missed.confidence))


def triplets(
    T: Tensor, starts: Tensor | None, width: int, seed: int, passes: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """Return left and right singular vectors of the leading singular values, as searched.

    Parameters
    ----------
    T : Tensor, shape (n, m)
        Dense or sparse COO.
    starts : Tensor, shape (r, m), optional
        Right vectors to start from.
    width : int
        How many further, random directions to start from.
    seed : int
    passes : int, optional
        Of the block Krylov space.

    Returns
    -------
    U, V : Tensor, shapes (n, q) and (m, q)
        Orthonormal, best first.
    converged : int
        How many of them bound T best when its norm is split.
    """
    if min(T.shape) <= _SMALL and T.numel() <= _DENSE:
        U, _, Vh = torch.linalg.svd(T.to_dense() if T.is_sparse else T, full_matrices=False)
        return U, Vh.T, Vh.shape[0]
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(T.shape[1], width, dtype=torch.float64, generator=generator).to(T.device)
    if starts is not None:
        block = torch.cat([starts.T, block], 1)[:, : min(T.shape)]
    forward, adjoint = matrix_products(T)
    U, s, V = leading_triplets(forward, adjoint, block, passes=passes or max(4, 120 // block.shape[1]))
    # In these bases the blocks of T are diag(s), 0, E and the rest, whose norm is near the next value:
    # as many triplets as bound the whole best.  Those that have not converged make E large.
    E = (forward(V) - U * s).square().sum(0).cumsum(0)
    rest = 1.01 * torch.cat([s[1:], s[-1:]])
    top, size = s[0] ** 2, s[0] ** 2 + E + rest**2
    bounds = size + (size**2 - 4.0 * top * rest**2).clamp(min=0.0).sqrt()
    q = int(bounds.argmin()) + 1
    return U, V, q


def krylov(T: Tensor, wanted: int, seed: int, stop: float) -> Tensor:
    """Return right vectors of leading singular values by many steps of Lanczos, best last.

    Where singular values are close to each other only many steps tell them apart.  Shape (m, wanted) or
    narrower; without columns where so many steps cannot be held.

    Parameters
    ----------
    T, wanted, seed, stop
        As for :func:`spectral_bound`.  The start is not one of those that a proof draws, whose subspaces
        may depend on what is found here.
    """
    if T.shape[1] > _LONG:
        return torch.zeros(T.shape[1], 0, dtype=torch.float64, device=T.device)
    forward, adjoint = (
        lambda x, product=product: product(x[:, None])[:, 0] for product in matrix_products(T)
    )
    run = lanczos(
        lambda x: adjoint(forward(x)),
        T.shape[1],
        steps=_LANCZOS,
        device=T.device,
        start=torch.randn(T.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        callback=None if stop == math.inf else lambda *_: time.monotonic() >= stop,
    )
    return run.ritz_vectors(list(range(-min(wanted, len(run.ritz_values)), 0)))


def matrix_products(T: Tensor) -> tuple[Product, Product]:
    """Return the products of blocks of vectors with T and its transpose."""
    if not T.is_sparse:
        return lambda X: T @ X, lambda Y: T.T @ Y
    rows, cols = T.indices()
    return Pattern(rows, cols, (T.shape[0], T.shape[1]), ordered=True).products(T.values())


def free_bound(T: Tensor) -> float:
    """Return min(Frobenius, sqrt(norm_1 norm_inf)), a bound of sigma_max of |T| too, rounding enclosed."""
    entries = T.values() if T.is_sparse else T.reshape(-1)
    columns, rows = (float(_sums(T, i).max()) for i in (0, 1))
    frobenius, top = float(entries.norm()), largest(entries)
    if top > 0.0 and not 1e-140 < top < 1e140:  # squares leave the range of numbers
        frobenius = float((entries / top).norm()) * top
    return min(frobenius, math.sqrt(columns) * math.sqrt(rows)) * (1.0 + gamma(len(entries) + 8))


def heavy_column(T: Tensor) -> Params:
    """Return the pair (T e_j, e_j) of the column with the largest sum."""
    V = torch.zeros(1, T.shape[1], dtype=torch.float64, device=T.device)
    j = int(_sums(T, 0).argmax())
    V[0, j] = 1.0
    if not T.is_sparse:
        return T[:, j][None], V
    u = torch.zeros(1, T.shape[0], dtype=torch.float64, device=T.device)
    here = T.indices()[1] == j
    u[0, T.indices()[0, here]] = T.values()[here]
    return u, V


def _sums(T: Tensor, dim: int) -> Tensor:
    """Return the sums of |T| over a dimension."""
    if not T.is_sparse:
        return T.abs().sum(dim)
    out = torch.zeros(T.shape[1 - dim], dtype=torch.float64, device=T.device)
    for index, entries in zip(T.indices()[1 - dim].split(_PART), T.values().split(_PART), strict=True):
        out.index_add_(0, index, entries.abs())
    return out


def _dense(T: Tensor) -> Tensor:
    return T.to_dense() if T.is_sparse else T


def attained(T: Tensor, basis: tuple[Tensor, Tensor], target: float) -> tuple[float, float]:
    """Return what the first pair of a basis attains, and the bound to aim at from there (inf for none).

    That is a little within the target, which rounding elsewhere takes its share of.
    """
    U, V = basis
    lower = abs(float(U[:, 0] @ matrix_products(T)[0](V[:, :1])[:, 0]))
    return lower, lower + 0.97 * (target - lower) if lower < target else math.inf


def by_inertia(T: Tensor, goal: tuple[float, float]) -> Value | None:
    """Return a bound of sigma_max(T) proved by one Cholesky factorization or a few, where that is worth it.

    Beyond a certain size Krylov spaces are cheaper, but they leave about half a percent open.

    Parameters
    ----------
    T : Tensor, shape (n, m)
        Dense or sparse COO.
    goal : tuple of float
        What :func:`attained` returns.
    """
    least, (lower, aim) = min(T.shape), goal
    if lower == 0.0 or (least > _CHEAP and aim >= 1.005 * lower):
        return None
    excess = 4.0 * least**2 * UNIT_ROUNDOFF  # about what rounding takes
    taus = [lower * (1.0 + excess * 16.0**k) for k in range(8)] if least <= _CHEAP else []
    tau = first_proved(_dense(T), sorted([*taus, aim] if aim < math.inf else taus))
    return Value.bound(0.0, tau, note=INERTIA) if tau < math.inf else None


def just_enough(
    T: Tensor,
    basis: tuple[Tensor, Tensor],
    goal: tuple[float, float],
    search: Callable[[], Tensor],
    delta: float,
    seed: int,
    stop: float,
) -> Value | None:
    """Return a bound of sigma_max(T) by the cheaper of two proofs of what is wanted, if either is worth it.

    Parameters
    ----------
    T, basis, delta, seed
        As for :func:`prove`.
    goal : tuple of float
        What :func:`attained` returns, 0 < lower < aim < inf.
    search : callable
        :func:`krylov`, for a look at what is to be proved before much is spent on it.
    stop : float
        Value of ``time.monotonic()`` by which it should be done.
    """
    (m, n), (lower, aim) = sorted(T.shape, reverse=True), goal
    steps = steps_needed(n, aim / lower, delta)
    entries = T.values().numel() if T.is_sparse else T.numel()
    cholesky = 0.5 * m * n**2 + n**3 / 6.0
    usual = _affordable(T)
    possible = usual or (
        n <= _GRAM_AT_LAST
        and cholesky <= _RATE * (stop - time.monotonic())
        and 16.0 * n * (m + n) <= 0.5 * physical_memory()
    )
    if steps <= _STEPS and (not possible or steps * 2.0 * WIDTH * entries * _SPARSE < cholesky):
        tol, most = aim / lower - 1.0, math.ceil(1.2 * steps) + 8
        return sigma_max(T, method="chebyshev", basis=basis, delta=delta, seed=seed, tol=tol, max_steps=most)
    if not possible or (not usual and float(matrix_products(T)[0](search()[:, -1:]).norm()) > aim):
        return None
    return by_inertia(T, goal)


def _affordable(T: Tensor) -> bool:
    return min(T.shape) <= GRAM_SIDE and T.numel() <= _DENSE_AT_LAST


def prove(T: Tensor, basis: tuple[Tensor, Tensor], delta: float, seed: int, target: float) -> Value:
    """Return a proved bound of sigma_max(T); the most costly proof only where it may show <= target.

    Parameters
    ----------
    T : Tensor, shape (n, m)
        Dense or sparse COO.
    basis : tuple of Tensor, shapes (n, q) and (m, q)
        Leading singular vectors, as searched, best first.
    delta, seed : float, int
        Of a randomized proof.
    target : float
        What is enough; inf for as close a bound as can be had.
    """
    proved = by_inertia(T, attained(T, basis, target)) if _affordable(T) else None
    if proved is not None:
        return proved
    proved = sigma_max(T, method="split", basis=basis, delta=0.5 * delta, seed=seed)
    if proved.low > target or proved.high <= target or math.isinf(target):
        return proved
    if _affordable(T):
        return sigma_max(_dense(T), method="inertia", tol=1e-12)
    further = sigma_max(T, method="split", basis=basis, delta=0.5 * delta, seed=~seed, max_steps=400)
    better = further if further.high < proved.high else proved
    # a choice between two: both must hold
    return replace(better, confidence=min(1.0 - delta, proved.confidence))

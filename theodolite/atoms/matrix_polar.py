"""The spectral polar of a matrix, dense or sparse: a search from inside, and proofs from outside."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from theodolite.core.params import Params
from theodolite.linalg.lanczos import gamma
from theodolite.linalg.pattern import Pattern
from theodolite.linalg.spectral import sigma_max
from theodolite.linalg.subspace import Product, leading_triplets
from theodolite.value import Value

_SMALL = 256  # up to this min(n, m) a full SVD costs less than a search
_DENSE = 4e6  # a sparse matrix with more entries than this is not made dense,
_DENSE_AT_LAST = 1.7e7  # unless nothing else proves enough, and then not beyond this


def triplets(T: Tensor, starts: Tensor | None, width: int, seed: int) -> tuple[Tensor, Tensor, int]:
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
    forward, adjoint = _products(T)
    U, s, V = leading_triplets(forward, adjoint, block, passes=max(4, 120 // block.shape[1]))
    # In these bases the blocks of T are diag(s), 0, E and the rest, whose norm is near the next value:
    # as many triplets as bound the whole best.  Those that have not converged make E large.
    E = (forward(V) - U * s).square().sum(0).cumsum(0)
    rest = 1.01 * torch.cat([s[1:], s[-1:]])
    top, size = s[0] ** 2, s[0] ** 2 + E + rest**2
    bounds = size + (size**2 - 4.0 * top * rest**2).clamp(min=0.0).sqrt()
    q = int(bounds.argmin()) + 1
    return U, V, q


def scaled(x: Any, exponent: int) -> Any:
    """Return x 2^exponent; in halves, because 2^exponent itself may overflow."""
    return x * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


def _products(T: Tensor) -> tuple[Product, Product]:
    if not T.is_sparse:
        return lambda X: T @ X, lambda Y: T.T @ Y
    rows, cols = T.indices()
    return Pattern(rows, cols, (T.shape[0], T.shape[1])).products(T.values())


def free_bound(T: Tensor) -> float:
    """Return min(Frobenius, sqrt(norm_1 norm_inf)), a bound of sigma_max of |T| too, rounding enclosed."""
    entries = T.values() if T.is_sparse else T.reshape(-1)
    columns, rows = (float(_dense(T.abs().sum(i)).max()) for i in (0, 1))
    top = float(entries.abs().max())
    frobenius = float((entries / top).norm()) * top if top > 0.0 else 0.0
    return min(frobenius, math.sqrt(columns) * math.sqrt(rows)) * (1.0 + gamma(len(entries) + 8))


def heavy_column(T: Tensor) -> Params:
    """Return the pair (T e_j, e_j) of the column with the largest sum."""
    V = torch.zeros(1, T.shape[1], dtype=torch.float64, device=T.device)
    V[0, int(_dense(T.abs().sum(0)).argmax())] = 1.0
    u = (T @ V.T).T
    return u / u.abs().max(), V


def _dense(x: Tensor) -> Tensor:
    return x.to_dense() if x.is_sparse else x


def prove(T: Tensor, basis: tuple[Tensor, Tensor], delta: float, seed: int, target: float) -> Value:
    """Return a proved two-sided bound of sigma_max(T); the most costly proof only where it may show <= target."""
    entries, small = T.numel(), min(T.shape) <= 1024
    if small and (entries <= _DENSE or not T.is_sparse):
        return sigma_max(_dense(T), method="inertia", tol=1e-12)
    proved = sigma_max(T, method="split", basis=basis, delta=0.5 * delta, seed=seed)
    if proved.low > target or proved.high <= target or math.isinf(target):
        return proved
    if min(T.shape) <= 4096 and entries <= _DENSE_AT_LAST:
        return sigma_max(_dense(T), method="inertia", tol=1e-12)
    further = sigma_max(T, method="split", basis=basis, delta=0.5 * delta, seed=~seed, max_steps=400)
    better = further if further.high < proved.high else proved
    return replace(
        better, confidence=min(1.0 - delta, proved.confidence)
    )  # a choice between two: both must hold

"""Both ends of a structured polar: alternating ascent from many starts, and splittings."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from theodolite.atoms.matrix_polar import free_bound
from theodolite.core.params import Params, select
from theodolite.linalg.lanczos import UP, gamma
from theodolite.polar.factor_norm import FactorNorm

_ALTERNATIONS = 40
_THINNED = 5  # alternation after which the worse ones are dropped
_DISTINCT = 0.999  # cosine beyond which two witnesses count as one


def starts(Q: Tensor, left: FactorNorm, right: FactorNorm, given: Params | None, seed: int) -> Tensor:
    """Return right factors to start from: given ones, singular vectors with both signs, heavy columns, random ones."""
    n, m = Q.shape
    generator = torch.Generator().manual_seed(seed)
    width = min(n, m, 6)
    block = torch.randn(m, width + 2, dtype=torch.float64, generator=generator).to(Q.device)
    noise = block[:, :2].T
    for _ in range(8):
        block = torch.linalg.qr(Q.T @ (Q @ block)).Q
    singular = block[:, :width].T
    columns = Q.abs().sum(0)
    heavy = torch.zeros(min(2, m), m, dtype=torch.float64, device=Q.device)
    order = (columns.to_dense() if columns.is_sparse else columns).argsort(descending=True)[: len(heavy)]
    heavy[torch.arange(len(heavy)), order] = 1.0
    V = torch.cat([singular, heavy, noise])
    if left.nonnegative or right.nonnegative:  # otherwise the sign of both factors may be turned
        V = torch.cat([V, -V])
    if given is not None:
        V = torch.cat([right.effective(given[1])[:20], V])
    V = right.effective(V)
    return V[V.any(1)]


def ascend(Q: Tensor, left: FactorNorm, right: FactorNorm, V: Tensor, deadline: float) -> Iterator[Params]:
    """Yield pairs of norms 1 with rising <Q, u v^T>: each factor in turn maximizes it, given the other."""
    U: Tensor | None = None
    duals: tuple[Tensor | None, Tensor | None] = (None, None)
    before = torch.full((len(V),), -math.inf, dtype=torch.float64, device=Q.device)
    for turn in range(_ALTERNATIONS):
        steps, tol = (2, 1e-3) if turn < _THINNED else (5, 1e-6)
        U, dual = left.maximizers((Q @ V.T).T, U, duals[0], steps, tol)
        pulled = (Q.T @ U.T).T
        V, other = right.maximizers(pulled, V, duals[1], steps, tol)
        duals = dual, other
        value = (pulled * V).sum(1)
        yield U, V
        if time.monotonic() > deadline or (turn > _THINNED and bool((value <= before * (1.0 + 1e-7)).all())):
            return
        if turn == _THINNED:  # the better half, of which no two are one
            kept = distinct((U, V), value)[: max(8, len(V) // 2)]
            U, V, value = U[kept], V[kept], value[kept]
            first, second = (None if d is None else d[kept] for d in duals)
            duals = first, second
        before = value


def distinct(params: Params, value: Tensor) -> Tensor:
    """Return indices of pairs with different directions, those of the largest value first."""
    U, V = (torch.nn.functional.normalize(p) for p in params)
    overlap = ((U @ U.T) * (V @ V.T)).abs()
    kept: list[int] = []
    for i in torch.argsort(value, descending=True).tolist():
        if not kept or float(overlap[i, kept].max()) < _DISTINCT:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=value.device)


def attained(Q: Tensor, left: FactorNorm, right: FactorNorm, params: Params) -> Tensor:
    """Return proved lower bounds of <Q, u v^T> / (norm(u) norm(v)), not below 0, for effective factors."""
    U, V = params
    value = (U.T * (Q @ V.T)).sum(0)
    spread = (U.abs().T * (Q.abs() @ V.abs().T)).sum(0)
    # a norm is a sum of at most 4 n numbers >= 0, each with few roundings: see Term.stretch
    length = left(U) * right(V) * (1.0 + gamma(16 * sum(Q.shape) + 64))
    return (value - gamma(sum(Q.shape) + 8) * spread).clamp(min=0.0) / (length * UP)


def dropped_terms(Q: Tensor, left: FactorNorm, right: FactorNorm, spectral: float | None = None) -> float:
    """Return the least of the bounds that follow from c ||u||_2 <= norm(u) and c ||u||_1 <= norm(u).

    They take one pass over Q, dense or sparse; with two nonnegative factors max(Q, 0) serves as well.

    Parameters
    ----------
    Q : Tensor, shape (n, m)
    left, right : FactorNorm
    spectral : float, optional
        A proved upper bound of the largest singular value, instead of a cheap one.
    """
    (n, m), (a, b) = Q.shape, (left.euclidean(), right.euclidean())
    bounds = []
    if spectral is not None:
        bounds.append(spectral / (a * b))
    for part in [Q] + [positive_part(Q)] * (left.nonnegative and right.nonnegative):
        entries = part.values() if part.is_sparse else part.reshape(-1)
        squares = part * part
        sums = [squares.sum(i) for i in (0, 1)]
        columns, rows = (float((s.to_dense() if s.is_sparse else s).max()) ** 0.5 for s in sums)
        top = float(entries.abs().max()) if len(entries) else 0.0
        free = free_bound(part) if top > 0.0 else 0.0
        bounds += [
            free / (a * b),
            rows / (left.summed(n) * b),
            columns / (a * right.summed(m)),
            top / (left.summed(n) * right.summed(m)),
        ]
    # a row that underflows when squared is below 1e-150 of the largest entry, which is near 1
    return (min(bounds) + 1e-150) * (1.0 + gamma(n + m + 16))


def positive_part(Q: Tensor) -> Tensor:
    """Return max(Q, 0), dense or sparse."""
    if not Q.is_sparse:
        return Q.clamp(min=0.0)
    values = Q.values().clamp(min=0.0)
    return torch.sparse_coo_tensor(Q.indices(), values, Q.shape, check_invariants=False, is_coalesced=True)


def best_pairs(found: list[Params], Q: Tensor, left: FactorNorm, right: FactorNorm) -> tuple[Params, Tensor]:
    """Return the distinct ones of several pairs, best first, with proved lower bounds."""
    params = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
    value = attained(Q, left, right, params)
    kept = distinct(params, value)
    return select(params, kept), value[kept]

"""A matrix or operator as the spectral bounds read it: checked, scaled by a power of two, measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from theodolite.linalg.dense import largest
from theodolite.linalg.lanczos import UNIT_ROUNDOFF, gamma
from theodolite.linalg.pattern import csr_product

GRAM_SIDE = 4096
"""Side of the largest Gram matrix that is factored where another proof would do."""
_FLOPS, _ENTRIES = 4e11, 2.5e8  # limits of the matrix itself


@dataclass(frozen=True)
class ScaledMatrix:
    """An input times 2^-exponent, its products, and what is known about it for free."""

    shape: tuple[int, ...]
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    exponent: int = 0
    relative: float = 0.0  # |fl(A x) - A x| <= relative * sigma_max * |x|; the same for A'
    ceiling: float = math.inf  # min(Frobenius, sqrt(norm_1 norm_inf)), a bound of the norm of |A| too
    dense: Callable[[], Tensor] | None = None
    assumption: str = ""

    @property
    def affordable(self) -> bool:
        """Whether its Gram matrix may be factored."""
        m, n = max(self.shape), min(self.shape)
        return self.dense is not None and n <= GRAM_SIDE and 2.0 * m * n * n <= _FLOPS and m * n <= _ENTRIES


def exponent_of(name: str, A: Tensor) -> int:
    """Return e with max |A_ij| in [2^(e-1), 2^e), after checking that all entries are finite."""
    top = largest(A)
    if not math.isfinite(top):
        where = (~torch.isfinite(A)).nonzero()[0].tolist()
        raise ValueError(f"{name}: expected finite entries, got {A[tuple(where)].item()} at index {where}")
    return math.frexp(top)[1]


def scale(A: Tensor, exponent: int) -> Tensor:
    """Return A 2^exponent, exact but for entries that vanish beside the largest."""
    if abs(exponent) > 1000:  # in halves: the factor itself might overflow
        return A * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    return A * 2.0**exponent if exponent else A


def ldexp_rounded(x: float, exponent: int, toward: int) -> float:
    """Return x 2^exponent, rounded up (toward = 1) or down (-1) where it is not exact."""
    try:
        y = math.ldexp(x, exponent)
    except OverflowError:
        return math.inf if toward > 0 else math.nextafter(math.inf, 0.0)
    return max(0.0, math.nextafter(y, math.inf * toward)) if x > 0.0 and y < 2.0**-1021 else y


def read(A: Any, product_error: float | None, generator: torch.Generator) -> ScaledMatrix:
    """Check the input, scale it so that its largest entry is in [1/2, 1), and measure it."""
    if isinstance(A, Tensor) and A.layout != torch.strided and not A.is_complex():
        coo = A.detach().to("cpu").to_sparse_coo().coalesce()
        A = sp.csr_array((coo.values().double().numpy(), tuple(coo.indices().numpy())), shape=tuple(A.shape))
    matrix = isinstance(A, Tensor | np.ndarray) or sp.issparse(A)
    shape = tuple(getattr(A, "shape", ()))
    if len(shape) != 2 or not (matrix or (hasattr(A, "matvec") and hasattr(A, "rmatvec"))):
        raise ValueError(f"A: expected a matrix or an operator, got {type(A).__name__} of shape {shape}")
    real = not A.is_complex() if isinstance(A, Tensor) else not matrix or A.dtype.kind in "buif"
    if not real or (matrix and A.dtype.itemsize > 8):
        raise ValueError(f"A: expected real entries of at most 64 bits, got {A.dtype}")
    if 0 in shape:
        return ScaledMatrix(shape, torch.clone, torch.clone, ceiling=0.0)
    if not matrix:
        return _operator(A, shape, product_error, generator)
    if product_error is not None:
        raise ValueError("product_error: expected None for a matrix, whose own rounding is bounded here")
    if sp.issparse(A):
        csr = sp.csr_array(A, dtype=np.float64, copy=True)
        csr.sum_duplicates()
        exponent = exponent_of("A", torch.from_numpy(csr.data))
        csr.data = scale(torch.from_numpy(csr.data), -exponent).numpy()
        csc = sp.csr_array(csr.T)  # so that both products run over contiguous rows
        terms = int(max(np.diff(csr.indptr).max(), np.diff(csc.indptr).max()))
        norms = [_row_norms(side, p) for p in (1, 2) for side in (csc, csr)]
        measures = _measure(shape, terms, norms)
        products = csr_product(csr), csr_product(csc)
        return ScaledMatrix(shape, *products, exponent, *measures, lambda: torch.from_numpy(csr.toarray()))
    dense = (
        A.detach().to("cpu", torch.float64) if isinstance(A, Tensor) else torch.from_numpy(np.array(A, float))
    )
    exponent = exponent_of("A", dense)
    dense = scale(dense, -exponent)
    norms = [torch.linalg.vector_norm(dense, p, dim=i) for p in (1, 2) for i in (0, 1)]
    measures = _measure(shape, max(shape), norms)
    return ScaledMatrix(shape, lambda x: dense @ x, lambda y: dense.T @ y, exponent, *measures, lambda: dense)


def _row_norms(csr: sp.csr_array, p: int) -> Tensor:
    """Return the 1- or 2-norms of the rows."""
    sizes = np.abs(csr.data) if p == 1 else np.square(csr.data)
    sums = sp.csr_array((sizes, csr.indices, csr.indptr), shape=csr.shape) @ np.ones(csr.shape[1])
    return torch.from_numpy(sums if p == 1 else np.sqrt(sums))


def _measure(shape: tuple[int, ...], terms: int, norms: list[Tensor]) -> tuple[float, float]:
    """Return (relative product error, free upper bound) from 1- and 2-norms of the columns and rows."""
    up = 1.0 + 2.0 * gamma(sum(shape) + 8)
    frobenius, column, row = float(norms[2].norm()), float(norms[2].max()), float(norms[3].max())
    ceiling = up * min(frobenius, math.sqrt(float(norms[0].max() * norms[1].max())))
    floor = max(column, row, frobenius / math.sqrt(min(shape))) / up
    return gamma(terms + 2) * ceiling / floor if floor > 0.0 else 0.0, ceiling


def _operator(
    A: Any, shape: tuple[int, ...], error: float | None, generator: torch.Generator
) -> ScaledMatrix:
    exponent, roundoffs = 0, [2.0 * UNIT_ROUNDOFF]

    def apply(name: str, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return torch.stack([apply(name, column) for column in x.T], 1)
        y = (
            torch.as_tensor(getattr(A, name)(x.numpy() if isinstance(A, LinearOperator) else x))
            .detach()
            .cpu()
        )
        if y.is_complex() or y.shape != (shape[name == "rmatvec"],) or not y.isfinite().all():
            raise ValueError(
                f"A.{name}: expected a finite real vector, got {y.dtype} of shape {tuple(y.shape)}"
            )
        roundoffs.append(torch.finfo(y.dtype).eps if y.is_floating_point() else 0.0)
        return scale(y.double(), -exponent)

    x, y = (torch.randn(k, dtype=torch.float64, generator=generator) for k in (shape[1], shape[0]))
    exponent = math.frexp(float(apply("matvec", x).abs().max()))[1]
    Ax, Aty = apply("matvec", x), apply("rmatvec", y)
    relative = 500.0 * max(roundoffs) if error is None else error
    terms = float(Ax.norm() * y.norm() + Aty.norm() * x.norm())
    if abs(float(Ax @ y - Aty @ x)) > (4.0 * relative + 1e-8) * terms:
        raise ValueError("A.rmatvec: expected the adjoint of A.matvec, got products that disagree")
    forward, adjoint = (lambda v, name=name: apply(name, v) for name in ("matvec", "rmatvec"))
    assumption = f", if products are accurate to {relative:.1g} sigma_max"
    ceiling = math.inf if terms > 0.0 else 0.0
    return ScaledMatrix(shape, forward, adjoint, exponent, relative, ceiling, assumption=assumption)

"""Inputs of a family of subnetworks, checked, and random directions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theodolite.linalg.dense import all_finite, largest
from theodolite.linalg.lanczos import gamma
from theodolite.polar.scaling import power


def as_inputs(X: Any, *, bias: bool = False, columns: int | None = None) -> Tensor:
    """Return inputs as a float64 tensor (n, d), with a last column of ones if `bias`.

    Parameters
    ----------
    X : array-like, shape (n, d)
        A tensor keeps its device.
    bias : bool
    columns : int, optional
        The d (before the column of ones) that is expected.

    Raises
    ------
    ValueError
        If X is not a finite, nonempty real matrix of that width.
    """
    if not isinstance(X, Tensor):
        X = np.asarray(X)
        if X.dtype.kind not in "fiub":
            raise ValueError(f"X: expected real numbers, got dtype {X.dtype}")
        X = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float64))
    X = X.detach()
    width = "d" if columns is None else columns
    if X.is_complex() or X.ndim != 2 or 0 in X.shape or X.shape[1] != (columns or X.shape[1]):
        raise ValueError(
            f"X: expected a nonempty real matrix of shape (n, {width}), got {X.dtype} of shape {tuple(X.shape)}"
        )
    X = X.to_dense().double() if X.is_sparse else X.double()
    if not all_finite(X):
        bad = int((~torch.isfinite(X)).sum())
        raise ValueError(f"X: expected finite numbers, got {bad} that are NaN or infinite")
    return torch.cat([X, X.new_ones(len(X), 1)], 1) if bias else X


def check_outputs(n_outputs: int) -> int:
    """Return the number of outputs, or refuse one that is not an integer >= 1."""
    if isinstance(n_outputs, bool) or int(n_outputs) != n_outputs or n_outputs < 1:
        raise ValueError(f"n_outputs: expected an integer >= 1, got {n_outputs}")
    return int(n_outputs)


def check_direction(Q: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return Q in float64, coalesced if it is sparse, and its entries, or refuse it as :func:`check_dual`."""
    if tuple(Q.shape) != shape:
        raise ValueError(f"Q: expected shape {shape}, got {tuple(Q.shape)}")
    Q = (Q.coalesce() if Q.is_sparse else Q).detach().double()
    entries = Q.values() if Q.is_sparse else Q
    if not all_finite(entries):
        raise ValueError(f"Q: expected finite entries, got {entries[~torch.isfinite(entries)][0].item()}")
    return Q, entries


def moderate(Q: Tensor, shape: tuple[int, int]) -> tuple[Tensor, int | None]:
    """Return 2^-e Q, whose largest entry is in [1/2, 1), and e (None for zero), or refuse Q.

    Exact, except for entries below 2^-1074 of the largest.
    """
    Q, entries = check_direction(Q, shape)
    top = largest(entries)
    if top == 0.0:
        return Q, None
    exponent = math.frexp(top)[1]
    return power(Q, -exponent), exponent


def check_dual(Q: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return Q dense, on the CPU, float64, or refuse one of another shape or with entries that are not finite."""
    Q, _ = check_direction(Q, shape)
    return (Q.to_dense() if Q.is_sparse else Q).to("cpu")


def random_directions(r: int, width: int, generator: torch.Generator) -> Tensor:
    """Return r random unit vectors of a width, shape (r, width), float64."""
    return unit(torch.randn(r, width, generator=generator, dtype=torch.float64))


def unit(rows: Tensor) -> Tensor:
    """Return the rows with length 1; a zero row becomes the first basis vector."""
    size = rows.norm(dim=1, keepdim=True)
    fallback = torch.zeros_like(rows)
    fallback[:, 0] = 1.0
    return torch.where(size > 0.0, rows / size.clamp(min=torch.finfo(rows.dtype).tiny), fallback)


def row_sum(Q: Tensor, bounds: Tensor) -> float:
    r"""Return the crude bound :math:`\sum_i\|Q_i\| b_i` of the polar, rounded up."""
    n, k = Q.shape
    total = float((Q.norm(dim=1) * bounds.to(Q.device)).sum())
    return total * (1.0 + 4.0 * gamma(n + k + 8))


def same_directions(directions: Tensor, tolerance: float = 1e-13) -> Tensor:
    """Return for each unit row the index of the first row that equals it within the tolerance."""
    far = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    return (far <= tolerance).to(torch.uint8).argmax(dim=1)

r"""The rows of a ReLU polar as its upper bounds read them: checked, scaled, merged and sorted by cell.

:math:`F(w)=(\sum_c\|\sum_{i\in c}Q_i\mathrm{relu}(x_i\cdot w)\|^2)^{1/2}`.  Rows of one cell with one direction are
added up, :math:`\sum_iQ_i\mathrm{relu}(\alpha_ix\cdot w)=(\sum_i\alpha_iQ_i)\mathrm{relu}(x\cdot w)` for positive
factors; what rounding makes of it is bounded.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theodolite.linalg.dense import all_finite
from theodolite.linalg.lanczos import PAD, gamma
from theodolite.polar.scaling import balanced

__all__ = ["Rows", "merged"]

_PART = 4_096  # rows handled together


@dataclass(frozen=True)
class Rows:
    r"""Rows sorted by cell.

    Attributes
    ----------
    X : Tensor, shape (n, d)
        No zero rows, largest entry of each in [1/2, 1).
    Q : Tensor, shape (n, K)
        No zero rows.
    cells : tuple of slice
        The rows of each cell.
    labels : tuple of int
        The caller's number of each cell.
    slack : float
        Bound of what merging changed of F on the unit sphere.
    crude : float
        Bound :math:`(\sum_c(\sum_{i\in c}\|Q_i\|\|x_i\|)^2)^{1/2}` of F there, slack included.
    exponent : int
        Of the power of two by which F is to be multiplied.
    """

    X: Tensor
    Q: Tensor
    cells: tuple[slice, ...]
    labels: tuple[int, ...]
    slack: float
    crude: float
    exponent: int

    def parts(self, most: int = _PART) -> list[tuple[int, slice]]:
        """Return (cell, rows) for consecutive parts of at most so many rows."""
        found = []
        for c, cell in enumerate(self.cells):
            for start in range(cell.start, cell.stop, most):
                found.append((c, slice(start, min(start + most, cell.stop))))
        return found


def merged(X: Tensor, Q: Tensor, cells: Tensor | None = None, merge: bool = True) -> Rows:
    """Check the input, drop zero rows, scale by powers of two, sort by cell and add up rows with one direction.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    cells : Tensor of int64, shape (n,), optional
        Which cell each row is in; any numbers.
    merge : bool
        Whether to add up rows.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, or the shapes disagree.
    """
    for name, A in (("X", X), ("Q", Q)):
        if A.ndim != 2 or A.dtype != torch.float64 or not all_finite(A):
            raise ValueError(f"{name}: expected a finite float64 matrix, got {A.dtype}, {tuple(A.shape)}")
    if len(X) != len(Q):
        raise ValueError(f"Q: expected {len(X)} rows, as X has, got {len(Q)}")
    if cells is None:
        cells = torch.zeros(len(X), dtype=torch.int64)
    elif cells.shape != (len(X),) or cells.is_floating_point() or cells.is_complex():
        raise ValueError(f"cells: expected {len(X)} integers, got {cells.dtype}, {tuple(cells.shape)}")
    X, Q, cells = X.detach().cpu(), Q.detach().cpu(), cells.detach().cpu().long()
    used = (X != 0.0).any(1) & (Q != 0.0).any(1)
    X, Q, cells = _selected(used, X, Q, cells)
    if not len(X):
        return Rows(X, Q, (), (), 0.0, 0.0, 0)
    X, Q, exponent = balanced(X, Q)
    X, Q, cells = _selected((Q != 0.0).any(1), X, Q, cells)
    slack = 0.0
    if merge:
        X, Q, cells, slack = _added_up(X, Q, cells)
    if bool((cells[1:] < cells[:-1]).any()):
        order = torch.argsort(cells, stable=True)
        X, Q, cells = X[order], Q[order], cells[order]
    sizes = torch.linalg.vector_norm(X, dim=1) * torch.linalg.vector_norm(Q, dim=1)
    labels, counts = torch.unique_consecutive(cells, return_counts=True)
    ends = np.cumsum([0, *counts.tolist()]).tolist()
    slices = tuple(slice(a, b) for a, b in itertools.pairwise(ends))
    crude = math.hypot(*(float(sizes[cell].sum()) for cell in slices))
    crude *= 1.0 + 2.0 * gamma(len(X) + X.shape[1] + Q.shape[1] + len(slices) + 8)
    return Rows(X, Q, slices, tuple(labels.tolist()), slack, crude + slack, exponent)


def _selected(used: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if bool(used.all()) else tuple(A[used] for A in tensors)


def _added_up(X: Tensor, Q: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return fewer rows, and a bound of what that changes in F at any unit w."""
    sizes = torch.linalg.vector_norm(X, dim=1)
    index = same_direction(X, sizes, cells)
    groups = int(index.max()) + 1
    if groups == len(X):
        return X, Q, cells, 0.0
    first = torch.full((groups,), len(X)).scatter_reduce(0, index, torch.arange(len(X)), "amin")
    source = first[index]
    alpha = sizes / sizes[source]
    moved = (source != torch.arange(len(X))).nonzero()[:, 0]  # the others stay where they are
    slack = 0.0
    for some in moved.split(_PART):
        base = X[source[some]]
        rest = torch.linalg.vector_norm(X[some] - alpha[some, None] * base, dim=1)
        weight = torch.linalg.vector_norm(Q[some], dim=1)
        slack += float(weight @ rest)
    size = float(torch.linalg.vector_norm(Q, dim=1) @ sizes)
    slack = (slack + gamma(2 * len(X) + X.shape[1] + Q.shape[1] + 32) * size) * PAD
    Q = torch.zeros(groups, Q.shape[1], dtype=Q.dtype).index_add_(0, index, alpha[:, None] * Q)
    X, Q, cells = _selected((Q != 0.0).any(1), X[first], Q, cells[first])
    return X, Q, cells, slack


def direction_digits(X: Tensor, sizes: Tensor) -> NDArray[np.int64]:
    """Return ten digits of each row's direction, shape (n, d), for rows of given lengths."""
    return (X / sizes[:, None]).mul_(1e10).round_().long().numpy()


def hash_factors(width: int) -> NDArray[np.int64]:
    """Return factors whose sums with integers, modulo 2^64, seldom agree where the integers do not."""
    return np.random.default_rng(0).integers(2**62, size=width, dtype=np.int64) | 1


def same_direction(X: Tensor, sizes: Tensor, cells: Tensor) -> Tensor:
    """Return the number of each row's group: rows of one cell whose directions agree to ten digits.

    Nothing is proved by it: what a merge of its groups changes is measured.
    """

    def keys(rows: Tensor, lengths: Tensor, of: Tensor) -> NDArray[np.int64]:
        return np.concatenate([direction_digits(rows, lengths), of.numpy()[:, None]], 1)

    # A hash of each row first: few rows, if any, have to be sorted entry by entry.
    factors = hash_factors(X.shape[1] + 1)
    parts = zip(X.split(_PART), sizes.split(_PART), cells.split(_PART), strict=True)
    hashes = np.concatenate([keys(*part) @ factors for part in parts])
    _, group, members = np.unique(hashes, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    twins = np.flatnonzero(members[group] > 1)
    if len(twins):
        rows = np.ascontiguousarray(keys(X[twins], sizes[twins], cells[twins]))
        whole = rows.view(np.dtype((np.void, rows.shape[1] * 8)))[:, 0]
        group[twins] = len(members) + np.unique(whole, return_inverse=True)[1].reshape(-1)
        group = np.unique(group, return_inverse=True)[1].reshape(-1)
    return torch.from_numpy(group)

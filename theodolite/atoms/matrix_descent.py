r"""Descent for matrices: proximal steps on the sum Z in place of the factors.

FISTA with the gauge's proximal map (:mod:`theodolite.atoms.proximal`); the nuclear norm of a large
matrix has an iteration of its own (:mod:`theodolite.atoms.matrix_low_rank`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.matrix_low_rank import LowRank
from theodolite.atoms.matrix_norms import (
    DUAL,
    Groups,
    balanced_factors,
    shrink_singular_values,
    spectral_norm,
)
from theodolite.atoms.proximal import Composite, minimize
from theodolite.core.params import Params

if TYPE_CHECKING:
    from theodolite.atoms.matrix import MatrixAtom
    from theodolite.core.problem import Problem

_SVD = 2000  # up to this min(n, m) a dense matrix is decomposed in full
_TINY = 65536  # entries up to which even a matrix with a support is held densely


def descend(
    atom: MatrixAtom,
    problem: Problem,
    params: Params,
    *,
    tol: float,
    deadline: float,
    progress: Callable[[Params], None],
) -> Params:
    """Return pairs near the optimum of the convex problem (see :meth:`Atom.descend`)."""
    support = problem.loss.support
    n, m = atom.shape
    if atom.spectral:
        if (support is None and min(n, m) <= _SVD) or n * m <= _TINY:
            return _dense(atom, problem, params, tol, deadline, progress)
        return LowRank(atom, problem, params, progress).run(tol, deadline)
    if support is None or not (atom.left.diagonal and atom.right.diagonal):
        return _dense(atom, problem, params, tol, deadline, progress)
    return _entries(atom, problem, params, tol, deadline, progress)


class _Singular:
    """The nuclear norm of a dense matrix."""

    prox = staticmethod(shrink_singular_values)
    polar = staticmethod(spectral_norm)
    pairs = staticmethod(balanced_factors)


class _Columns:
    """The gauge sum_j ||Z_:j|| of a matrix, or of its rows; Z dense, or its entries at some places."""

    def __init__(self, atom: MatrixAtom, rows: Tensor, cols: Tensor) -> None:
        self.by_column = atom.norms[1] == "l1"
        self.norm = atom.norms[0 if self.by_column else 1]
        self.inner, self.outer = (rows, cols) if self.by_column else (cols, rows)
        self.sizes = atom.shape if self.by_column else atom.shape[::-1]
        self.groups = Groups(self.outer, self.sizes[1])

    def metric(self, factor: Tensor) -> Tensor:
        """Return weights of Z' for predictions that are its entries times a factor."""
        return self.groups.metric(factor.reshape(-1).square(), self.norm).view(factor.shape)

    def prox(self, Z: Tensor, t: Tensor) -> tuple[Tensor, float]:
        X, size = self.groups.prox(Z.reshape(-1), t.reshape(-1), self.norm)
        return X.view(Z.shape), size

    def polar(self, Z: Tensor) -> float:
        return float(self.groups.norms(Z.reshape(-1), DUAL[self.norm]).max())

    def pairs(self, Z: Tensor) -> Params:
        """Return a pair for each column that is not zero, both factors equally long."""
        x = Z.reshape(-1)
        lengths = self.groups.norms(x, self.norm)
        used = lengths.nonzero()[:, 0]
        order = torch.arange(len(used), device=x.device)
        place = torch.full_like(lengths, -1, dtype=torch.int64).index_put((used,), order)
        kept = place[self.outer] >= 0
        root = lengths[used].sqrt()
        factor, one_hot = (x.new_zeros(len(used), size) for size in self.sizes)
        factor[place[self.outer[kept]], self.inner[kept]] = x[kept]
        factor = factor / root[:, None]
        one_hot[order, used] = root
        return (factor, one_hot) if self.by_column else (one_hot, factor)


def _dense(
    atom: MatrixAtom,
    problem: Problem,
    params: Params,
    tol: float,
    deadline: float,
    progress: Callable[[Params], None],
) -> Params:
    """Hold Z' = D_u Z D_v^T as a dense matrix."""
    left, right, support = atom.left, atom.right, problem.loss.support

    def predict(Z: Tensor) -> Tensor:
        whole = left.solve(right.solve(Z).T).T
        return whole if support is None else whole[support.rows, support.cols]

    def adjoint(G: Tensor) -> Tensor:
        if support is not None:
            G = torch.zeros(atom.shape, dtype=torch.float64, device=G.device).index_put(
                (support.rows, support.cols), G
            )
        return right.pull(left.pull(G).T).T

    gauge: _Columns | _Singular = _Singular()
    stretch = torch.tensor((left.inverse_norm * right.inverse_norm) ** 2, dtype=torch.float64)
    if not atom.spectral:
        places = torch.arange(atom.shape[0] * atom.shape[1], device=params[0].device)
        gauge = _Columns(atom, places // atom.shape[1], places % atom.shape[1])
        if left.diagonal and right.diagonal:
            ones = torch.ones(atom.shape, dtype=torch.float64, device=params[0].device)
            stretch = gauge.metric(right.pull(left.pull(ones).T).T)

    def to_params(Z: Tensor) -> Params:
        U, V = gauge.pairs(Z)
        return left.solve(U), right.solve(V)

    composite = Composite(problem.loss, problem.lam, predict, adjoint, stretch, gauge.prox, gauge.polar)
    start = left.apply(params[0]).T @ right.apply(params[1])
    best = minimize(composite, start, tol=tol, deadline=deadline, progress=lambda Z: progress(to_params(Z)))
    return to_params(best)


def _entries(
    atom: MatrixAtom,
    problem: Problem,
    params: Params,
    tol: float,
    deadline: float,
    progress: Callable[[Params], None],
) -> Params:
    """Hold the entries of Z' on the support only: an entry off it costs, and predicts nothing."""
    support = problem.loss.support
    assert support is not None
    factor = torch.ones(support.size, dtype=torch.float64, device=support.rows.device)
    for weight, index in ((atom.left, support.rows), (atom.right, support.cols)):
        if weight.inverse is not None:
            factor = factor * weight.inverse[index]
    columns = _Columns(atom, support.rows, support.cols)

    def to_params(x: Tensor) -> Params:
        U, V = columns.pairs(x)
        return atom.left.solve(U), atom.right.solve(V)

    composite = Composite(
        problem.loss,
        problem.lam,
        predict=lambda x: factor * x,
        adjoint=lambda g: factor * g,
        stretch=columns.metric(factor),
        prox=columns.prox,
        polar=columns.polar,
    )
    start = problem.predictions(params) / factor
    best = minimize(composite, start, tol=tol, deadline=deadline, progress=lambda x: progress(to_params(x)))
    return to_params(best)

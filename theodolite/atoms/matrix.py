r"""Matrix factorization: phi(u, v) = u v^T, with a product of norms as regularizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.inputs import moderate
from theodolite.atoms.matrix_descent import descend
from theodolite.atoms.matrix_norms import DUAL, ORDERS, Groups, Weight, norms
from theodolite.atoms.matrix_polar import (
    free_bound,
    heavy_column,
    matrix_products,
    spectral_bound,
)
from theodolite.atoms.pairs import Pairs
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count, select
from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.losses.base import Support
from theodolite.polar.scaling import scaled_back
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

_WITNESSES = 10


class MatrixAtom(Pairs, Atom):
    r"""Rank-one matrices :math:`uv^\top` with :math:`\theta = \|D_uu\|_a\|D_vv\|_b`, degree 2.

    Its gauge is the nuclear norm for (l2, l2), and :math:`\sum_j\|Z_{:j}\|_a` for b = l1.  The polars
    are exact: the largest singular value of Q for (l2, l2), the largest dual norm of a column for
    b = l1, of a row for a = l1; weights replace Q by :math:`D_u^{-\top}QD_v^{-1}`.

    Parameters
    ----------
    shape : tuple of int
        Shape (n, m) of the predictions.
    norms : tuple of str
        Norms of u and v: "l1", "l2" or "linf"; both "l2", or at least one "l1".
    weights : tuple of (Tensor or None)
        Weights D_u, D_v: a diagonal of shape (n,), or a matrix of shape (n, n), invertible.  A matrix
        makes sparse residuals dense.

    Raises
    ------
    ValueError
        If the shape, a norm or a weight is not one of these, or the polar is NP-hard.

    Notes
    -----
    Params are (U, V) of shapes (r, n) and (r, m).

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540; Steinberg, Computation of matrix norms with applications to
    robust optimization, Technion 2005 (NP-hardness of the other pairs).

    Examples
    --------
    >>> import torch
    >>> polar = MatrixAtom((2, 2)).polar(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> round(polar.high, 6)
    3.0
    """

    degree, convex = 2, True

    def __init__(
        self,
        shape: tuple[int, int],
        norms: tuple[str, str] = ("l2", "l2"),
        weights: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        if len(shape) != 2 or any(not isinstance(s, int) or s < 1 for s in shape):
            raise ValueError(f"shape: expected two integers >= 1, got {tuple(shape)}")
        if len(norms) != 2 or any(norm not in ORDERS for norm in norms):
            raise ValueError(f"norms: expected two of {', '.join(ORDERS)}, got {norms!r}")
        if tuple(norms) != ("l2", "l2") and "l1" not in norms:
            raise ValueError(
                f"norms: expected (l2, l2) or a pair with l1, got {norms!r}; the polar of this pair, a maximum "
                "over sign vectors, is NP-hard"
            )
        self.shape = (shape[0], shape[1])
        self.norms = (norms[0], norms[1])
        self.left = Weight(weights[0], shape[0], "weights[0]")
        self.right = Weight(weights[1], shape[1], "weights[1]")
        # a product and a sum over at most min(n, m) useful subnetworks
        self.depth = min(shape) + 2
        self._anchor = torch.zeros(0, dtype=torch.float64)

    @property
    def spectral(self) -> bool:
        """Whether the norms are (l2, l2), so that singular values decide."""
        return self.norms == ("l2", "l2")

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random pairs with theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        draws = (torch.randn(r, size, dtype=torch.float64, generator=generator) for size in self.shape)
        return self.normalized(tuple(x.to(self._anchor.device) for x in draws))

    def normalized(self, params: Params) -> Params:
        """Return the pairs scaled to ||D_u u|| = ||D_v v|| = 1."""
        U, V = params
        return (
            U / norms(self.left.apply(U), self.norms[0])[:, None],
            V / norms(self.right.apply(V), self.norms[1])[:, None],
        )

    def theta(self, params: Params) -> Tensor:
        """Return ||D_u u|| ||D_v v||."""
        first, second = self._lengths(params)
        return first * second

    def penalty(self, params: Params) -> Tensor:
        """Return (||D_u u||^2 + ||D_v v||^2) / 2, equal to theta where both are equally long."""
        first, second = self._lengths(params)
        return 0.5 * (first.square() + second.square())

    def _lengths(self, params: Params) -> tuple[Tensor, Tensor]:
        return norms(self.left.apply(params[0]), self.norms[0]), norms(
            self.right.apply(params[1]), self.norms[1]
        )

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return |u_i| ||v||_2 at most, or |u_i| |v_j| on a support."""
        rows = self.left.entry_bounds(self.norms[0])
        if support is None:
            return rows * self.right.length_bound(self.norms[1])
        cols = self.right.entry_bounds(self.norms[1])
        return rows[support.rows] * cols[support.cols]

    def merge(self, params: Params) -> Params:
        """Return fewer pairs with the same sum and no larger theta.

        For (l2, l2) the singular value decomposition of the sum; for b = l1 its columns, for a = l1 its
        rows, where fewer of them are nonzero than there are pairs.
        """
        if not count(params):
            return params
        U, V = self.left.apply(params[0]), self.right.apply(params[1])
        if self.spectral:
            (P, A), (Q, B) = torch.linalg.qr(U.T), torch.linalg.qr(V.T)
            left, s, right = torch.linalg.svd(A @ B.T)
            kept = s > 1e-14 * s.sum()
            root = s[kept].sqrt()[:, None]
            merged = (P @ left)[:, : len(s)].T[kept] * root, (right @ Q.T)[: len(s)][kept] * root
        else:
            one_hot, other = (V, U) if self.norms[1] == "l1" else (U, V)
            used = (one_hot != 0.0).any(0).nonzero()[:, 0]
            if len(used) >= count(params):
                return params
            spread = one_hot[:, used].T @ other
            basis = torch.zeros(len(used), one_hot.shape[1], dtype=one_hot.dtype, device=one_hot.device)
            basis[torch.arange(len(used)), used] = 1.0
            merged = (spread, basis) if self.norms[1] == "l1" else (basis, spread)
        return self.left.solve(merged[0]), self.right.solve(merged[1])

    def polar(
        self,
        Q: Tensor,
        *,
        target: float | None = None,
        budget: float | None = None,
        starts: Params | None = None,
        seed: int = 0,
        delta: float = 1e-9,
    ) -> Value:
        """Return both ends of the polar (see :meth:`Atom.polar`).

        Upper end: that of :func:`theodolite.linalg.spectral.sigma_max`, or a dual norm computed with
        relative error gamma; enlarged by the rounding of :math:`Q'` and by 1/(1 - defect) for
        weights that are matrices.  Lower end: the witness, re-evaluated with its rounding taken off.
        """
        stop = math.inf if budget is None else time.monotonic() + budget
        Q, exponent = moderate(Q, self.shape)
        if exponent is None:
            return Value.bound(0.0, 0.0, witness=self.init(1, seed), note="Q is zero")
        target = None if target is None else ldexp_rounded(target, -exponent, -1)
        T, error = self._transformed(Q)
        upper, confidence, candidates, note = math.inf, 1.0, None, "largest dual norm of a column or row"
        if self.spectral:
            upper, note = free_bound(T), "norms of Q"
            if time.monotonic() < stop and (target is None or upper + error > target):
                right = None if starts is None else self.right.apply(starts[1])
                enough = math.inf if target is None else target - error
                candidates, proved = spectral_bound(T, right, _WITNESSES, stop, seed, delta, enough)
                if proved is not None:
                    upper, confidence, note = proved.high, proved.confidence, proved.note
            else:
                candidates = heavy_column(T)
        else:
            upper, candidates = self._dual_norms(T)
        scale = 1.0 / ((1.0 - self.left.defect) * (1.0 - self.right.defect))
        upper = (upper + error) * (scale * UP if scale > 1.0 or error > 0.0 else 1.0)
        witness, lower = self._attained(Q, candidates, target)
        found = Value.bound(min(lower, upper), upper, confidence=confidence, witness=witness, note=note)
        return scaled_back(found, exponent)

    def _transformed(self, Q: Tensor) -> tuple[Tensor, float]:
        """Return M_u^T Q M_v as computed, and a bound of its rounding error in the polar."""
        if self.left.D is None and self.right.D is None:
            return Q, 0.0
        if self.left.diagonal and self.right.diagonal:
            if Q.is_sparse:
                (i, j), x = Q.indices(), Q.values()
                for weight, index in ((self.left, i), (self.right, j)):
                    x = x if weight.inverse is None else x * weight.inverse[index]
                T = torch.sparse_coo_tensor(
                    Q.indices(), x, Q.shape, check_invariants=False, is_coalesced=True
                )
            else:
                T = self.right.pull(self.left.pull(Q).T).T
            return T, PAD * gamma(8) * self._size(T)
        dense = Q.to_dense() if Q.is_sparse else Q
        T = self.right.pull(self.left.pull(dense).T).T
        sizes = dense.abs()
        for weight in (self.left, self.right):
            if weight.inverse is not None:
                M = weight.inverse.abs()
                sizes = M[:, None] * sizes if M.ndim == 1 else M.T @ sizes
            sizes = sizes.T
        return T, PAD * gamma(sum(self.shape) + 8) * self._size(sizes)

    def _size(self, T: Tensor) -> float:
        """Return a cheap upper bound of the polar of any matrix whose entries are at most those of |T|."""
        return free_bound(T) if self.spectral else self._dual_norms(T)[0]

    def _dual_norms(self, T: Tensor) -> tuple[float, Params]:
        """Return the largest dual norm of a column (b = l1) or row, and the pairs that attain the largest."""
        columns = self.norms[1] == "l1"
        norm, n, m = self.norms[0 if columns else 1], *(T.shape if columns else T.shape[::-1])
        if T.is_sparse:
            inner, outer = T.indices() if columns else T.indices().flip(0)
            x = T.values()
        else:
            x = (T if columns else T.T).reshape(-1)
            inner = torch.arange(n, device=x.device).repeat_interleave(m)
            outer = torch.arange(m, device=x.device).repeat(n)
        sizes = Groups(outer, m).norms(x, DUAL[norm])
        best = sizes.topk(min(_WITNESSES, m)).indices
        best = best[sizes[best] > 0.0]
        factor = torch.zeros(len(best), n, dtype=torch.float64, device=x.device)
        one_hot = torch.zeros(len(best), m, dtype=torch.float64, device=x.device)
        one_hot[torch.arange(len(best)), best] = 1.0
        for i, j in enumerate(best.tolist()):
            here = outer == j
            factor[i, inner[here]] = x[here]
        if norm == "l1":
            factor = factor * torch.nn.functional.one_hot(factor.abs().argmax(1), n)
        factor = factor.sign() if norm == "linf" else factor / norms(factor, norm)[:, None]
        return float(sizes.max()) * (1.0 + gamma(n + 8)), (factor, one_hot) if columns else (one_hot, factor)

    def _attained(self, Q: Tensor, primed: Params, target: float | None) -> tuple[Params, float]:
        """Return the pairs worth adding, best first, and a proved lower bound of <Q, u v^T> at the first."""
        params = self.normalized((self.left.solve(primed[0]), self.right.solve(primed[1])))
        U, V = params
        value = (U.T * matrix_products(Q)[0](V.T)).sum(0)
        params = (torch.where(value < 0.0, -1.0, 1.0)[:, None] * U, V)
        # what rounding is relative to: sum |u_i| |Q_ij| |v_j| <= |Q|_F |u| |v|
        size = (Q.values() if Q.is_sparse else Q).norm()
        spread = PAD * size * U.norm(dim=1) * V.norm(dim=1)
        length = torch.ones_like(value)
        for weight, rows, norm in zip((self.left, self.right), params, self.norms, strict=True):
            k = gamma(weight.size + 8)
            length = (
                length * (norms(weight.apply(rows), norm) + k * norms(weight.magnitude(rows), norm)) * (1 + k)
            )
        lower = (value.abs() - gamma(sum(self.shape) + 8) * spread).clamp(min=0.0) / (length * UP)
        order = torch.argsort(lower, descending=True)
        kept = order[lower[order] > (0.0 if target is None else target)]
        return select(params, kept if len(kept) else order[:1]), float(lower[order[0]])

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Return pairs with a lower objective, by accelerated proximal steps on their sum."""
        found = descend(self, problem, params, tol=tol, deadline=deadline, progress=progress)
        return found if problem.objective(found) <= problem.objective(params) else params

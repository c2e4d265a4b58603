r"""Structured matrix factorization: phi(u, v) = u v^T with norms that favor sparse, piecewise constant, nonnegative factors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.inputs import moderate
from theodolite.atoms.structured_descent import descend
from theodolite.atoms.structured_polar import ascend, best_pairs, dropped_terms, positive_part, starts
from theodolite.atoms.structured_relaxation import Relaxation
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count, select
from theodolite.linalg.pattern import Pattern
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.linalg.spectral import sigma_max
from theodolite.losses.base import Support
from theodolite.polar.factor_norm import FactorNorm
from theodolite.polar.scaling import scaled_back
from theodolite.polar.splitting import best_split, lifted_split
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

__all__ = ["FactorNorm", "StructuredAtom"]

_WITNESSES = 10
_DENSE = 2e7  # entries of Q up to which a splitting is sought
_LIFTED = 320  # rows of Q Q^T up to which it is split
_WORK = 4e8  # entries of Q times steps of a search for a splitting


class StructuredAtom(Atom):
    r"""Rank-one matrices :math:`uv^\top` with :math:`\theta=\|u\|_u\|v\|_v` and norms of several terms, degree 2.

    Each norm is :math:`l_2\|u\|_2+l_1\|u\|_1+\mathit{tv}\|Du\|_1` (:class:`FactorNorm`), over all factors or
    the nonnegative ones.  The polar is NP-hard in general: its lower end comes from alternating ascent, its
    upper end from splittings (:mod:`theodolite.polar.splitting`).  For Euclidean norms without signs it is
    the largest singular value.

    Parameters
    ----------
    shape : tuple of int
        Shape (n, m) of the predictions.
    left, right : FactorNorm
        Norms of u (n values) and v (m values).

    Raises
    ------
    ValueError
        If the shape or a grid does not fit.
    TypeError
        If a norm is not a FactorNorm.

    Notes
    -----
    Params are (U, V) of shapes (r, n) and (r, m).  Of a nonnegative factor, the positive part of its
    parameters counts.  A sparse dual matrix is made dense for a splitting, whose parts are dense; beyond
    2e7 entries only bounds without one are used.

    References
    ----------
    Haeffele and Vidal, arXiv 1708.07850.

    Examples
    --------
    >>> import torch
    >>> atom = StructuredAtom((2, 2), left=FactorNorm(nonnegative=True), right=FactorNorm(nonnegative=True))
    >>> polar = atom.polar(torch.tensor([[3.0, 0.0], [0.0, -5.0]]))
    >>> round(polar.low, 3), round(polar.high, 3)
    (3.0, 3.0)
    """

    degree = 2

    def __init__(
        self, shape: tuple[int, int], left: FactorNorm | None = None, right: FactorNorm | None = None
    ) -> None:
        if len(shape) != 2 or any(not isinstance(s, int) or s < 1 for s in shape):
            raise ValueError(f"shape: expected two integers >= 1, got {tuple(shape)}")
        self.shape = (shape[0], shape[1])
        norms = {"left": left, "right": right}
        for (name, norm), size in zip(norms.items(), shape, strict=True):
            if norm is None:
                continue
            if not isinstance(norm, FactorNorm):
                raise TypeError(f"{name}: expected a FactorNorm, got {type(norm).__name__}")
            norm.check_size(size, name)
        self.left, self.right = left or FactorNorm(), right or FactorNorm()
        # phi sums over subnetworks; a norm sums up to 4 numbers for each value on a volume's grid
        self.depth = 4 * sum(self.shape) + 32
        self._anchor = torch.zeros(0, dtype=torch.float64)
        self._pattern: tuple[Support, Pattern] | None = None
        self._relaxation: Relaxation | None = None

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random pairs with theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(r, size, dtype=torch.float64, generator=generator) for size in self.shape]
        for draw, norm in zip(draws, (self.left, self.right), strict=True):
            if norm.nonnegative:
                draw.abs_()
        return self.normalized((draws[0].to(self._anchor.device), draws[1].to(self._anchor.device)))

    def effective(self, params: Params) -> Params:
        """Return the factors: of nonnegative ones the positive part of their parameters."""
        return self.left.effective(params[0]), self.right.effective(params[1])

    def normalized(self, params: Params) -> Params:
        """Return effective pairs scaled to norms 1."""
        U, V = params
        return U / self.left(U)[:, None], V / self.right(V)[:, None]

    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return U^T V, shape (n, m); there are no inputs."""
        if X is not None:
            raise ValueError("X: expected None, a matrix factorization has no inputs")
        U, V = self.effective(params)
        return U.T @ V

    def theta(self, params: Params) -> Tensor:
        """Return the product of the norms."""
        U, V = self.effective(params)
        return self.left(U) * self.right(V)

    def penalty(self, params: Params) -> Tensor:
        """Return half the sum of the squared norms, equal to theta where both are the same."""
        U, V = self.effective(params)
        return 0.5 * (self.left(U).square() + self.right(V).square())

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions; on a support without forming the others."""
        if support is None:
            return self.phi(params)
        U, V = self.effective(params)
        return self.pattern(support).outer(U.T, V.T)

    def pattern(self, support: Support) -> Pattern:
        """Return the support's products, sorted once."""
        if self._pattern is None or self._pattern[0] is not support:
            self._pattern = support, Pattern(support.rows, support.cols, self.shape, support.sorted)
        return self._pattern[1]

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions of each pair, flattened, shape (r, size)."""
        U, V = self.effective(params)
        if support is None:
            return (U[:, :, None] * V[:, None, :]).flatten(1)
        return U[:, support.rows] * V[:, support.cols]

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return |u_i| ||v||_2 at most: each norm is at least (l2 + l1) times the Euclidean one."""
        bound = math.nextafter(1.0 / (self.left.euclidean() * self.right.euclidean()), math.inf) * (
            1 + 2**-50
        )
        size = self.shape[0] if support is None else support.size
        return torch.full((size,), bound, dtype=torch.float64, device=self._anchor.device)

    def merge(self, params: Params) -> Params:
        """Return fewer pairs with the same sum and no larger theta: those that share a factor are added."""
        U, V = self.effective(params)
        for turned in (False, True):
            one, other = (V, U) if turned else (U, V)
            if len(one) < 2:
                break
            length = torch.linalg.vector_norm(one, dim=1)
            kept = length > 0.0
            one, other, length = one[kept], other[kept], length[kept]
            unit = one / length[:, None]
            same = (unit @ unit.T - 1.0).abs() < 1e-14
            first = same.to(torch.int64).argmax(1)
            groups, index = torch.unique(first, return_inverse=True)
            joined = torch.zeros(len(groups), other.shape[1], dtype=other.dtype, device=other.device)
            joined.index_add_(0, index, other * (length / length[groups][index])[:, None])
            U, V = (joined, one[groups]) if turned else (one[groups], joined)
        return U, V

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

        Lower end: the best pair of the ascent, re-evaluated with its rounding taken off.  Upper end: the
        least of the bounds that drop terms, of the best splitting found and, where one norm is a multiple of
        the Euclidean norm, of the lifted one; each is evaluated with its rounding added.
        """
        Q, exponent = moderate(Q, self.shape)
        if exponent is None:
            return Value.bound(0.0, 0.0, witness=self.init(1, seed), note="Q is zero")
        target = None if target is None else ldexp_rounded(target, -exponent, -1)
        witness, low = self._search(Q, budget, starts, seed)
        upper, confidence, note = self._upper(Q, float(low[0]), target, budget, seed, delta)
        kept = (low > (0.0 if target is None else target)).nonzero()[:_WITNESSES, 0]
        witness = select(witness, kept if len(kept) else slice(0, 1))
        lower = min(max(float(low[0]), 0.0), upper)
        found = Value.bound(lower, upper, confidence=confidence, witness=witness, note=note)
        return scaled_back(found, exponent)

    def _search(
        self, Q: Tensor, budget: float | None, given: Params | None, seed: int
    ) -> tuple[Params, Tensor]:
        """Return pairs of norms 1, best first, with the proved lower bounds that they attain."""
        left, right = self.left, self.right
        deadline = math.inf if budget is None else time.monotonic() + 0.3 * budget
        found: list[Params] = []
        if given is not None:
            U, V = self.effective(given)
            usable = U.any(1) & V.any(1)
            if bool(usable.any()):
                found.append(self.normalized((U[usable], V[usable])))
        V = starts(Q, left, right, given, seed) if budget != 0.0 else self.init(2, seed)[1]
        last: Params | None = None
        for pair in ascend(Q, left, right, V, deadline):
            last = pair
        if last is not None:
            found.append(last)
        return best_pairs(found, Q, left, right)

    def _upper(
        self, Q: Tensor, lower: float, target: float | None, budget: float | None, seed: int, delta: float
    ) -> tuple[float, float, str]:
        """Return a proved upper end, its confidence, and which bound it is."""
        left, right = self.left, self.right
        deadline = math.inf if budget is None else time.monotonic() + 0.6 * budget
        enough = lower * (1.0 + 1e-6) if target is None else max(target, lower * (1.0 + 1e-6))
        upper, confidence, note = dropped_terms(Q, left, right), 1.0, "terms dropped"
        if upper <= enough or budget == 0.0:
            return upper, confidence, note
        if Q.numel() > _DENSE:
            signs = left.nonnegative and right.nonnegative
            for part in [Q] + [positive_part(Q)] * signs:
                spectral = sigma_max(part, delta=0.5 * delta, seed=seed)
                bound = dropped_terms(Q, left, right, spectral.high)
                if bound < upper:
                    upper, note = bound, "terms dropped but the Euclidean ones"
                    confidence = min(confidence, 1.0 - delta if spectral.confidence < 1.0 else 1.0)
            return upper, confidence, note
        dense = (Q.to_dense() if Q.is_sparse else Q).cpu()
        hopeless = target is not None and lower > target
        effort = 40 if hopeless else min(400, max(20, int(_WORK / Q.numel())))
        split = best_split(
            dense, left, right, lower=lower, target=target, deadline=deadline, max_iterations=effort
        )
        if split.upper < upper:
            upper, note = split.upper, f"splitting, {split.iterations} iterations"
        for matrix, one, other in ((dense, left, right), (dense.T, right, left)):
            if upper <= enough or hopeless or time.monotonic() > deadline:
                break
            if other.plain and len(matrix) <= _LIFTED and (one.nonnegative or not one.plain):
                steps = min(1000, int(0.1 * _WORK / len(matrix) ** 2))
                lifted = lifted_split(
                    matrix, one, other, lower=lower, target=target, deadline=deadline, max_iterations=steps
                )
                if lifted.upper < upper:
                    upper, note = lifted.upper, f"splitting of a Gram matrix, {lifted.iterations} iterations"
        return upper, confidence, note

    def dual_bound(
        self, problem: Problem, params: Params, *, tol: float, budget: float | None, seed: int, delta: float
    ) -> Value | None:
        """Return the bound of the convex relaxation, kept for the last problem and gone on with at each call.

        Where both norms are Euclidean without signs the residual's is as good; beyond 2e7 entries there is none.
        """
        plain = all(norm.plain and not norm.nonnegative for norm in (self.left, self.right))
        if plain or math.prod(self.shape) > _DENSE:
            return None
        if self._relaxation is None or not self._relaxation.belongs_to(problem):
            self._relaxation = Relaxation(problem)
        lower = self._relaxation.improve(tol=0.1 * min(tol, 1e-3), budget=budget)
        return None if lower == -math.inf else Value.bound(lower=lower, note="convex relaxation")

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Return pairs with a lower objective, by proximal steps on each factor in turn."""
        if not count(params):
            return params
        found = descend(self, problem, params, tol=tol, deadline=deadline, progress=progress)
        return found if problem.objective(found) <= problem.objective(params) else params

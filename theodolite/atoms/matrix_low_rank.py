r"""The nuclear norm of a large matrix: accelerated proximal steps on factors.

FISTA with the iterate held as :math:`UV^\top`; the singular values of (low rank + gradient) are
thresholded in a subspace that follows the iterates, and its width follows their rank.  On a loss
with a support no array has more entries than the factors, the basis and the support, and their
products are computed in float32 as long as that is enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.matrix_polish import Factored, polish
from theodolite.atoms.proximal import EVERY, estimated_gap, initial_curvature, inside
from theodolite.core.params import Params
from theodolite.linalg.scaled_matrix import GRAM_SIDE
from theodolite.linalg.subspace import (
    Product,
    largest_singular_value,
    leading_triplets,
    nearly_orthonormal,
)
from theodolite.losses.masked import MaskedLoss
from theodolite.losses.squared import SquaredLoss

if TYPE_CHECKING:
    from theodolite.atoms.matrix import MatrixAtom
    from theodolite.core.problem import Problem

# Directions beyond the rank: near the optimum the singular values below the threshold cluster there, so that
# a narrow subspace turns slowly, while a wide product costs hardly more than a narrow one
_BUFFER = 20
_LANES = 16  # and up to a multiple of this, for which products are the fastest
# the first steps keep only so many pairs, and as many directions beyond: most will not last
_EARLY, _FIRST = 6, 16
_LOOSE = 1.05  # times the curvature allowed, before a step is taken again
_DECAY = 0.9  # of the curvature from step to step, down to what was met last
_SETTLED, _CLOSE = 5, 2e-4  # steps of one rank, and gap, from which on Newton's method is tried
# of the tolerance: what is estimated here must still hold when it is proved, with one more margin where the
# proof rests on singular vectors that are as inaccurate as the iterate
_GOAL, _GOAL_LARGE = 0.6, 0.3
_STAGE = 3  # steps with one threshold above lam
_COARSE = 20_000  # entries of a support from which float32 saves time
_NOTED = 2.0  # seconds after which an iterate is handed over unseen
_LOOKS = 3  # without progress before float32 gives way to float64, and that gives up


class LowRank:
    """The iteration on Z' = D_u Z D_v^T, held as U V^T.

    Parameters
    ----------
    atom : MatrixAtom
        With norms (l2, l2).
    problem : Problem
    params : Params
        Where to start.
    progress : function(Params)
        Called with the best pairs now and then.
    """

    def __init__(
        self, atom: MatrixAtom, problem: Problem, params: Params, progress: Callable[[Params], None]
    ) -> None:
        self.atom, self.problem, self.progress = atom, problem, progress
        self.loss, self.support = problem.loss, problem.loss.support
        self.generator = torch.Generator().manual_seed(0)
        self.device = params[0].device
        self.stretch = (atom.left.inverse_norm * atom.right.inverse_norm) ** 2
        sizes = float(self.loss.gradient(self.loss.zeros()).abs().max()), problem.lam
        self.single = all(1e-15 < size < 1e15 for size in sizes)  # no product or square leaves float32
        self.coarse = self.single and self.support is not None and self.support.size >= _COARSE
        self.goal = _GOAL if min(atom.shape) <= GRAM_SIDE else _GOAL_LARGE
        squared = isinstance(getattr(self.loss, "entries", self.loss), SquaredLoss)
        self.quadratic = self.loss.scale if squared else 0.0  # the curvature where it is constant
        self.intercept = self.loss.gradient(self.loss.zeros()) if squared else None
        self.objective, self.gap, self.stalled, self.wait = math.inf, math.inf, 0, EVERY
        self.steps, self.noted = 0, time.monotonic()
        Q, A = torch.linalg.qr(atom.left.apply(params[0]).T)
        V = atom.right.apply(params[1]).T @ A.T
        self.start = self.best = self.point(Q, V)

    def point(self, U: Tensor, V: Tensor) -> _Point:
        """Return an iterate with its predictions."""
        return _Point(U, V, self.predict(U, V))

    def slope(self, seen: Tensor) -> Tensor:
        """Return the gradient at predictions, in their dtype."""
        if self.intercept is None:
            return self.loss.gradient(seen.double()).to(seen.dtype)
        self.intercept = self.intercept.to(seen.dtype)
        return torch.add(self.intercept, seen, alpha=self.quadratic)

    def predict(self, U: Tensor, V: Tensor) -> Tensor:
        """Return the predictions of U V^T in the original variables, in float32 while that is enough."""
        if U.shape[1] == 0:
            return self.loss.zeros().to(torch.float32 if self.coarse else torch.float64)
        U, V = self.atom.left.solve(U.T).T, self.atom.right.solve(V.T).T
        if self.support is None:
            return U @ V.T
        if self.coarse:
            U, V = U.float(), V.float()
        return self.atom.pattern(self.support).outer(U, V)

    def products(self, G: Tensor) -> tuple[Product, Product]:
        """Return the products with a gradient and with its transpose."""
        if self.support is None:
            return lambda X: G @ X, lambda Y: G.T @ Y
        pattern = self.atom.pattern(self.support)
        if not self.coarse:
            return pattern.products(G.double())
        forward, adjoint = pattern.products(G.float())
        return lambda X: forward(X.float()).double(), lambda Y: adjoint(Y.float()).double()

    def operator(self, G: Tensor) -> tuple[Product, Product]:
        """Return the products with M_u^T G M_v and its transpose, for a gradient G."""
        left, right = self.atom.left, self.atom.right
        forward, adjoint = self.products(G)
        return (
            lambda X: left.pull(forward(right.solve(X.T).T)),
            lambda Y: right.pull(adjoint(left.solve(Y.T).T)),
        )

    def inside(self, seen: Tensor) -> bool:
        """Return whether predictions are in the domain of the loss."""
        return self.quadratic > 0.0 or inside(self.loss, seen.double())

    def random(self, width: int) -> Tensor:
        """Return a block of random directions."""
        draw = torch.randn(self.atom.shape[1], width, dtype=torch.float64, generator=self.generator)
        return draw.to(self.device)

    def step(self, point: tuple[Tensor, Tensor], slope: Tensor, L: float) -> tuple[Product, Product]:
        """Return the products with the gradient step from a point, before thresholding."""
        (left, right), (forward, adjoint) = point, self.operator(slope)
        return (
            lambda X: left @ (right.T @ X) - forward(X) / L,
            lambda Y: right @ (left.T @ Y) - adjoint(Y) / L,
        )

    def to_params(self, point: _Point) -> Params:
        """Return the pairs of an iterate, both factors equally long."""
        root = point.V.norm(dim=0).clamp(min=1e-300).sqrt()
        return self.atom.left.solve((point.U * root).T), self.atom.right.solve((point.V / root).T)

    def top(self, gradient: Tensor, start: Tensor) -> float:
        """Return an estimate, from below, of the largest singular value of the gradient."""
        return largest_singular_value(*self.operator(gradient), start)

    def threshold(
        self, forward: Product, adjoint: Product, basis: Tensor, t: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, V of the thresholded operator, and the basis to start from next time.

        One pass: where the subspace has not turned far enough the next step turns it further, and
        where it is too narrow (at a distant start) the next is wider.
        """
        Q = nearly_orthonormal(forward(basis))
        B = adjoint(Q)
        # the eigenvalues of B'B are accurate to rounding times the largest: enough to compare with t
        squares, W = (x.flip(-1) for x in torch.linalg.eigh(B.T @ B))
        s = squares.clamp(min=0.0).sqrt()
        rank = int((s > t).sum()) if self.steps >= _EARLY else min(_FIRST, int((s > t).sum()))
        wanted = rank + (_BUFFER if self.steps >= _EARLY else _FIRST)
        width = min(_LANES * math.ceil(wanted / _LANES), *self.atom.shape)
        P = (B @ W[:, :width]) / s[:width].clamp(min=1e-300)
        U, V = Q @ W[:, :rank], P[:, :rank] * (s[:rank] - t)
        if P.shape[1] < width:
            P = torch.cat([P, self.random(width - P.shape[1])], 1)
        return U, V, P

    def look(self, point: _Point, basis: Tensor, tol: float) -> bool:
        """Note an iterate, and return whether its estimated gap is small enough."""
        seen = point.seen.double()
        objective = self.loss.value(seen) + self.problem.lam * point.gauge
        gradient = self.loss.gradient(seen)
        polar = self.top(gradient, basis)
        gap = estimated_gap(self.loss, self.problem.lam, objective, gradient.neg_(), polar)
        enough = gap <= self.goal * tol
        closer = gap < 0.9 * self.gap or objective < self.objective - 1e-14 * abs(objective)
        if 0.0 < gap < self.gap < math.inf:  # look again when the gap should be small enough
            pace = math.log(self.gap / gap) / self.wait
            self.wait = min(
                EVERY, max(2, math.ceil(math.log(max(1.1, 1.1 * gap / (self.goal * tol))) / pace))
            )
        else:
            self.wait = EVERY
        self.stalled, self.gap = 0 if closer else self.stalled + 1, min(gap, self.gap)
        if objective < self.objective or enough:  # beside the gap, the rounding of objectives does not matter
            self.best, self.objective = point, objective
        self.note(self.best)
        return enough

    def note(self, point: _Point) -> None:
        """Hand over what an interrupt is to keep."""
        self.progress(self.to_params(point))
        self.noted = time.monotonic()

    def polished(self, point: _Point, basis: Tensor, tol: float, deadline: float) -> _Point:
        """Return the iterate after Newton steps on its factors, where there are any."""
        loss, lam, weights = self.loss, self.problem.lam, (self.atom.left.D, self.atom.right.D)
        if not (
            self.single and isinstance(loss, MaskedLoss) and weights == (None, None) and point.U.shape[1]
        ):
            return point
        factored = Factored(loss, self.atom.pattern(loss.support), lam)
        lengths = point.V.norm(dim=0).sqrt()
        start = point.U * lengths, point.V / lengths
        U, s, V = leading_triplets(*self.operator(self.slope(point.seen)), basis, passes=2)
        outside = slice(len(lengths), len(lengths) + 2 * _BUFFER)
        beyond = U[:, outside], s[outside], -V[:, outside]
        # the gap falls in proportion to the gradient
        A, B = polish(
            factored, start, beyond, self.goal * tol / self.gap, lambda: time.monotonic() < deadline
        )
        (P, R), (Q, S) = torch.linalg.qr(A), torch.linalg.qr(B)
        left, s, right = torch.linalg.svd(R @ S.T)
        return self.point(P @ left, Q @ (right.T * s))

    def run(self, tol: float, deadline: float) -> Params:
        """Iterate until the estimated gap is well within tol; the best of the iterates looked at.

        Parameters
        ----------
        tol : float
        deadline : float
            Value of ``time.monotonic()`` at which to stop.
        """
        loss, lam = self.loss, self.problem.lam
        Z = before = self.start
        basis = torch.cat([Z.V, self.random(_BUFFER)], 1)[:, : min(self.atom.shape)]
        # From a distant start the rank first grows far beyond that of the solution.  Steps of constant length
        # soon bring it down; others would not get away from there.
        level = lam if self.quadratic else max(lam, 0.5 * self.top(self.slope(Z.seen), basis))
        # Reciprocal of the step: where few entries are observed far below the bound that holds for every matrix
        L = initial_curvature(loss, Z.seen.double()) * self.stretch
        momentum, beta, stage, settled, unseen = 1.0, 0.0, 0, 0, 0
        while time.monotonic() < deadline:
            seen = torch.lerp(before.seen, Z.seen, 1.0 + beta)
            if beta > 0.0 and not self.inside(seen):  # extrapolated out of the domain
                momentum, beta = 1.0, 0.0
                continue
            slope = self.slope(seen)
            point = torch.cat([Z.U, before.U], 1), torch.cat([(1.0 + beta) * Z.V, -beta * before.V], 1)
            U, V, wider = self.threshold(*self.step(point, slope, L), basis, level / L)
            fresh = self.point(U, V)
            change = fresh.seen - seen
            bend = self.quadratic * _dot(change, change) or _dot(self.slope(fresh.seen) - slope, change)
            square, moved, uphill = _geometry(fresh, Z, before, beta)
            ratio = bend / square if square > 1e-12 * fresh.size else 0.0
            if ratio > _LOOSE * L or not self.inside(fresh.seen):
                if L > 1e200:  # at the edge of the loss's domain
                    break
                L = max(1.2 * ratio, 1.5 * L) if math.isfinite(ratio) else 2.0 * L
                continue
            L = max(1.1 * ratio, _DECAY * L)
            settled = settled + 1 if U.shape[1] == Z.U.shape[1] else 0
            before, Z, basis = Z, fresh, wider
            self.steps += 1
            if time.monotonic() > self.noted + _NOTED:
                self.note(Z)
            if level > lam:
                stage += 1
                if stage >= _STAGE or moved <= 1e-3 * fresh.size:
                    level, stage, uphill = max(lam, 0.4 * level), 0, True
            else:
                unseen += 1
            if unseen >= self.wait:
                unseen = 0
                if self.look(Z, basis, tol):
                    break
                # a few more of these steps do where little is missing
                if settled >= _SETTLED and 2.0 * self.goal * tol < self.gap < _CLOSE:
                    Z, settled, uphill = self.polished(Z, basis, tol, deadline), 0, True
                    if self.look(Z, basis, tol):
                        break
                if self.stalled >= _LOOKS:
                    if not self.coarse:
                        break
                    self.coarse, self.stalled = False, 0
                    Z, before = self.point(Z.U, Z.V), self.point(before.U, before.V)
            last, momentum = momentum, 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum**2))
            if uphill:
                last = momentum = 1.0
            beta = (last - 1.0) / momentum
        better = loss.value(Z.seen.double()) + lam * Z.gauge < self.objective
        return self.to_params(Z if better and self.gap > self.goal * tol else self.best)


def _geometry(fresh: _Point, Z: _Point, before: _Point, beta: float) -> tuple[float, float, bool]:
    """Return |fresh - Y|^2, |fresh - Z|^2 and whether <Y - fresh, fresh - Z> > 0: the momentum points uphill.

    Y is extrapolated from the iterate `before` to Z.
    """
    near, far, cross = fresh.dot(Z), fresh.dot(before), Z.dot(before)
    extrapolated = (1.0 + beta) ** 2 * Z.size - 2.0 * beta * (1.0 + beta) * cross + beta**2 * before.size
    square = extrapolated + fresh.size - 2.0 * ((1.0 + beta) * near - beta * far)
    turn = (2.0 + beta) * near - beta * far - fresh.size - (1.0 + beta) * Z.size + beta * cross
    return square, fresh.size - 2.0 * near + Z.size, turn > 0.0


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))


class _Point:
    """An iterate U V^T, U orthonormal and V with orthogonal columns, with its predictions."""

    def __init__(self, U: Tensor, V: Tensor, seen: Tensor) -> None:
        self.U, self.V, self.seen = U, V, seen

    @property
    def gauge(self) -> float:
        """Nuclear norm."""
        return float(self.V.norm(dim=0).sum())

    @cached_property
    def size(self) -> float:
        """Squared Frobenius norm."""
        return self.dot(self)

    def dot(self, other: _Point) -> float:
        """Return <self, other>."""
        return float(((self.U.T @ other.U) * (self.V.T @ other.V)).sum())

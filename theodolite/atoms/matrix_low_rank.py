r"""The nuclear norm of a large matrix: accelerated proximal steps on factors.

FISTA with the iterate held as :math:`UV^\top`; the singular values of (low rank + gradient) are
thresholded in a subspace that follows the iterates, and its width follows their rank.  On a loss
with a support no array has more entries than the factors, the basis and the support.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.proximal import EVERY, GOAL, estimated_gap, initial_curvature, inside
from theodolite.core.params import Params
from theodolite.linalg.subspace import Product, leading_triplets, orthonormal

if TYPE_CHECKING:
    from theodolite.atoms.matrix import MatrixAtom
    from theodolite.core.problem import Problem

_BUFFER = 6  # directions beyond the rank, at least: they must notice when it grows


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
        Q, A = torch.linalg.qr(atom.left.apply(params[0]).T)
        V = atom.right.apply(params[1]).T @ A.T
        self.start = _Point(Q, V, self.predict(Q, V))

    def predict(self, U: Tensor, V: Tensor) -> Tensor:
        """Return the predictions of U V^T in the original variables."""
        if U.shape[1] == 0:
            return self.loss.zeros()
        return self.atom.predict((self.atom.left.solve(U.T), self.atom.right.solve(V.T)), self.support)

    def products(self, G: Tensor) -> tuple[Product, Product]:
        """Return the products with a gradient and with its transpose."""
        if self.support is None:
            return lambda X: G @ X, lambda Y: G.T @ Y
        return self.atom.pattern(self.support).products(G)

    def operator(self, G: Tensor) -> tuple[Product, Product]:
        """Return the products with M_u^T G M_v and its transpose, for a gradient G."""
        left, right = self.atom.left, self.atom.right
        forward, adjoint = self.products(G)
        return (
            lambda X: left.pull(forward(right.solve(X.T).T)),
            lambda Y: right.pull(adjoint(left.solve(Y.T).T)),
        )

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
        passes = 2 if start.shape[1] > 20 else 4
        return float(leading_triplets(*self.operator(gradient), start, passes=passes)[1][0])

    def threshold(
        self, forward: Product, adjoint: Product, basis: Tensor, t: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, V of the thresholded operator, and the basis to start from next time."""
        while True:
            Q = orthonormal(forward(basis))
            P, s, W = torch.linalg.svd(adjoint(Q), full_matrices=False)
            rank, width = int((s > t).sum()), basis.shape[1]
            if rank < width or width >= min(self.atom.shape):
                break
            more = min(max(_BUFFER, width // 2), min(self.atom.shape) - width)
            basis = torch.cat([P, self.random(more)], 1)
        U, V = Q @ W[:rank].T, P[:, :rank] * (s[:rank] - t)
        width = rank + max(_BUFFER, rank // 5)
        if P.shape[1] < width <= min(self.atom.shape):
            P = torch.cat([P, self.random(width - P.shape[1])], 1)
        return U, V, P[:, :width]

    def run(self, tol: float, deadline: float) -> Params:
        """Iterate until the estimated gap is a third of tol; the best of the iterates looked at.

        Parameters
        ----------
        tol : float
        deadline : float
            Value of ``time.monotonic()`` at which to stop.
        """
        loss, lam = self.loss, self.problem.lam
        Z = before = self.start
        gradient = loss.gradient(Z.seen)
        basis = torch.cat([Z.V, self.random(2 * _BUFFER)], 1)[:, : min(self.atom.shape)]
        # from a distant start the rank would first grow far beyond that of the solution
        level = max(lam, 0.5 * self.top(gradient, basis))
        curvature = initial_curvature(loss, Z.seen)  # of the loss in the predictions
        best, best_objective = Z, math.inf
        momentum, beta, stage, stalled, iteration = 1.0, 0.0, 0, 0, 0
        while stalled < 5 and time.monotonic() < deadline:
            L = curvature * self.stretch
            seen = Z.seen + beta * (Z.seen - before.seen)
            if beta > 0.0 and not inside(loss, seen):  # extrapolated out of the domain
                momentum, beta = 1.0, 0.0
                continue
            slope = loss.gradient(seen)
            point = torch.cat([Z.U, before.U], 1), torch.cat([(1.0 + beta) * Z.V, -beta * before.V], 1)
            U, V, basis = self.threshold(*self.step(point, slope, L), basis, level / L)
            fresh = _Point(U, V, self.predict(U, V))
            gradient = loss.gradient(fresh.seen)
            change = fresh.seen - seen
            bend = float(((gradient - slope) * change).sum())
            fits = bend <= (1.0 + 1e-9) * curvature * float(change.square().sum()) and inside(
                loss, fresh.seen
            )
            if not fits and curvature < 1e200:
                curvature *= 2.0
                continue
            # <Y - fresh, fresh - Z> > 0: the momentum points uphill
            near, far, square = fresh.dot(Z), fresh.dot(before), fresh.dot(fresh)
            old, cross = Z.dot(Z), Z.dot(before)
            uphill = (2.0 + beta) * near - beta * far - square - (1.0 + beta) * old + beta * cross > 0.0
            moved = math.sqrt(max(square - 2.0 * near + old, 0.0))
            before, Z = Z, fresh
            if level > lam:
                stage += 1
                if stage >= 10 or moved <= 0.03 * math.sqrt(square):
                    level, stage, uphill = max(lam, 0.6 * level), 0, True
            else:
                if iteration % EVERY == 0:
                    objective = loss.value(Z.seen) + lam * Z.gauge
                    stalled = 0 if objective < best_objective - 1e-14 * abs(objective) else stalled + 1
                    if objective < best_objective:
                        best, best_objective = Z, objective
                    self.progress(self.to_params(best))
                    curvature = min(curvature, loss.smoothness(Z.seen))  # backtracking may have gone too far
                    polar = self.top(gradient, basis)
                    if estimated_gap(loss, lam, objective, gradient, polar) <= GOAL * tol:
                        return self.to_params(Z)
                iteration += 1
            last, momentum = momentum, 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum**2))
            if uphill:
                last = momentum = 1.0
            beta = (last - 1.0) / momentum
        return self.to_params(Z if loss.value(Z.seen) + lam * Z.gauge < best_objective else best)


class _Point:
    """An iterate U V^T, U orthonormal and V with orthogonal columns, with its predictions."""

    def __init__(self, U: Tensor, V: Tensor, seen: Tensor) -> None:
        self.U, self.V, self.seen = U, V, seen

    @property
    def gauge(self) -> float:
        """Nuclear norm."""
        return float(self.V.norm(dim=0).sum())

    def dot(self, other: _Point) -> float:
        """Return <self, other>."""
        return float(((self.U.T @ other.U) * (self.V.T @ other.V)).sum())

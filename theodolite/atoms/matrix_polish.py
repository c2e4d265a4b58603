r"""Newton's method on the factors of a low-rank matrix whose rank has settled.

With :math:`\|A\|_F^2/2 + \|B\|_F^2/2` in place of the nuclear norm of :math:`AB^\top` the objective is smooth
in the factors; near the optimum, and at its rank, a few steps of Newton's method do what takes proximal
steps hundreds of iterations.  Where it finds no descent it returns what it has: nothing rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from theodolite.linalg.pattern import Pattern
from theodolite.losses.masked import MaskedLoss

Pair = tuple[Tensor, Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]

_STEPS = 8
_INNER = 60  # products with the Hessian in one step
_FORCING = 0.03  # of the gradient that a step may leave


class Factored:
    """The objective ``loss(predict(A, B)) + lam/2 (|A|^2 + |B|^2)`` in the factors.

    Gradients are computed in float64, directions in float32.

    Parameters
    ----------
    loss : MaskedLoss
    pattern : Pattern
        Of its support.
    lam : float
    """

    def __init__(self, loss: MaskedLoss, pattern: Pattern, lam: float) -> None:
        self.loss, self.pattern, self.lam = loss, pattern, lam

    def slope(self, point: Pair) -> tuple[Pair, Tensor, Tensor]:
        """Return the gradient in the factors, the predictions, and the gradient of the loss."""
        A, B = point
        Z = self.pattern.outer(A, B)
        G = self.loss.gradient(Z)
        forward, adjoint = self.pattern.products(G)
        return (forward(B) + self.lam * A, adjoint(A) + self.lam * B), Z, G

    def direction(
        self, point: Pair, slope: Pair, Z: Tensor, G: Tensor, enough: float, beyond: Triplets
    ) -> Pair:
        """Return an approximate Newton step: conjugate gradients until the curvature is not positive."""
        lam, pattern = self.lam, self.pattern
        A, B = (x.float() for x in point)
        hessian, diagonal = self.loss.curvature(Z)
        forward, adjoint = pattern.products(G.float())
        weigh, weigh_adjoint = pattern.products(diagonal.float())
        scale = weigh(B.square()) + lam, weigh_adjoint(A.square()) + lam

        def product(step: Pair) -> Pair:
            dA, dB = step
            bend = hessian(pattern.outer(torch.cat([dA, A], 1), torch.cat([B, dB], 1))).float()
            bent, bent_adjoint = pattern.products(bend)
            return bent(B) + forward(dB) + lam * dA, bent_adjoint(A) + adjoint(dA) + lam * dB

        # Two families of directions are badly scaled beside that diagonal: (A S, -B S), which the regularizer
        # alone holds, and (A S, B S) where singular values s are small.  For symmetric S their curvatures are
        # 2 lam (s_i + s_j) S_ij^2 and, with the mean curvature p of an entry, about 4 p s_i s_j S_ij^2.
        s = A.square().sum(0)
        p = float(diagonal.sum()) / math.prod(self.loss.shape)
        apart, together = 4.0 * lam * (s[:, None] + s), 8.0 * p * s[:, None] * s

        # A third family, a singular pair of -G outside beside a small singular value: p s_k + lam - sigma_i
        X, sigma, Y = (x.float() for x in beyond)
        weight = p * s + lam
        weak = 1.0 / (weight - sigma[:, None]).clamp(min=1e-3 * lam) - 1.0 / weight

        def precondition(residual: Pair) -> Pair:
            first, second = A.T @ residual[0], B.T @ residual[1]
            minus, plus = first - second, first + second
            S, T = (minus + minus.T) / apart, (plus + plus.T) / together
            K = 0.5 * weak * (X.T @ residual[0] + Y.T @ residual[1])
            return (
                residual[0] / scale[0] + A @ (T + S) + X @ K,
                residual[1] / scale[1] + B @ (T - S) + Y @ K,
            )

        residual = -slope[0].float(), -slope[1].float()
        step = torch.zeros_like(A), torch.zeros_like(B)
        z = precondition(residual)
        search, size = z, _dot(residual, z)
        enough = max(_FORCING**2 * size, enough**2 / float(max(x.amax() for x in scale)))
        for _ in range(_INNER):
            image = product(search)
            bend = _dot(search, image)
            if not bend > 0.0:
                break
            alpha = size / bend
            step = _plus(step, search, alpha)
            residual = _plus(residual, image, -alpha)
            z = precondition(residual)
            last, size = size, _dot(residual, z)
            if size <= enough:
                break
            search = _plus(z, search, size / last)
        return step[0].double(), step[1].double()


def polish(
    problem: Factored, point: Pair, beyond: Triplets, goal: float, running: Callable[[], bool]
) -> Pair:
    """Return factors with a smaller gradient.

    Parameters
    ----------
    problem : Factored
    point : tuple of Tensor, shapes (n, r) and (m, r)
    beyond : tuple of Tensor, shapes (n, q), (q,) and (m, q)
        Leading singular triplets of minus the loss's gradient outside the factors' spans, as searched.
    goal : float
        By what factor the gradient is to shrink.
    running : callable
        Whether there is time for another step.
    """
    slope, Z, G = problem.slope(point)
    length = math.sqrt(_dot(slope, slope))
    goal = goal * length
    for _ in range(_STEPS):
        if length <= goal or not running():
            break
        trial = _plus(point, problem.direction(point, slope, Z, G, 0.3 * goal, beyond), 1.0)
        fresh = problem.slope(trial)
        size = math.sqrt(_dot(fresh[0], fresh[0]))
        if not size < 0.7 * length:
            break
        point, (slope, Z, G), length = trial, fresh, size
    return point


def _dot(x: Pair, y: Pair) -> float:
    return float(sum(torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(x, y, strict=True)))


def _plus(x: Pair, y: Pair, factor: float) -> Pair:
    return torch.add(x[0], y[0], alpha=factor), torch.add(x[1], y[1], alpha=factor)

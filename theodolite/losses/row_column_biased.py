r"""A masked loss whose predictions get a bias for each row and each column, penalized by its squared norm.

A rating is a row's bias plus a column's bias plus what a low-rank matrix explains.  With a decay of
:math:`\tfrac\mu2(\|b\|^2+\|c\|^2)` the biases are minimized over, jointly, which leaves a convex loss,

.. math:: \ell_\mu(Z) = \min_{b,c}\ \ell(Z + b\mathbf 1^\top + \mathbf 1c^\top)
   + \tfrac\mu2(\|b\|^2+\|c\|^2), \qquad
   d_\mu(Q) = d(Q) - \tfrac1{2\mu}\left(\|Q\mathbf 1\|^2+\|Q^\top\mathbf 1\|^2\right),

Q being zero off the observed entries.  Proof of the dual: with :math:`w=(b,c)` and A the map from
biases to predictions, :math:`\ell(Z+Aw)\ge d(Q)-\langle Q,Z\rangle-\langle A^\top Q,w\rangle`, and
:math:`\tfrac\mu2\|w\|^2-\langle A^\top Q,w\rangle\ge-\|A^\top Q\|^2/(2\mu)`.

The minimization may be inexact, and nothing above depends on it: the value at *any* biases bounds
:math:`\ell_\mu` from above, and :math:`R=-\nabla\ell(Z+Aw)` is a dual point like any other.  Both ends
miss each other by exactly :math:`\|\mu w-A^\top R\|^2/(2\mu)`, which :meth:`magnitudes` contains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from theodolite.linalg.lanczos import UNIT_ROUNDOFF, gamma
from theodolite.linalg.pattern import Pattern
from theodolite.losses.base import Loss, accurate_sum, check_positive
from theodolite.losses.masked import MaskedLoss
from theodolite.losses.squared import SquaredLoss

_NEWTON_STEPS = 100
_CG_STEPS = 500
_FORCING = 0.01  # how far a Newton step is solved for, where the loss is not quadratic


class RowColumnBiasedLoss(Loss):
    """The least masked loss over biases of rows and columns, with a decay of those.

    Value and gradient minimize over the biases by Newton's method with conjugate gradients, started
    from the last biases: a few products of the observed pattern with a vector.

    Parameters
    ----------
    loss : MaskedLoss
        Of the predictions with their biases.
    decay : float
        mu > 0.
    accuracy : float
        The biases are good enough when they may miss the least value by this fraction of it.

    Raises
    ------
    TypeError
        If ``loss`` is not masked.
    ValueError
        If ``decay`` is not a finite positive number.
    """

    def __init__(self, loss: MaskedLoss, decay: float, accuracy: float = 1e-15) -> None:
        if not isinstance(loss, MaskedLoss):
            raise TypeError(f"loss: expected a MaskedLoss, got {type(loss).__name__}")
        self.loss, self.decay, self.accuracy = loss, check_positive(decay, "decay"), accuracy
        self.shape, self.scale, self.support = loss.shape, loss.scale, loss.support
        self._quadratic = isinstance(loss.entries, SquaredLoss)
        self._row_bias, self._col_bias = (loss.zeros().new_zeros(size) for size in self.shape)
        self._found: tuple[Tensor, int, _Point] | None = None
        self._pattern: Pattern | None = None
        self._system: _System | None = None

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return self.loss.zeros()

    def to(self, device: torch.device | str) -> RowColumnBiasedLoss:
        """Return the same loss with its targets on a device."""
        twin = RowColumnBiasedLoss(self.loss.to(device), self.decay, self.accuracy)
        twin._row_bias, twin._col_bias = self._row_bias.to(device), self._col_bias.to(device)
        return twin

    def rescaled(self, scale: float) -> RowColumnBiasedLoss:
        """Return the same loss with another factor in front, of its decay too."""
        twin = copy.copy(self)
        twin.loss, twin.decay = self.loss.rescaled(scale), self.decay * scale / self.scale
        twin.scale, twin._found, twin._system = twin.loss.scale, None, None
        return twin

    def biases(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best biases of the rows, shape (n,), and of the columns, shape (m,)."""
        point = self._best(Z)
        return point.b, point.c

    def at(self, Z: Tensor, b: Tensor, c: Tensor) -> float:
        """Return the loss with given biases and their decay."""
        assert self.support is not None
        return self.loss.value(Z + (b[self.support.rows] + c[self.support.cols])) + self._penalty(b, c)

    def value(self, Z: Tensor) -> float:
        """Return the loss with the best biases found: attained, so never below the least."""
        point = self._best(Z)
        return self.loss.value(point.seen) + self._penalty(point.b, point.c)

    def gradient(self, Z: Tensor) -> Tensor:
        """Return the loss' gradient at the best biases (the envelope theorem)."""
        return self._best(Z).G

    def dual(self, Q: Tensor) -> float:
        """Return d(Q) - ||A^T Q||^2 / (2 mu), the sums' rounding enclosed."""
        return self.loss.dual(Q) - 0.5 * self._bend(Q)

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return the range of the loss without biases."""
        return self.loss.t_range(R)

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize along the ray as the loss without biases does, with one more quadratic term."""
        R = self._check(R, "R")
        return self.loss.best_t(R, upper=upper, linear=linear, quadratic=quadratic + self._bend(R))

    def smallest_t(self, R: Tensor, wanted: float) -> float | None:
        """Search as every loss does, but with the sums over rows and columns taken once."""
        high, best = self.best_t(R)
        if not best >= wanted or high == 0.0:
            return None
        low, bend = 0.0, self._bend(R)
        for _ in range(20):
            middle = 0.5 * (low + high)
            reached = self.loss.dual(middle * R) - 0.5 * bend * middle * middle
            low, high = (low, middle) if reached >= wanted else (middle, high)
        return high

    def smoothness(self, Z: Tensor) -> float:
        """Return the smoothness without biases at the best ones: a minimum over some variables is no more curved.

        It holds at all predictions near Z with the biases of Z, which bound the value from above.
        """
        return self.loss.smoothness(self._best(Z).seen)

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding, and what the minimization left, are relative to."""
        point, Q = self._best(Z), self._check(Q, "Q")
        assert self.support is not None
        primal, dual, rows = self.loss.magnitudes(point.seen, Q)
        # two roundings in z + (b + c)
        size = self._check(Z, "Z").abs() + point.b.abs()[self.support.rows] + point.c.abs()[self.support.cols]
        steep = self.loss.smoothness(point.seen)
        if math.isfinite(steep):
            rows = rows + steep * size
            primal += steep * UNIT_ROUNDOFF * float(size.square().sum())
        primal += float((point.G.abs() * size).sum()) + 2.0 * self._penalty(point.b, point.c)
        left = 0.0
        sizes = self._sums(point.G.abs())
        for gradient, sums, terms in zip((point.gb, point.gc), sizes, self._counts, strict=True):
            rounding = (terms + 4.0) * (1.01 * UNIT_ROUNDOFF) * (sums + gradient.abs())
            left += accurate_sum((gradient.abs() + rounding).square()[:, None])
        # gamma(34) is what the caller multiplies with
        primal += left / (2.0 * self.decay) / gamma(34)
        return primal, dual + self._bend(Q), rows

    @cached_property
    def _counts(self) -> tuple[Tensor, Tensor]:
        """Number of observed entries of each row and column, float64."""
        return self._sums(torch.ones_like(self.zeros()))

    def _penalty(self, b: Tensor, c: Tensor) -> float:
        squares = torch.cat([b, c]).square()
        return 0.5 * self.decay * accurate_sum(squares[:, None])

    def _sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over each row and each column of a matrix with these entries."""
        assert self.support is not None
        n, m = self.shape
        return (
            torch.bincount(self.support.rows, values, minlength=n),
            torch.bincount(self.support.cols, values, minlength=m),
        )

    def _bend(self, Q: Tensor) -> float:
        """Return ||A^T Q||^2 / mu, rounded up."""
        total = 0.0
        for sums, sizes, terms in zip(self._sums(Q), self._sums(Q.abs()), self._counts, strict=True):
            sums = sums.abs() + (terms * (1.01 * UNIT_ROUNDOFF)) * sizes
            total += accurate_sum(sums.square()[:, None])
        return total / self.decay * (1.0 + gamma(8))

    def _best(self, Z: Tensor) -> _Point:
        """Return the predictions with their best biases, by Newton's method.

        The objective is mu-strongly convex in the biases, so that it is within
        ||gradient||^2 / (2 mu) of its least value.
        """
        found = self._found
        if found is not None and found[0] is Z and found[1] == Z._version:
            return found[2]
        start = self._check(Z, "Z")
        point = best = self._point(start, self._row_bias, self._col_bias)
        value = self._size(point)
        for _ in range(_NEWTON_STEPS):
            goal = math.sqrt(2.0 * self.decay * self.accuracy * abs(value))
            if point.slope <= goal:
                break
            forcing = goal if self._quadratic else max(goal, _FORCING * point.slope)
            x, y = self._newton(point).solve(point.gb, point.gc, 0.5 * forcing)
            fall = 0.0 if self._quadratic else 1e-4 * float(point.gb @ x + point.gc @ y)
            noise, length = 1e-13 * abs(value), 1.0
            while True:
                ahead = self._point(start, point.b - length * x, point.c - length * y)
                reached, falls = self._size(ahead), ahead.slope < 0.5 * point.slope
                if self._quadratic or reached <= value - length * fall - noise or length < 1e-6:
                    break
                if abs(reached - value) <= noise and falls:  # too little to be seen in the value
                    break
                length /= 2.0
            lower = reached < value - noise
            point, value = ahead, reached
            best = point if lower and not self._quadratic else min(best, point, key=lambda p: p.slope)
            if not (falls or (lower and not self._quadratic)):
                break  # as near as rounding lets it
        self._row_bias, self._col_bias = best.b, best.c
        self._found = Z, Z._version, best
        return best

    def _point(self, Z: Tensor, b: Tensor, c: Tensor) -> _Point:
        assert self.support is not None
        seen = Z + (b[self.support.rows] + c[self.support.cols])
        G = self.loss.gradient(seen)
        rows, cols = self._sums(G)
        return _Point(b, c, seen, G, rows + self.decay * b, cols + self.decay * c)

    def _size(self, point: _Point) -> float:
        """Return the objective; of a quadratic loss, its main part, quickly."""
        if self._quadratic:
            return 0.5 * float(point.G.square().sum()) / self.scale
        return self.loss.value(point.seen) + self._penalty(point.b, point.c)

    def _newton(self, point: _Point) -> _System:
        """Return the Hessian in the biases."""
        if self._system is not None and self._quadratic:
            return self._system
        if self._pattern is None:
            assert self.support is not None
            self._pattern = Pattern(self.support.rows, self.support.cols, self.shape, self.support.sorted)
        _, bends = self.loss.entries.curvature(point.seen[:, None])
        rows, cols = self._sums(bends)
        system = _System(*self._pattern.products(bends), rows + self.decay, cols + self.decay)
        self._system = system if self._quadratic else None
        return system


class _Point:
    """Biases b and c, the predictions with them, the loss' gradient there and the objective's in the biases."""

    def __init__(self, b: Tensor, c: Tensor, seen: Tensor, G: Tensor, gb: Tensor, gc: Tensor) -> None:
        self.b, self.c, self.seen, self.G, self.gb, self.gc = b, c, seen, G, gb, gc
        self.slope = math.hypot(float(gb.norm()), float(gc.norm()))
        if not math.isfinite(self.slope):
            self.slope = math.inf


class _System:
    """The matrix (D_r, M; M^T, D_c), symmetric and positive definite, with diagonal D_r and D_c.

    Parameters
    ----------
    forward, adjoint : callable
        Products of M and of its transpose with columns.
    rows, cols : Tensor
        The diagonals D_r and D_c.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        rows: Tensor,
        cols: Tensor,
    ) -> None:
        self.forward, self.adjoint, self.rows, self.cols = forward, adjoint, rows, cols

    def solve(self, f: Tensor, g: Tensor, goal: float) -> tuple[Tensor, Tensor]:
        """Return x, y with a residual of length at most ``goal``, if rounding allows.

        The rows are eliminated, which leaves ``(D_c - M^T D_r^-1 M) y = g - M^T D_r^-1 f``
        for conjugate gradients preconditioned by D_c.
        """

        def push(v: Tensor) -> Tensor:
            return self.forward(v[:, None])[:, 0] / self.rows

        def pull(v: Tensor) -> Tensor:
            return self.adjoint(v[:, None])[:, 0]

        y = torch.zeros_like(g)
        residual = g - pull(f / self.rows)
        direction = scaled = residual / self.cols
        square = float(residual @ scaled)
        for _ in range(_CG_STEPS):
            if float(residual.norm()) <= goal or square <= 0.0:
                break
            image = self.cols * direction - pull(push(direction))
            bend = float(direction @ image)
            if not bend > 0.0:
                break
            y = y + (square / bend) * direction
            residual = residual - (square / bend) * image
            scaled = residual / self.cols
            square, last = float(residual @ scaled), square
            direction = scaled + (square / last) * direction
        return f / self.rows - push(y), y

r"""Upper bounds of structured polars by splitting the dual matrix.

For :math:`\theta(u,v)=\|u\|_u\|v\|_v` with :math:`\|u\|_u=\sum_ac_a\|A_au\|_a` and
:math:`\|v\|_v=\sum_bc'_b\|B_bv\|_b`, every splitting

.. math:: Q + N = \sum_{ab}A_a^\top Q_{ab}B_b, \qquad
   \Omega^\circ(Q) \le \max_{ab}\Omega^\circ_{ab}(Q_{ab}) / (c_ac'_b),

is a proof, where N >= 0 is there for two nonnegative factors only and :math:`\Omega^\circ_{ab}` is the
largest singular value (l2, l2), the largest Euclidean norm of a row (l1, l2) or column (l2, l1), or the
largest entry (l1, l1).  For ``v`` with a Euclidean norm alone, the same holds of the symmetric matrix
:math:`QQ^\top` and the norm of u on both sides, with a bound of the polar's square: that *lifted* bound is
never worse, and has the N for a nonnegative u alone.

The best splitting is convex to find.  Here all parts but the one without any A, B are kept within t times
their limits, and the distance of that one to its limit is minimized by accelerated projected gradient; the
minimizer's excess is the rank-free matrix Z whose :math:`\langle Q,Z\rangle` over its relaxed gauge is the
next t.  Whatever the search ends with is evaluated anew, with the rounding of every operation added.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.polar.factor_norm import FactorNorm, Term

__all__ = ["Split", "best_split", "evaluate", "lifted_split"]

_EVERY = 10  # iterations between two looks at the bracket


@dataclass(frozen=True)
class Split:
    """A proved upper end, and what was learned on the way.

    Attributes
    ----------
    upper : float
        Proved, rounding enclosed.
    relaxed : float
        About the least upper end that any splitting has (not proved).
    Z : Tensor, shape (n, m)
        Near a maximizer of <Q, Z> over the relaxed gauge's unit ball: its leading directions are good starts.
    iterations : int
    """

    upper: float
    relaxed: float
    Z: Tensor
    iterations: int


class _Part:
    """One part Q_ab of a splitting, its limit c_a c'_b and its ball."""

    def __init__(self, left: Term, right: Term, symmetric: bool) -> None:
        self.left, self.right, self.symmetric = left, right, symmetric
        self.limit = left.weight * right.weight
        self.orders = left.order + right.order
        self.stretch = left.stretch * right.stretch

    def pull(self, X: Tensor) -> Tensor:
        """Return A X B^T."""
        return self.right.forward(self.left.forward(X, 0), -1)

    def push(self, X: Tensor) -> Tensor:
        """Return A^T X B."""
        return self.right.adjoint(self.left.adjoint(X, 0), -1)

    @property
    def dim(self) -> int | None:
        """Dimension along which lengths are taken; None for entries (and not asked for l2 l2)."""
        return {"l1l2": 1, "l2l1": 0, "l1l1": None}[self.orders]

    def projected(self, X: Tensor, t: float) -> Tensor:
        """Return the nearest matrix whose polar is at most t times the limit."""
        radius = t * self.limit
        if self.orders == "l2l2":
            return X - spectral_excess(X, radius, self.symmetric)
        if self.orders == "l1l1":
            return X.clamp(-radius, radius)
        lengths = torch.linalg.vector_norm(X, dim=self.dim, keepdim=True)
        return X * (radius / lengths.clamp(min=radius if radius > 0.0 else 1e-300))

    def excess(self, X: Tensor, t: float) -> Tensor:
        """Return what the projection takes off."""
        spectral = self.orders == "l2l2"
        return spectral_excess(X, t * self.limit, self.symmetric) if spectral else X - self.projected(X, t)

    def gauge(self, Z: Tensor) -> float:
        """Return the dual norm of the part's polar at A Z B^T, times the limit."""
        if self.orders == "l2l2":
            return self.limit * float(torch.linalg.svdvals(Z).sum())
        X = self.pull(Z)
        if self.orders == "l1l1":
            return self.limit * float(X.abs().sum())
        return self.limit * float(torch.linalg.vector_norm(X, dim=self.dim).sum())

    def estimate(self, X: Tensor) -> float:
        """Return the part's polar over its limit, as computed."""
        if self.orders != "l2l2":
            return self.polar(X)
        top = torch.linalg.eigvalsh(X)[-1] if self.symmetric else torch.linalg.matrix_norm(X, 2)
        return float(top) / self.limit

    def polar(self, X: Tensor) -> float:
        """Return the part's polar over its limit, rounded up."""
        if self.orders == "l2l2":
            size = largest_eigenvalue(X) if self.symmetric else sigma_max(X, method="inertia").high
        elif self.orders == "l1l1":
            size = float(X.abs().max())
        else:
            top = float(X.abs().max())
            size = float(torch.linalg.vector_norm(X / top, dim=self.dim).max()) * top if top else 0.0
            size *= 1.0 + gamma(max(X.shape) + 8)
        return size / self.limit * UP


def spectral_excess(X: Tensor, radius: float, symmetric: bool = False) -> Tensor:
    """Return what projection on the spectral ball, or on eigenvalues up to a radius, takes off: a search, no proof."""
    if symmetric:
        values, V = torch.linalg.eigh(X)
        over = values > radius
        return (V[:, over] * (values[over] - radius)) @ V[:, over].T
    tall = X if X.shape[0] >= X.shape[1] else X.T
    squares, V = torch.linalg.eigh(tall.T @ tall)
    s = squares.clamp(min=0.0).sqrt()
    over = s > radius
    s, V = s[over], V[:, over]
    excess = (tall @ (V * (1.0 - radius / s))) @ V.T
    return excess if tall is X else excess.T


def largest_eigenvalue(X: Tensor) -> float:
    """Return a proved upper bound of max u^T X u over ||u|| <= 1: that of a shift of (X + X^T) / 2, less the shift."""
    X = 0.5 * (X + X.T)
    shift = max(0.0, -float(torch.linalg.eigvalsh(X)[0]))
    shifted = X + shift * torch.eye(len(X), dtype=X.dtype)
    rounding = 4.0 * UNIT_ROUNDOFF * (float(torch.linalg.vector_norm(X)) + shift)  # of both sums, enlarged
    return (
        max(0.0, math.nextafter(sigma_max(shifted, method="inertia").high - shift, math.inf) + rounding) * UP
    )


def parts_of(
    left: FactorNorm, right: FactorNorm, shape: tuple[int, int], symmetric: bool = False
) -> list[_Part]:
    """Return the parts of a splitting; the first has neither differences nor a projection of its own."""
    return [_Part(a, b, symmetric) for a in left.terms(shape[0]) for b in right.terms(shape[1])]


def evaluate(
    Q: Tensor,
    left: FactorNorm,
    right: FactorNorm,
    blocks: list[Tensor],
    slack: Tensor | None = None,
    *,
    symmetric: bool = False,
    error: float = 0.0,
) -> float:
    """Return the upper end that given parts prove, whatever they are.

    Parameters
    ----------
    Q : Tensor, shape (n, m)
    left, right : FactorNorm
    blocks : list of Tensor
        All parts but the first, in the order of the terms; the first is what is missing of Q + slack.
    slack : Tensor, shape (n, m), optional
        Clamped at 0; for two nonnegative factors only.
    symmetric : bool
        Bound u^T Q u alone, for which eigenvalues serve instead of singular values.
    error : float
        Frobenius norm by which Q may be off.

    Returns
    -------
    float
        Rounding enclosed: each entry of the first part is a sum of at most ``6 * parts + 2`` numbers, so
        that it is off by at most gamma of that times the sum of their sizes.

    Raises
    ------
    ValueError
        If there is slack without two nonnegative factors.
    """
    first, *others = parts_of(left, right, (Q.shape[0], Q.shape[1]), symmetric)
    if slack is not None and not (left.nonnegative and right.nonnegative):
        raise ValueError("slack: expected None, a factor may be negative")
    M, size, worst = Q, Q.abs(), 0.0
    if slack is not None:
        N = slack.clamp(min=0.0)
        M, size = M + N, size + N
    for part, X in zip(others, blocks, strict=True):
        worst = max(worst, part.polar(X))
        M = M - part.push(X)
        # |D|^T |X| |D| is at most the sum of 2 d terms on each differentiated side, each of at most max |X|
        terms = (part.left.stretch if part.left.grid else 1.0) * (
            part.right.stretch if part.right.grid else 1.0
        )
        size = size + (X.abs() if terms == 1.0 else terms * float(X.abs().max()))
    count = 2 + sum(int(part.stretch) + 1 for part in others)
    # the Frobenius norm is above the polar of a part without differences
    error = (error + gamma(count) * float(torch.linalg.vector_norm(size))) * PAD
    return max(worst, first.polar(M) + error / first.limit) * UP


class Splitting:
    """The parts of a splitting, moved by accelerated projected gradient.

    A step lowers half the squared distance of ``Q + N`` less all parts but the first to the first part's
    ball; what is over is the proximal map of t times the relaxed gauge at Q.

    Parameters
    ----------
    left, right : FactorNorm
    shape : tuple of int
        Shape (n, m) of Q.
    symmetric : bool
        As in :func:`evaluate`.
    device : torch.device, optional

    Attributes
    ----------
    blocks : list of Tensor
        All parts but the first; for two nonnegative factors the last one is N.
    """

    def __init__(
        self,
        left: FactorNorm,
        right: FactorNorm,
        shape: tuple[int, int],
        *,
        symmetric: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.first, *self.others = parts_of(left, right, shape, symmetric)
        self.signs = left.nonnegative and right.nonnegative
        empty = torch.zeros(shape, dtype=torch.float64, device=device)
        self.blocks = [torch.zeros_like(part.pull(empty)) for part in self.others] + [empty] * self.signs
        stretches = [part.stretch for part in self.others] + [1.0] * self.signs
        self.steps = [1.0 / (len(stretches) * stretch) for stretch in stretches]
        self.restart()

    def restart(self) -> None:
        """Forget the momentum."""
        self.points, self.momentum = self.blocks, 1.0

    def separated(self, blocks: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Return the parts, and N or None."""
        return (blocks[:-1], blocks[-1]) if self.signs else (blocks, None)

    def remainder(self, Q: Tensor, blocks: list[Tensor]) -> Tensor:
        """Return what blocks leave for the first part."""
        parts, slack = self.separated(blocks)
        M = Q if slack is None else Q + slack
        for part, X in zip(self.others, parts, strict=True):
            M = M - part.push(X)
        return M

    def gauge(self, Z: Tensor) -> float:
        """Return the relaxed gauge of Z, of which the least upper end of all splittings is the polar."""
        return sum(part.gauge(Z) for part in [self.first, *self.others])

    def step(self, Q: Tensor, t: float) -> Tensor:
        """Move the blocks, and return the excess at the point that they were moved from."""
        Z = self.first.excess(self.remainder(Q, self.points), t)
        moved = zip(self.others, self.points, self.steps, strict=False)
        fresh = [part.projected(X + step * part.pull(Z), t) for part, X, step in moved]
        if self.signs:
            fresh.append((self.points[-1] - self.steps[-1] * Z).clamp(min=0.0))
        terms = zip(self.points, fresh, self.blocks, self.steps, strict=True)
        if sum(float(((p - f) * (f - b)).sum()) / step for p, f, b, step in terms) > 0.0:
            self.momentum, self.points = 1.0, fresh
        else:
            following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * self.momentum * self.momentum))
            weight = (self.momentum - 1.0) / following
            self.points = [f + weight * (f - b) for f, b in zip(fresh, self.blocks, strict=True)]
            self.momentum = following
        self.blocks = fresh
        return Z


def best_split(
    Q: Tensor,
    left: FactorNorm,
    right: FactorNorm,
    *,
    lower: float,
    target: float | None = None,
    deadline: float = math.inf,
    tol: float = 1e-3,
    max_iterations: int = 400,
    symmetric: bool = False,
    error: float = 0.0,
) -> Split:
    """Return the upper end of a nearly best splitting.

    Parameters
    ----------
    Q : Tensor, shape (n, m)
        Dense, float64.
    left, right : FactorNorm
        Norms of u and v.
    lower : float
        A value that <Q, u v^T> attains with norms 1.
    target : float, optional
        Stop at an upper end of at most this.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    tol : float
        Relative distance to the best splitting to stop at, unless the target is still within reach.
    max_iterations : int
    symmetric, error : bool, float
        As in :func:`evaluate`.
    """
    split = Splitting(left, right, (Q.shape[0], Q.shape[1]), symmetric=symmetric)
    if split.signs:
        split.blocks[-1] = (-Q).clamp(min=0.0)
        split.restart()

    def proved(blocks: list[Tensor]) -> float:
        X, slack = split.separated(blocks)
        return evaluate(Q, left, right, X, slack, symmetric=symmetric, error=error)

    upper = estimate = proved(split.blocks)
    t, relaxed, kept, best_Z, iteration = lower, lower, split.blocks, torch.zeros_like(Q), 0
    if not split.blocks or upper <= max(-math.inf if target is None else target, lower * (1.0 + tol)):
        return Split(upper, upper, best_Z, 0)
    for iteration in range(1, max_iterations + 1):
        split.step(Q, t)
        if iteration % _EVERY and iteration < max_iterations:
            continue
        M = split.remainder(Q, split.blocks)
        size = max(split.first.estimate(M), t)
        if size < estimate:
            estimate, kept = size, split.blocks
        Z = split.first.excess(M, t)
        Z = Z.clamp(min=0.0) if split.signs else Z
        whole = split.gauge(Z)
        reached = float((Q * Z).sum()) / whole if whole > 0.0 else 0.0
        if reached > relaxed:
            relaxed, best_Z = reached, Z
        # a target within reach is worth more steps than the last digits of a bound that misses it
        best = relaxed * (1.0 + tol)
        enough = best if target is None or relaxed > target else target * (1.0 - 1e-9)
        if estimate <= enough or time.monotonic() > deadline:
            break
        share = (t - relaxed) / (estimate - relaxed)
        if not 0.0 < share < 0.7:  # t was shown to be too small, or was reached
            t = relaxed + 0.3 * (estimate - relaxed)
            split.restart()
    return Split(min(upper, proved(kept)), relaxed, best_Z, iteration)


def lifted_split(
    Q: Tensor,
    left: FactorNorm,
    right: FactorNorm,
    *,
    lower: float,
    target: float | None = None,
    deadline: float = math.inf,
    tol: float = 1e-3,
    max_iterations: int = 1000,
) -> Split:
    r"""Return the upper end of a nearly best splitting of :math:`QQ^\top`, for a right norm that is Euclidean.

    :math:`\Omega^\circ(Q)^2 \le \max_u u^\top QQ^\top u/(l_2'\|u\|_u)^2`.  Arguments as in :func:`best_split`.

    Raises
    ------
    ValueError
        If the right norm has other terms.
    """
    if not right.plain:
        raise ValueError(f"right: expected a Euclidean norm alone, got {right}")
    error = gamma(Q.shape[1] + 2) * float(torch.linalg.vector_norm(Q)) ** 2 * PAD
    found = best_split(
        Q @ Q.T,
        left,
        left,
        lower=(lower * right.l2) ** 2,
        target=None if target is None else (target * right.l2) ** 2 * (1.0 - 1e-15),
        deadline=deadline,
        tol=2.0 * tol,
        max_iterations=max_iterations,
        symmetric=True,
        error=error,
    )
    upper, relaxed = (math.sqrt(x) / right.l2 for x in (found.upper, found.relaxed))
    return replace(found, upper=upper * UP, relaxed=relaxed)

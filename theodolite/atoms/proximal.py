r"""Accelerated proximal gradient: min f(Z) + lam g(Z), with g known through its proximal map."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from theodolite.losses.base import Loss

EVERY = 10  # iterations between two looks at the gap
GOAL = 0.3  # of the tolerance: what is estimated here must still hold when it is proved
_MOST = 20_000  # iterations


@dataclass(frozen=True)
class Composite:
    """The problem min_Z loss(predict(Z)) + lam g(Z) with a linear map `predict`.

    Attributes
    ----------
    loss : Loss
    lam : float
    predict : callable
        Linear map from Z to predictions.
    adjoint : callable
        Its transpose.
    stretch : Tensor
        A number or weights s of Z with ``||predict(Z)||^2 <= sum s Z^2``.
    prox : callable
        ``prox(Z, t)`` returns argmin_X sum (X - Z)^2 / (2 t) + g(X), and g there; t is a multiple of 1/s.
    polar : callable
        The dual norm of g; an estimate from below will do.
    """

    loss: Loss
    lam: float
    predict: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    stretch: Tensor
    prox: Callable[[Tensor, Tensor], tuple[Tensor, float]]
    polar: Callable[[Tensor], float]


def estimated_gap(loss: Loss, lam: float, objective: float, residual: Tensor, polar: float) -> float:
    """Return the relative gap to the best dual point on the ray of a residual, if its polar is this number."""
    upper = lam / polar if polar > 0.0 else math.inf
    _, dual = loss.best_t(residual, upper=min(upper, 1e300))
    return (objective - dual) / abs(objective) if objective else 0.0


def initial_curvature(loss: Loss, Z: Tensor) -> float:
    """Return the loss's smoothness at Z, or where that is infinite a number for backtracking to enlarge."""
    curvature = loss.smoothness(Z)
    return curvature if math.isfinite(curvature) else loss.scale


def inside(loss: Loss, Z: Tensor) -> bool:
    """Return whether predictions are in the domain of the loss."""
    return math.isfinite(loss.smoothness(Z)) or math.isfinite(loss.value(Z))


def minimize(
    composite: Composite,
    Z: Tensor,
    *,
    tol: float,
    deadline: float,
    progress: Callable[[Tensor], None],
) -> Tensor:
    """Minimize by FISTA, restarted where the momentum points uphill, with backtracking.

    Parameters
    ----------
    composite : Composite
    Z : Tensor
        Where to start.
    tol : float
        Stop at an estimated relative gap of a third of it.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    progress : function(Tensor)
        Called with the best iterate now and then.

    Returns
    -------
    Tensor
        The best iterate.

    References
    ----------
    Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009) 183-202; O'Donoghue and Candes, Found. Comput.
    Math. 15 (2015) 715-732.
    """
    loss, lam = composite.loss, composite.lam
    stretch = composite.stretch
    curvature = initial_curvature(loss, composite.predict(Z))
    best, best_objective = Z, math.inf
    point, momentum, stalled = Z, 1.0, 0
    for iteration in range(_MOST):
        seen = composite.predict(point)
        if point is not Z and not inside(loss, seen):  # extrapolated out of the domain
            point, momentum = Z, 1.0
            continue
        slope = loss.gradient(seen)
        pull = composite.adjoint(slope)
        while True:
            fresh, size = composite.prox(point - pull / (curvature * stretch), lam / (curvature * stretch))
            now = composite.predict(fresh)
            gradient = loss.gradient(now)
            bend = float(((gradient - slope) * (now - seen)).sum())
            allowed = (1.0 + 1e-9) * curvature * float((stretch * (fresh - point).square()).sum())
            if bend <= allowed and inside(loss, now):
                break
            if curvature > 1e200:  # at the edge of the loss's domain
                return best
            curvature *= 2.0
        late = time.monotonic() > deadline
        if iteration % EVERY == 0 or late:
            objective = loss.value(now) + lam * size
            stalled = 0 if objective < best_objective - 1e-15 * abs(objective) else stalled + 1
            if objective < best_objective:
                best, best_objective = fresh, objective
            progress(best)
            curvature = min(curvature, loss.smoothness(now))  # backtracking may have gone too far
            polar = composite.polar(composite.adjoint(gradient))
            if estimated_gap(loss, lam, objective, -gradient, polar) <= GOAL * tol:
                return fresh
            if stalled >= 10 or late:
                break
        step = fresh - Z
        if float((stretch * (point - fresh) * step).sum()) > 0.0:
            momentum, point = 1.0, fresh
        else:
            following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum**2))
            point, momentum = fresh + (momentum - 1.0) / following * step, following
        Z = fresh
    return best

"""Descent on the parameters of a fixed number of subnetworks: L-BFGS through autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from theodolite.core.params import Params, count
from theodolite.optim.lbfgs import minimize

if TYPE_CHECKING:
    from theodolite.core.problem import Problem


def descend(
    problem: Problem, params: Params, *, tol: float, deadline: float, progress: Callable[[Params], None]
) -> Params:
    """Lower ``loss + lam * penalty`` over all floating-point parameters (arguments as in `Atom.descend`).

    ``penalty`` is at least theta and equal to it after a rescaling, so that both have the same
    minima.  L-BFGS stops when a step gains less than a thousandth of ``tol``.
    """
    if not count(params):
        return params
    moving = [i for i, p in enumerate(params) if p.is_floating_point()]

    def whole(point: Params) -> Params:
        parts = dict(zip(moving, point, strict=True))
        return tuple(parts.get(i, p) for i, p in enumerate(params))

    def objective(point: Params) -> tuple[float, Params]:
        leaves = tuple(p.requires_grad_() for p in point)
        with torch.enable_grad():
            Z = problem.atom.predict(whole(leaves), problem.loss.support)
            penalty = problem.lam * problem.atom.penalty(whole(leaves)).sum()
            slope = problem.loss.gradient(Z.detach())
            gradients = torch.autograd.grad((Z * slope).sum() + penalty, leaves)
        return problem.loss.value(Z.detach()) + float(penalty.detach()), gradients

    best, _ = minimize(
        objective,
        tuple(params[i] for i in moving),
        ftol=1e-3 * max(tol, 1e-12),
        deadline=deadline,
        progress=lambda point: progress(tuple(p.detach() for p in whole(point))),
    )
    return min(params, whole(best), key=problem.objective)

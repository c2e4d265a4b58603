"""Exact improvements at fixed directions: reweighting, and pruning that keeps the predictions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from theodolite.analysis.conic import best_weights, sparsest_weights
from theodolite.core.params import Params, count, join, select

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

_ENTRIES = 2e7  # of predictions held one by one: beyond, all present subnetworks share one weight
_NEGLIGIBLE = 1e-14  # of the sum of theta


def reweight(problem: Problem, params: Params, fresh: Params | None = None) -> Params:
    """Return the subnetworks, and fresh directions, with the best nonnegative weights.

    This is the fully corrective step of Frank-Wolfe; at its solution ``<R, Z> = lam Theta``.
    Those of weight 0 are dropped.  With too many predictions to hold one by one, the present share one
    weight and only the first fresh ones enter.  Convex descents need only what they missed.
    """
    atom, loss, old = problem.atom, problem.loss, count(params)
    if (atom.convex and (fresh is None or not old)) or old + (0 if fresh is None else count(fresh)) == 0:
        return params
    everything = params if fresh is None else join(params, fresh)
    together = count(everything) * math.prod(loss.prediction_shape) > _ENTRIES
    if together:
        most = max(1, int(5 * _ENTRIES // math.prod(loss.prediction_shape)))
        everything = select(everything, slice(0, old + most))
        F = atom.each(select(everything, slice(old, None)), loss.support).flatten(1)
        F = torch.cat([problem.predictions(params).reshape(1, -1), F]) if old else F
    else:
        F = atom.each(everything, loss.support)
    index = torch.arange(count(everything), device=F.device)
    if together and old:
        index = (index - old + 1).clamp(min=0)
    costs = torch.zeros(len(F), dtype=torch.float64, device=F.device)
    costs.index_add_(0, index, problem.lam * atom.theta(everything))
    start = torch.zeros_like(costs)
    start[index[:old]] = 1.0
    weights = best_weights(loss, F, costs, start)[index]
    kept = weights > 0.0
    better = atom.scale(select(everything, kept), weights[kept])
    return better if not_worse(problem, better, params) else params


def prune(problem: Problem, params: Params) -> Params:
    """Return fewer subnetworks with the same predictions and no larger sum of theta.

    Three rules, exact up to rounding: drop those with theta = 0, merge those of one direction,
    and remove one for each linear dependence of their predictions (Caratheodory).
    """
    atom = problem.atom
    if not count(params) or atom.convex:
        return params
    theta = atom.theta(params)
    fewer = atom.merge(select(params, theta > _NEGLIGIBLE * theta.sum()))
    if 1 < count(fewer) <= 1000 and count(fewer) * math.prod(problem.loss.prediction_shape) <= _ENTRIES / 10:
        weights = sparsest_weights(atom.each(fewer, problem.loss.support), atom.theta(fewer))
        kept = weights > 0.0
        fewer = atom.scale(select(fewer, kept), weights[kept])
    return fewer if not_worse(problem, fewer, params) else params


def not_worse(problem: Problem, new: Params, old: Params) -> bool:
    """Return whether the objective did not rise beyond rounding; equal ones may differ in stationarity."""
    before = problem.objective(old)
    return problem.objective(new) <= before + 1e-13 * abs(before)

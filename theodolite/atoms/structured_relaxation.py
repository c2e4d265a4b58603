r"""The convex relaxation of structured factorization: a dual point of its own, often better than the residual's.

A splitting of the polar (:mod:`theodolite.polar.splitting`) belongs to the convex gauge
:math:`\Omega_s(Z)=\sum_{ab}c_ac'_b\|A_aZB_b^\top\|_{ab}\le\Omega(Z)`.  The minimizer of
:math:`\ell(Z)+\lambda\Omega_s(Z)` has a residual that is split within lambda, so that its dual value bounds
every factorization from below; the residual of the best factorization usually has to be shrunk more.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.proximal import initial_curvature
from theodolite.losses.rounding import ray_bound, repair_polar
from theodolite.polar.splitting import Splitting, evaluate

if TYPE_CHECKING:
    from theodolite.atoms.structured import StructuredAtom
    from theodolite.core.problem import Problem

__all__ = ["relaxed_bound"]

_EVERY = 20  # steps between two looks at the bound
_PATIENCE = 4  # looks that bring next to nothing


def relaxed_bound(
    problem: Problem, *, tol: float = 1e-5, budget: float | None = None, max_iterations: int = 2000
) -> float:
    """Return a proved lower bound of the objective of every factorization, from the convex relaxation.

    Accelerated proximal gradient on the predictions, whose proximal map is approached by one step on the
    parts of a splitting at a time.  Nothing depends on its convergence: the parts found are evaluated as a
    splitting of the residual, rounding enclosed.

    Parameters
    ----------
    problem : Problem
        Of a :class:`~theodolite.atoms.StructuredAtom`.
    tol : float
        Relative gain of the bound over 20 steps to stop at.
    budget : float, optional
        Seconds.
    max_iterations : int

    Returns
    -------
    float
        -inf if no finite bound was reached.
    """
    atom: StructuredAtom = problem.atom  # type: ignore[assignment]
    loss, lam, support = problem.loss, problem.lam, problem.loss.support
    deadline = math.inf if budget is None else time.monotonic() + budget
    split = Splitting(atom.left, atom.right, atom.shape, device=loss.zeros().device)
    curvature = initial_curvature(loss, loss.zeros())
    whole = torch.zeros(atom.shape, dtype=torch.float64, device=loss.zeros().device)

    def seen(Z: Tensor) -> Tensor:
        return Z if support is None else Z[support.rows, support.cols]

    def spread(R: Tensor) -> Tensor:
        if support is None:
            return R
        dense = torch.zeros_like(whole)
        dense[support.rows, support.cols] = R
        return dense

    best, idle, Z = -math.inf, 0, whole
    for iteration in range(max_iterations):
        W = Z + spread(-loss.gradient(seen(Z))) / curvature
        fresh = split.step(W, lam / curvature)
        before, move = loss.value(seen(Z)), seen(fresh) - seen(Z)
        tangent = before + float((loss.gradient(seen(Z)) * move).sum())
        allowed = tangent + 0.5 * curvature * float(move.square().sum()) * (1.0 + 1e-9) + 1e-12 * abs(before)
        if not loss.value(seen(fresh)) <= allowed:
            if curvature > 1e200:
                break
            curvature *= 2.0  # the blocks are those of a residual over the curvature: they shrink with it
            split.blocks = [0.5 * X for X in split.blocks]
            split.restart()
            continue
        Z, late = fresh, time.monotonic() > deadline
        if iteration % _EVERY != _EVERY - 1 and not late:
            continue
        parts, slack = split.separated(split.blocks)
        point = split.first.excess(split.remainder(W, split.blocks), lam / curvature)
        P = seen(point)
        R = -loss.gradient(P)
        scaled = [curvature * X for X in parts]
        upper = evaluate(
            spread(R), atom.left, atom.right, scaled, None if slack is None else curvature * slack
        )
        bound = ray_bound(loss, P, R, lam, upper, repair_polar(loss, P, R, problem.row_bounds))
        idle = idle + 1 if bound <= best + tol * abs(best) else 0
        best = max(best, bound)
        if idle >= _PATIENCE or late:
            break
    return best

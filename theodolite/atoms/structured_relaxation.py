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

__all__ = ["Relaxation", "relaxed_bound"]

_EVERY = 20  # steps between two looks at the bound
_PATIENCE = 4  # looks that bring next to nothing


def relaxed_bound(
    problem: Problem, *, tol: float = 1e-5, budget: float | None = None, max_iterations: int = 2000
) -> float:
    """Return a proved lower bound of the objective of every factorization, from the convex relaxation.

    Parameters
    ----------
    problem : Problem
        Of a :class:`~theodolite.atoms.StructuredAtom`.
    tol, budget, max_iterations : float, float or None, int
        See :meth:`Relaxation.improve`.

    Returns
    -------
    float
        -inf if no finite bound was reached.
    """
    return Relaxation(problem).improve(tol=tol, budget=budget, max_iterations=max_iterations)


class Relaxation:
    """The best lower bound that the convex relaxation of one problem gave so far; it can be gone on with.

    Accelerated proximal gradient on the predictions, whose proximal map is approached by one step on the
    parts of a splitting at a time.  Nothing depends on its convergence: the parts found are evaluated as a
    splitting of the residual, rounding enclosed.

    Parameters
    ----------
    problem : Problem
        Of a :class:`~theodolite.atoms.StructuredAtom`.

    Attributes
    ----------
    best : float
        Proved lower bound of the objective of every factorization; -inf before there is one.
    """

    def __init__(self, problem: Problem) -> None:
        atom: StructuredAtom = problem.atom  # type: ignore[assignment]
        zeros = problem.loss.zeros()
        self.best, self._settled = -math.inf, math.inf
        self._loss, self._lam, self._row_bounds = problem.loss, problem.lam, problem.row_bounds
        self._norms = atom.left, atom.right
        self._split = Splitting(*self._norms, atom.shape, device=zeros.device)
        self._curvature = initial_curvature(problem.loss, zeros)
        self._Z = torch.zeros(atom.shape, dtype=torch.float64, device=zeros.device)

    def belongs_to(self, problem: Problem) -> bool:
        """Return whether it is of the same problem, for the one family that it is of."""
        return self._loss is problem.loss and self._lam == problem.lam

    def improve(self, *, tol: float = 1e-5, budget: float | None = None, max_iterations: int = 2000) -> float:
        """Go on where the last call stopped, and return the best bound.

        Parameters
        ----------
        tol : float
            Relative gain of the bound over 20 steps to stop at.
        budget : float, optional
            Seconds; with 0 only what is known already.
        max_iterations : int
            Of this call.
        """
        if budget == 0.0 or self._settled <= tol:
            return self.best
        deadline = math.inf if budget is None else time.monotonic() + budget
        loss, split, idle = self._loss, self._split, 0
        for iteration in range(max_iterations):
            W = self._Z + self._spread(-loss.gradient(self._seen(self._Z))) / self._curvature
            fresh = split.step(W, self._lam / self._curvature)
            if not self._descends(fresh):
                if self._curvature > 1e200:
                    break
                self._curvature *= 2.0  # the blocks are a residual over the curvature: they shrink with it
                split.blocks = [0.5 * X for X in split.blocks]
                split.restart()
                continue
            self._Z, late = fresh, time.monotonic() > deadline
            if iteration % _EVERY != _EVERY - 1 and not late:
                continue
            bound = self._bound(W)
            idle = idle + 1 if bound <= self.best + tol * abs(self.best) else 0
            self.best = max(self.best, bound)
            if late:
                return self.best
            if idle >= _PATIENCE:
                break
        self._settled = tol
        return self.best

    def _bound(self, W: Tensor) -> float:
        """Return the proved dual value of the present splitting."""
        loss, split, curvature = self._loss, self._split, self._curvature
        parts, slack = split.separated(split.blocks)
        P = self._seen(split.first.excess(split.remainder(W, split.blocks), self._lam / curvature))
        R = -loss.gradient(P)
        scaled = [curvature * X for X in parts]
        slack = None if slack is None else curvature * slack
        upper = evaluate(self._spread(R), *self._norms, scaled, slack)
        return ray_bound(loss, P, R, self._lam, upper, repair_polar(loss, P, R, self._row_bounds))

    def _descends(self, fresh: Tensor) -> bool:
        """Return whether the curvature bounds the loss on the step."""
        loss, Z = self._loss, self._seen(self._Z)
        before, move = loss.value(Z), self._seen(fresh) - Z
        tangent = before + float((loss.gradient(Z) * move).sum())
        square = self._curvature * float(move.square().sum())
        return loss.value(Z + move) <= tangent + 0.5 * square * (1.0 + 1e-9) + 1e-12 * abs(before)

    def _seen(self, Z: Tensor) -> Tensor:
        support = self._loss.support
        return Z if support is None else Z[support.rows, support.cols]

    def _spread(self, R: Tensor) -> Tensor:
        support = self._loss.support
        if support is None:
            return R
        dense = torch.zeros_like(self._Z)
        dense[support.rows, support.cols] = R
        return dense

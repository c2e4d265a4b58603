"""Descent for structured factorization: accelerated proximal steps on each factor in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.proximal import initial_curvature, inside
from theodolite.core.params import Params, count
from theodolite.polar.factor_norm import FactorNorm

if TYPE_CHECKING:
    from theodolite.atoms.structured import StructuredAtom
    from theodolite.core.problem import Problem

_SWEEPS = 2000
_INNER = 5  # accelerated steps on one factor
_PATIENCE = 5  # sweeps that gain next to nothing


class _Descent:
    """What alternating steps keep: both factors, the predictions, a curvature and warm dual variables."""

    def __init__(self, atom: StructuredAtom, problem: Problem, params: Params) -> None:
        self.atom, self.problem, self.loss, self.lam = atom, problem, problem.loss, problem.lam
        self.norms = (atom.left, atom.right)
        self.factors = list(atom.effective(params))
        self.duals: list[Tensor | None] = [None, None]
        self.Z = problem.predictions(params)
        self.curvature = initial_curvature(self.loss, self.Z)
        self.keep(self.lengths())

    def lengths(self) -> Tensor:
        return self.norms[0](self.factors[0]) * self.norms[1](self.factors[1])

    def objective(self) -> float:
        return self.loss.value(self.Z) + self.lam * float(self.lengths().sum())

    def keep(self, size: Tensor) -> None:
        """Drop the pairs that vanished."""
        kept = size > 0.0
        if not bool(kept.all()):
            self.factors = [F[kept] for F in self.factors]
            self.duals = [None if d is None else d[kept] for d in self.duals]

    def half_step(self, side: int) -> None:
        """Lower the objective over one factor, the other fixed.

        The loss is majorized at the present predictions by its tangent plus curvature / 2 times the squared
        distance of the predictions, all of them; too small a curvature shows and is raised.
        """
        mover, other, norm = self.factors[side], self.factors[1 - side], self.norms[side]
        length = torch.linalg.vector_norm(other, dim=1)
        other, mover = other / length[:, None], mover * length[:, None]
        self.factors[side], self.factors[1 - side] = mover, other
        if self.duals[side] is not None:
            self.duals[side] = self.duals[side] * length[:, None]
        weights = self.lam * self.norms[1 - side](other)
        G = self.problem.matrix(self.loss.gradient(self.Z))
        pull = ((G if side == 0 else G.T) @ other.T).T
        gram = other @ other.T
        top = float(torch.linalg.eigvalsh(gram)[-1])
        value = self.loss.value(self.Z)
        while True:
            fresh, dual = _block(norm, mover, pull, gram, weights, self.curvature, top, self.duals[side])
            change = fresh - mover
            self.factors[side] = fresh
            Z = self.problem.predictions((self.factors[0], self.factors[1]))
            allowed = 0.5 * float(((gram @ change) * change).sum())
            bend = (
                self.loss.value(Z) - value - float((pull * change).sum())
                if inside(self.loss, Z)
                else math.inf
            )
            noise = 1e-13 * abs(value)
            if bend <= self.curvature * allowed + noise or self.curvature > 1e200:
                break
            self.curvature *= 2.0
        if allowed > 1e3 * noise:
            self.curvature = max(min(self.curvature, 1.2 * bend / allowed), 0.5 * self.curvature)
        self.duals[side], self.Z = dual, Z
        self.keep(fresh.any(1))


def _block(
    norm: FactorNorm,
    start: Tensor,
    pull: Tensor,
    gram: Tensor,
    weights: Tensor,
    curvature: float,
    top: float,
    dual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Take accelerated steps on ``<pull, X - start> + curvature / 2 ||X - start||_gram^2 + sum weights norm(X)``."""
    scale = 1.0 / (curvature * top)
    t = weights * scale
    X = point = start
    momentum = 1.0
    for _ in range(_INNER):
        slope = pull + curvature * (gram @ (point - start))
        fresh, dual = norm.prox(point - scale * slope, t, dual, tol=1e-9, max_iterations=40)
        if float(((point - fresh) * (fresh - X)).sum()) > 0.0:
            momentum, point = 1.0, fresh
        else:
            following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum * momentum))
            point, momentum = fresh + (momentum - 1.0) / following * (fresh - X), following
        X = fresh
    return X, dual


def descend(
    atom: StructuredAtom,
    problem: Problem,
    params: Params,
    *,
    tol: float,
    deadline: float,
    progress: Callable[[Params], None],
) -> Params:
    """Lower the objective (arguments as in `Atom.descend`).

    Each sweep takes accelerated proximal steps on U, then on V, and then tries to go further along the
    change of both, which is kept where the objective falls.  It stops where each of a few sweeps in a row
    gains less than a hundredth of tol, or of 1e-6.
    """
    state = _Descent(atom, problem, params)
    before, idle, reach = state.objective(), 0, 1.0
    for sweep in range(_SWEEPS):
        if not count((state.factors[0],)):
            break
        old = _balanced(state)
        for side in (0, 1):
            state.half_step(side)
            if not len(state.factors[0]):
                return atom.init(0)
        now = state.objective()
        new = _balanced(state)
        if len(new[0]) == len(old[0]):
            further = tuple(
                norm.effective(f + reach * (f - g)) for f, g, norm in zip(new, old, state.norms, strict=True)
            )
            Z = problem.predictions(further)
            value = math.inf
            if inside(problem.loss, Z):
                value = problem.loss.value(Z) + problem.lam * float(atom.theta(further).sum())
            if value < now:
                state.factors, state.Z, now, reach = list(further), Z, value, 1.5 * reach
                state.keep(state.lengths())
            else:
                reach = max(0.5 * reach, 0.1)
        if sweep % 10 == 0:
            progress((state.factors[0], state.factors[1]))
        idle = idle + 1 if before - now <= 1e-2 * max(tol, 1e-6) * abs(now) else 0
        before = now
        if idle >= _PATIENCE or time.monotonic() > deadline:
            break
    return _balanced(state)


def _balanced(state: _Descent) -> Params:
    """Return both factors with equal norms."""
    U, V = state.factors
    a, b = state.norms[0](U), state.norms[1](V)
    ratio = (b / a).sqrt()[:, None]
    return U * ratio, V / ratio

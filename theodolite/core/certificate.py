r"""What is proved about given subnetworks: objective, dual bound, gap, and a way to improve.

For every ``Q`` with :math:`\Omega^\circ(Q)\le\lambda`, any number of subnetworks of the family has
an objective of at least :math:`d(Q) = -\ell^*(-Q)`.  Here :math:`Q = tR`,
:math:`R = -\nabla\ell(Z)`, and t is at most lambda over a *proved upper bound* of the polar of R;
no local minimum is needed.  Where a family knows a better bound of its own, that counts.
Source: Fenchel and Young; Haeffele and Vidal, arXiv 1506.07540.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from theodolite.core.params import Params, count, select
from theodolite.linalg.dense import all_finite
from theodolite.linalg.lanczos import gamma
from theodolite.losses.rounding import ray_bound, repair_polar, value_error
from theodolite.value import Kind, Value, format_number, relative_gap

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

Verdict = Literal["closed", "improvable", "undecided"]


@dataclass(frozen=True)
class Certificate:
    """A proved bound on how much better any set of subnetworks of the family could be.

    Attributes
    ----------
    objective : float
        P, rounded up.
    dual_bound : float
        No set of subnetworks of the family, of any width, has a smaller objective: see `Atom.dual_bound`, too.
    gap : float
        ``(objective - dual_bound) / |objective|``, never negative; 0 where optimality is proved outright.
    polar : Value
        Bound of the polar of the residual R, which at an optimum is ``lam``.
    verdict : {"closed", "improvable", "undecided"}
        Gap <= tol; else one more unit, the polar's witness, lowers the objective by ``decrease``; else neither.
    decrease : float
        Evaluated (not predicted) decrease by the witness; 0 when there is none.
    stationarity : float
        ``(<R, Z> - lam Theta) / (lam Theta)``: 0 at every stationary point; 0 for no subnetworks.
    confidence : float
        Probability with which the dual bound holds; 1 unless a randomized bound entered.
    """

    objective: float
    dual_bound: float
    gap: float
    polar: Value
    lam: float
    tol: float
    verdict: Verdict
    decrease: float
    stationarity: float
    units: int
    confidence: float = 1.0
    kind: Kind = "bound"

    @property
    def polar_ratio(self) -> tuple[float, float]:
        """Both ends of the polar over lambda."""
        return self.polar.low / self.lam, self.polar.high / self.lam

    def __str__(self) -> str:
        low, high = format_number(self.polar_ratio[0], "down"), format_number(self.polar_ratio[1], "up")
        text = (
            f"{self.verdict}: objective {self.objective:.9g} with {self.units} units, "
            f"none of this family is below {self.dual_bound:.9g}\n"
            f"gap <= {format_number(100 * self.gap, 'up')} %, polar / lambda in [{low}, {high}]"
        )
        if self.verdict == "improvable":
            less = format_number(self.decrease, "down")
            text += f"\none more unit lowers the objective by {less}; it says nothing of the present width"
        return text + ("" if self.confidence == 1.0 else f"\nwith probability {self.confidence:.12g}")


def judge(gap: float, tol: float, decrease: float) -> Verdict:
    """Return the verdict that the numbers allow."""
    return "closed" if gap <= tol else "improvable" if decrease > 0.0 else "undecided"


def unbeaten(dual_bound: float, objective: float) -> float:
    """Return a dual bound, or raise where an attained objective refutes it; rounding is enclosed in both."""
    if dual_bound > objective:
        wrong = "the upper end of its polar, or its dual bound, is wrong"
        raise ArithmeticError(f"atom: {wrong}: an objective of {objective} refutes a bound of {dual_bound}")
    return dual_bound


def certify(
    problem: Problem, params: Params, *, tol: float, budget: float | None, seed: int, delta: float
) -> Certificate:
    """Return what is proved about subnetworks (see `Problem.certify`)."""
    loss, atom, lam = problem.loss, problem.atom, problem.lam
    Z, theta = problem.predictions(params), float(atom.theta(params).sum())
    objective, R = loss.value(Z) + lam * theta, -loss.gradient(Z)
    if not (math.isfinite(objective) and all_finite(R)):
        raise ValueError("params: expected finite predictions in the domain of the loss, got others")
    relative = gamma(atom.depth + count(params) + 1)
    error = value_error(loss, Z, R, relative * theta * problem.row_bounds) + relative * lam * theta
    repair, empty = repair_polar(loss, Z, R, problem.row_bounds), theta == 0.0 and not bool(Z.any())
    t = loss.smallest_t(R, objective + error - tol * abs(objective + error))
    polar = atom.polar(
        problem.matrix(R),
        target=lam - repair if empty else lam / t if t else None,
        budget=budget,
        starts=params if count(params) else None,
        seed=seed,
        delta=delta,
    )
    if empty and polar.high + repair <= lam:
        # Fenchel-Young is an equality at the residual of the zero model, which is optimal outright
        dual_bound, gap = objective - error, 0.0
    else:
        dual_bound = ray_bound(loss, Z, R, lam, polar.high, repair)
        gap = relative_gap(objective + error, dual_bound)
    confidence = polar.confidence
    if gap > tol:
        tenth, rest = None if budget is None else 0.1 * budget, max(delta + polar.confidence - 1.0, 0.0)
        other = atom.dual_bound(problem, params, tol=tol, budget=tenth, seed=seed, delta=rest)
        if other is not None and other.low > dual_bound:
            dual_bound, confidence = other.low, polar.confidence + other.confidence - 1.0  # union bound
            gap = relative_gap(objective + error, dual_bound)
    decrease = _decrease(problem, Z, polar, 4.0 * error) if gap > tol else 0.0
    return Certificate(
        objective=objective + error,
        dual_bound=unbeaten(dual_bound, objective + error),
        gap=gap,
        polar=polar,
        lam=lam,
        tol=tol,
        verdict=judge(gap, tol, decrease),
        decrease=decrease,
        stationarity=float((R * Z).sum()) / (lam * theta) - 1.0 if theta else 0.0,
        units=count(params),
        confidence=confidence,
    )


def _decrease(problem: Problem, Z: Tensor, polar: Value, noise: float) -> float:
    """Return by how much the first witness, at the best of some scales, lowers the objective; 0 for noise."""
    if polar.witness is None or polar.low <= problem.lam:
        return 0.0
    first = select(polar.witness, slice(0, 1))
    F, cost = problem.predictions(first), problem.lam * float(problem.atom.theta(first).sum())
    best, start = 0.0, problem.loss.value(Z)
    bend = problem.loss.smoothness(Z) * float(F.square().sum())  # which may underflow
    step = (polar.low - problem.lam) / bend if bend else 1.0
    while (gain := start - problem.loss.value(Z + step * F) - step * cost) > best:
        best, step = gain, 2.0 * step  # convex along the ray: double as long as it helps
    return best if best > noise else 0.0

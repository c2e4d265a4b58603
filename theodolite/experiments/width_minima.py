"""Narrow networks end in bad minima; a network that may grow ends at the certified optimum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from theodolite.atoms import ReLUAtom
from theodolite.core.descend import descend
from theodolite.core.params import count
from theodolite.core.problem import Problem
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.losses import SquaredLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
CLOSED = 1e-3
STUCK = 0.01  # above the certified bound, relatively
KNOWN = 4.154844  # the exact optimum of the planted problem, by the convex program over all patterns


class WidthMinima(Experiment):
    """Fixed widths from random starts against the meta-algorithm that grows and certifies."""

    name = "width-minima"
    title = "Width against bad minima of two-layer ReLU networks"
    statement = (
        r"At a fixed width $r$, descent on $\frac12\|Y-\sum_{i\le r}\mathrm{relu}(Xw_i)u_i\|^2+\frac\lambda2\sum_i"
        r"(\|w_i\|^2+\|u_i\|^2)$ from random starts ends in local minima whose objective varies, the more the narrower the "
        r"network is. Adding a unit where the polar of the residual exceeds $\lambda$ lowers the objective until the polar "
        r"is $\lambda$: the gap closes, and no network of any width has a lower objective."
    )
    reference = "haeffele2015global,pilanci2020neural"
    needs: ClassVar[str | None] = None

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train many narrow networks, and one that may grow, on planted and on real data."""
        starts, widths = (12, WIDTHS[:6:2]) if fast else (30, WIDTHS)
        sets = {"planted": planted(), "breast cancer": breast_cancer(100 if fast else 150)}
        numbers: dict[str, Any] = {"widths": list(widths), "starts": starts, "sets": {}}
        claims: list[Claim] = []
        for name, problem in sets.items():
            progress(f"{name}: certify the optimum")
            solution = problem.solve(tol=CLOSED, budget=60)
            certificate = solution.certificate
            found: dict[str, Any] = {
                "lambda": problem.lam,
                "objective": certificate.objective,
                "dual_bound": certificate.dual_bound,
                "gap": certificate.gap,
                "units": count(solution.params),
                "verdict": certificate.verdict,
                "ends": {},
            }
            for width in widths:
                progress(f"{name}: {starts} starts of width {width}")
                found["ends"][str(width)] = ends(problem, width, starts)
            numbers["sets"][name] = found
            claims += claims_of(name, found)
        gap = abs(numbers["sets"]["planted"]["objective"] / KNOWN - 1.0)
        claims.append(
            Claim(f"planted: the objective is the exact optimum, {KNOWN}, to {CLOSED:g}", gap <= CLOSED, gap)
        )
        return Result(claims, numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the excess of every start over the certified bound, by width."""
        axes = figure.subplots(1, len(numbers["sets"]), sharey=True)
        for axis, (name, found) in zip(axes, numbers["sets"].items(), strict=True):
            bound, places = found["dual_bound"], range(len(numbers["widths"]))
            for place, width in zip(places, numbers["widths"], strict=True):
                excess = [max(value / bound - 1.0, 1e-5) for value in found["ends"][str(width)]]
                spread = [place + 0.5 * (i / max(1, len(excess) - 1) - 0.5) for i in range(len(excess))]
                axis.semilogy(spread, excess, ".", color="C3", ms=3, alpha=0.7)
                axis.semilogy([place - 0.3, place + 0.3], [float(np.median(excess))] * 2, color="0.2", lw=1.2)
            certified = max(found["objective"] / bound - 1.0, 1e-5)
            axis.axhline(certified, color="C0", lw=1.4, label=f"certified, {found['units']} units")
            axis.set(title=name, xlabel="fixed width (dots: random starts, bars: medians)")
            axis.set_xticks(list(places), [str(width) for width in numbers["widths"]])
            axis.legend(fontsize=8, loc="upper right")
        axes[0].set_ylabel("objective / certified bound - 1, at least 1e-5")


def planted() -> Problem:
    """Return 50 points in the plane labeled by four ReLU units and noise, lambda = 1."""
    rng = np.random.default_rng(0)
    X, A = rng.standard_normal((50, 2)), rng.standard_normal((2, 4))
    y = np.maximum(X @ A, 0.0) @ np.array([1.0, -1.0, 1.0, -1.0]) + 0.1 * rng.standard_normal(50)
    return Problem(SquaredLoss(y[:, None]), ReLUAtom(X, 1), 1.0)


def breast_cancer(rows: int) -> Problem:
    """Return the first two principal components of the tumors, and a bias, labeled -1 or 1."""
    data = load_breast_cancer()
    X = (data.data - data.data.mean(0)) / data.data.std(0)
    X = X @ np.linalg.svd(X, full_matrices=False)[2][:2].T
    X, y = X[:rows] / X.std(0), 2.0 * data.target[:rows, None] - 1.0
    loss, atom = SquaredLoss(y, scale=1.0 / rows), ReLUAtom(X, 1, bias=True)
    return Problem(loss, atom, 0.01 * Problem(loss, atom, 1.0).lambda_max().high)


def ends(problem: Problem, width: int, starts: int) -> list[float]:
    """Return the objectives at which descent from random starts of one width ends, in increasing order."""
    size = math.sqrt(problem.loss.value(problem.loss.zeros()) / width)
    reached = []
    for seed in range(starts):
        start = problem.atom.init(width, seed)
        start = problem.atom.scale(start, torch.full((width,), min(size, 1.0), dtype=torch.float64))
        with torch.no_grad():
            end = descend(problem, start, tol=1e-7, deadline=math.inf, progress=_nothing)
        reached.append(problem.objective(end))
    return sorted(reached)


def _nothing(params: tuple[Tensor, ...]) -> None:
    """Nobody watches."""


def claims_of(name: str, found: dict[str, Any]) -> list[Claim]:
    """Return what is claimed of one data set."""
    bound, everything = found["dual_bound"], [v for values in found["ends"].values() for v in values]
    narrow, *_, wide = found["ends"].values()
    stuck = [
        sum(value > (1.0 + STUCK) * bound for value in values) / len(values) for values in (narrow, wide)
    ]
    enough = next((w for w in found["ends"] if int(w) >= found["units"]), list(found["ends"])[-1])
    trapped = [value > (1.0 + STUCK) * bound for value in found["ends"][enough]]
    least = min(everything) / bound - 1.0
    medians = [float(np.median(values)) / bound - 1.0 for values in (narrow, wide)]
    return [
        Claim(
            f"{name}: the meta-algorithm closes the gap to <= {CLOSED:g}",
            found["gap"] <= CLOSED,
            found["gap"],
        ),
        Claim(
            f"{name}: every start of the least width ends more than {STUCK:.0%} above the bound",
            stuck[0] == 1.0,
            f"{stuck[0]:.0%}",
        ),
        Claim(
            f"{name}: so do >= 5 % of those of width {enough}, about the certified network's",
            sum(trapped) >= 0.05 * len(trapped),
            f"{sum(trapped)} of {len(trapped)}",
        ),
        Claim(
            f"{name}: the median excess of the largest width is <= 0.2 of that of the least",
            medians[1] <= 0.2 * medians[0],
            medians[1] / medians[0],
        ),
        Claim(f"{name}: no start of any width falls below the bound", least >= 0.0, least),
    ]

"""Convolutional networks on digits, trained and proved close to the best of any width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.atoms import ConvReLUAtom
from theodolite.core.descend import descend
from theodolite.core.params import Params, count
from theodolite.core.problem import Problem
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.losses import SquaredLoss
from theodolite.polar.branch_and_bound import Step, branch_and_bound
from theodolite.value import relative_gap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.1  # of lambda_max
ACCURACY, HELD_OUT_ACCURACY = 0.9, 0.85  # to be reached, on the images that were fitted and on others
STATIONARY = 1e-6
WIDTH = 12  # of networks that are trained by gradients alone
FILTERS = 12  # drawn of each case


@dataclass(frozen=True)
class Case:
    """A family of filters and what is wanted of its certificate.

    Attributes
    ----------
    name : str
    kernel : int
    basis : str or None
    gap : float or None
        To be certified; None where nothing small is in reach.
    seconds : float
        For the solution with its certificate.
    """

    name: str
    kernel: int
    basis: str | None
    gap: float | None
    seconds: float


CASES = (
    Case("2 x 2 filters", 2, None, 3e-3, 120.0),
    Case("3 x 3, 5 principal directions", 3, "pca", 1e-2, 300.0),
    Case("3 x 3 filters", 3, None, None, 60.0),
)


class CertifiedConvolution(Experiment):
    """Digits: a network of few filters, and the proof that no larger one has a much lower objective."""

    name = "certified-convolution"
    title = "A convolutional network with a certified optimality gap"
    statement = (
        r"Networks convolution, ReLU, average pooling, linear layer minimize "
        r"$\frac1{2n}\|Y-Z\|_F^2+\lambda\sum_j\|w_j\|\|U_j\|_F$ over the filters, the output weights and the width. "
        r"The polar of the residual is a maximum over one filter $w$, so that branch and bound in as many "
        r"dimensions as a filter has bounds the gap: closely up to five of them, loosely for free filters of $3\times3$."
    )
    reference = "haeffele2015global, sahiner2021vector"
    needs: ClassVar[str | None] = None

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train and certify each family of filters."""
        images, labels = digits(200 if fast else None)
        solved = []
        for case in CASES[:1] if fast else CASES:
            solved.append(solve(case, images, labels, progress))
        progress("networks of a fixed width, by gradients alone")
        others = restarts(CASES[0], images, labels, solved[0]["lambda"], seeds=2 if fast else 5)
        numbers = {"images": len(labels), "share": SHARE, "cases": solved, "restarts": others}
        return Result(claims(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw how the bounds close with time, and the filters."""
        shown = numbers["cases"][:2]
        grid = figure.add_gridspec(
            2 * len(shown), 1 + FILTERS // 2, width_ratios=[6.0] + [1.0] * (FILTERS // 2)
        )
        left = figure.add_subplot(grid[:, 0])
        ratios = left.twinx()
        for k, case in enumerate(numbers["cases"]):
            gaps = [100.0 * max(gap, 1e-6) for gap in case["path"]["gaps"]]
            left.loglog(case["path"]["seconds"], gaps, color=f"C{k}", lw=1.4, label=case["name"])
            ratios.loglog(
                case["path"]["seconds"],
                case["path"]["polar_ratios"],
                color=f"C{k}",
                lw=1.0,
                ls=":",
            )
            text = f"{100.0 * case['path']['gaps'][-1]:.2g} %"
            end = case["path"]["seconds"][-1], gaps[-1]
            left.annotate(
                text, end, fontsize=8, color=f"C{k}", ha="right", xytext=(-4, -4), textcoords="offset points"
            )
        left.set_xlim(left=0.05)
        left.set(xlabel="seconds of the proof", ylabel="certified gap of the objective (%), full lines")
        ratios.set_ylabel(r"proved polar / $\lambda$, dotted")
        left.legend(fontsize=8, loc="lower left")
        for k, case in enumerate(shown):
            top = max(abs(x) for one in case["filters"] for row in one for x in row)
            for j, (one, theta) in enumerate(zip(case["filters"], case["theta"], strict=False)):
                row, column = divmod(j, FILTERS // 2)
                ax = figure.add_subplot(grid[2 * k + row, 1 + column])
                ax.set_axis_off()
                ax.imshow(one, cmap="RdBu", vmin=-top, vmax=top)
                ax.set_title(f"{theta / sum(case['theta']):.0%}", fontsize=8, pad=2)
                if j == 0:
                    place = (0.0, 1.45)
                    ax.annotate(case["name"], place, xycoords="axes fraction", fontsize=8, color=f"C{k}")


def digits(n: int | None) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 8, 8), pixels / 16, and labels."""
    data = load_digits()
    return torch.tensor(data.images[:n])[:, None] / 16.0, torch.tensor(data.target[:n])


def problem_of(case: Case, images: Tensor, labels: Tensor, lam: float) -> Problem:
    """Return the problem of a family of filters, squared loss of centered one-hot targets, mean over the images."""
    targets = torch.nn.functional.one_hot(labels, 10).double()
    loss = SquaredLoss(targets - targets.mean(0), scale=1.0 / len(labels))
    return Problem(loss, ConvReLUAtom(images, 10, case.kernel, basis=case.basis), lam)


def accuracy(problem: Problem, params: Params, labels: Tensor, images: Tensor | None = None) -> float:
    """Return the share of right labels of the problem's images, or of others."""
    Z = problem.atom.phi(params, images)
    return float((Z.argmax(1) == labels).double().mean())


def solve(case: Case, images: Tensor, labels: Tensor, progress: Progress) -> dict[str, Any]:
    """Train and certify on all images, then train on three quarters of them for the held-out accuracy."""
    progress(f"{case.name}: training and proof")
    zero = problem_of(case, images, labels, 1.0)
    lam = SHARE * zero.lambda_max(budget=2.0).low
    problem = Problem(zero.loss, zero.atom, lam)
    solution = problem.solve(tol=case.gap or 1e-3, budget=case.seconds)
    params, c = solution.params, solution.certificate
    progress(f"{case.name}: the proof alone, as it proceeds")
    path = proof(problem, params, c.polar_ratio[1], case.seconds)
    progress(f"{case.name}: held-out images")
    order = np.random.default_rng(0).permutation(len(labels))
    held, fitted = order[: len(labels) // 4], order[len(labels) // 4 :]
    part = problem_of(case, images[fitted], labels[fitted], lam)
    trained = part.atom.descend(part, part.atom.init(0), tol=1e-3, deadline=math.inf, progress=lambda _: None)
    theta = problem.atom.theta(params)
    largest = theta.argsort(descending=True)
    assert isinstance(problem.atom, ConvReLUAtom)
    filters = problem.atom.filters(torch.nn.functional.normalize(params[0][largest]))[:FILTERS, 0]
    return {
        "name": case.name,
        "dimensions": problem.atom.width,
        "lambda": lam,
        "wanted_gap": case.gap,
        "units": count(params),
        "objective": c.objective,
        "dual_bound": c.dual_bound,
        "gap": c.gap,
        "polar_ratio": c.polar_ratio,
        "stationarity": c.stationarity,
        "seconds": solution.history[-1].seconds,
        "accuracy": accuracy(problem, params, labels),
        "held_out_accuracy": accuracy(part, trained, labels[held], images[held]),
        "filters": filters.tolist(),
        "theta": theta[largest].tolist(),
        "path": path,
    }


def proof(problem: Problem, params: Params, wanted: float, seconds: float) -> dict[str, list[float]]:
    """Return how branch and bound proceeds: boxes, seconds, the proved polar over lambda, and the gap that it implies.

    It ends when the polar is proved to be at most ``wanted`` times lambda.
    """
    atom, loss, lam = problem.atom, problem.loss, problem.lam
    assert isinstance(atom, ConvReLUAtom)
    rows, steps = atom.rows, list[Step]()
    R = -loss.gradient(problem.predictions(params))
    size = math.ldexp(1.0, rows.exponent)
    starts = torch.nn.functional.normalize(params[0])
    found = branch_and_bound(
        rows.X,
        rows.weights(R),
        cells=rows.cells,
        target=wanted * lam / size,
        budget=seconds,
        starts=starts,
        callback=steps.append,
    )
    size *= found.low / steps[-1].lower  # the steps are of a scaled problem
    P, chosen = problem.objective(params), np.unique(np.geomspace(1, len(steps), 200).astype(int)) - 1
    uppers = [steps[i].upper * size for i in chosen]
    return {
        "boxes": [steps[i].boxes for i in chosen],
        "seconds": [steps[i].seconds for i in chosen],
        "polar_ratios": [upper / lam for upper in uppers],
        "gaps": [relative_gap(P, loss.best_t(R, upper=lam / upper)[1]) for upper in uppers],
    }


def restarts(case: Case, images: Tensor, labels: Tensor, lam: float, seeds: int) -> list[float]:
    """Return the objectives that gradients alone reach, from random starts at a fixed width."""
    problem = problem_of(case, images, labels, lam)
    objectives = []
    for seed in range(seeds):
        start = problem.atom.init(WIDTH, seed=seed)
        found = descend(problem, start, tol=1e-3, deadline=math.inf, progress=lambda _: None)
        objectives.append(problem.objective(found))
    return objectives


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    found = []
    for case in numbers["cases"]:
        name = case["name"]
        if case["wanted_gap"] is not None:
            wanted = case["wanted_gap"]
            text = f"{name}: the certified gap is <= {100 * wanted:g} %"
            found.append(Claim(text, case["gap"] <= wanted, case["gap"]))
        found += [
            Claim(
                f"{name}: accuracy >= {ACCURACY:.0%} on the images fitted, >= {HELD_OUT_ACCURACY:.0%} on others",
                case["accuracy"] >= ACCURACY and case["held_out_accuracy"] >= HELD_OUT_ACCURACY,
                f"{case['accuracy']:.3f} and {case['held_out_accuracy']:.3f} with {case['units']} filters",
            ),
            Claim(
                f"{name}: stationary, |<R, Z> / (lambda Theta) - 1| <= {STATIONARY:g}",
                abs(case["stationarity"]) <= STATIONARY,
                abs(case["stationarity"]),
            ),
            Claim(
                f"{name}: 0 <= objective - dual bound, and the polar found by search is <= its proved bound",
                case["dual_bound"] <= case["objective"] and case["polar_ratio"][0] <= case["polar_ratio"][1],
                f"gap {case['gap']:.3g}, polar / lambda in "
                f"[{case['polar_ratio'][0]:.6g}, {case['polar_ratio'][1]:.6g}]",
            ),
        ]
    first, others = numbers["cases"][0], numbers["restarts"]
    found.append(
        Claim(
            f"{first['name']}: {len(others)} networks of {WIDTH} filters trained by gradients alone "
            "are not below the bound",
            min(others) >= first["dual_bound"],
            min(relative_gap(value, first["dual_bound"]) for value in others),
        )
    )
    return found

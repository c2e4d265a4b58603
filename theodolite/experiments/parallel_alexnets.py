"""Several small AlexNets side by side: the more of them, the nearer training comes to the best."""

from __future__ import annotations

import math
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from theodolite.atoms import ModuleAtom
from theodolite.core.descend import descend
from theodolite.core.params import Params, count, select
from theodolite.core.problem import Problem
from theodolite.core.repair import reweight
from theodolite.experiments._images import images
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.losses import CrossEntropyLoss
from theodolite.models import AlexNet
from theodolite.nn import ParallelSubnetworks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.005  # of the polar at zero that ascent attains
ASCENT = 15  # steps of a start
START = 5.0  # fall of the loss that a start promises, to first order
SECONDS = 60  # of one descent, at most


class ParallelAlexNets(Experiment):
    """Fixed numbers of subnetworks against the best; growth, pruning, and what is certified."""

    name = "parallel-alexnets"
    title = "Parallel AlexNets: the training gap against the number of subnetworks"
    statement = (
        r"A sum of $r$ AlexNets of degree 8 is trained on images with $\ell + \lambda\sum_{i\le r}\prod_{l\le 8}\|W_i^l\|_F$. "
        r"A local minimum with a zero subnetwork would be global. Random starts end the nearer to the best objective "
        r"the larger $r$ is; from a single subnetwork, the witnesses of the polar are directions that lower the "
        r"objective. The certificate's upper end, a product of norms, does not close the gap."
    )
    reference = "haeffele2015global,haeffele2017global"
    needs: ClassVar[str | None] = None

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train, grow, prune and certify."""
        rows, counts, seeds, tol = (24, (1, 4), 1, 0.02) if fast else (100, (1, 2, 4, 8), 2, 0.02)
        seconds = 2.0 if fast else 8.0  # for a search of directions
        x, y, source = images(rows)
        make = partial(AlexNet, 1, x.shape[-1], 10, width=2)
        loss, atom = CrossEntropyLoss(y, 10, scale=1.0 / rows), ModuleAtom(make, x, starts=8)
        progress("the polar at zero")
        top = Problem(loss, atom, 1.0).lambda_max()
        problem = Problem(loss, atom, SHARE * top.low)
        trained: dict[str, list[dict[str, Any]]] = {}
        first: Params = atom.init(0)
        for r in counts:
            trained[str(r)] = []
            for seed in range(seeds):
                progress(f"{r} subnetworks, start {seed + 1} of {seeds}")
                start = directions(problem, r, seed)
                end = train(problem, start, tol)
                trained[str(r)].append(described(problem, end, y))
                first = end if r == 1 and not seed else first
        progress("growth from one subnetwork")
        grown, way = grow(problem, first, tol, rounds=1 if fast else 5, seconds=seconds)
        progress("the certificate")
        certificate = problem.certify(grown, budget=seconds)
        numbers = {
            "source": source,
            "rows": rows,
            "lambda": problem.lam,
            "lambda_max": [top.low, top.high],
            "degree": atom.degree,
            "trained": trained,
            "growth": way,
            "verdict": certificate.verdict,
            "gap": certificate.gap,
            "dual_bound": max(certificate.dual_bound, 0.0),
            "polar_ratio": list(certificate.polar_ratio),
            "pruned": pruned(atom, make, grown),
        }
        return Result(claims_of(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the objectives against the number of subnetworks, and along growth."""
        left, right = figure.subplots(1, 2)
        counts = [int(r) for r in numbers["trained"]]
        best = best_of(numbers)
        for r, ends in zip(counts, numbers["trained"].values(), strict=True):
            left.plot([r] * len(ends), [end["objective"] for end in ends], ".", color="C3", ms=6)
        means = [sum(e["objective"] for e in ends) / len(ends) for ends in numbers["trained"].values()]
        left.plot(counts, means, color="C3", lw=1.2, label="random starts, mean")
        left.axhline(best, color="0.3", ls="--", lw=1.0, label="best found")
        left.axhline(numbers["dual_bound"], color="C0", ls=":", lw=1.2, label="certified lower bound")
        left.set(xlabel="subnetworks r", ylabel="objective", title=numbers["source"])
        left.legend(fontsize=8)
        way = numbers["growth"]
        right.plot(
            [step["units"] for step in way], [step["objective"] for step in way], "o-", color="C2", ms=4
        )
        right.axhline(best, color="0.3", ls="--", lw=1.0)
        for step in way:
            ratio = f"{step['polar_low'] / numbers['lambda']:.3g}"
            right.annotate(
                ratio,
                (step["units"], step["objective"]),
                fontsize=8,
                textcoords="offset points",
                xytext=(4, 4),
            )
        right.set(xlabel="subnetworks, grown (numbers: polar / lambda)", ylabel="objective")


def directions(problem: Problem, r: int, seed: int) -> Params:
    """Return r of 4 r random subnetworks after a few steps up <Q, phi> / theta: zero itself is stationary."""
    atom = problem.atom
    Q, found = -problem.loss.gradient(problem.loss.zeros()).flatten(), atom.init(4 * r, 1000 * seed + r)
    for _ in range(ASCENT):
        leaves = tuple(p.requires_grad_() for p in found)
        with torch.enable_grad():
            ratio = (atom.each(leaves) @ Q) / atom.theta(leaves)
            slopes = torch.autograd.grad(ratio.sum(), leaves)
        moved = []
        for p, g in zip(found, slopes, strict=True):
            axes = tuple(range(1, p.ndim))
            length = g.square().sum(axes, keepdim=True).sqrt().clamp(min=1e-300)
            moved.append((p + 0.3 * p.square().sum(axes, keepdim=True).sqrt() * g / length).detach())
        found = tuple(moved)
    found = atom.scale(found, 1.0 / atom.theta(found))
    values = atom.each(found) @ Q
    best = values.argsort(descending=True)[:r]
    return atom.scale(select(found, best), START / (r * values[best].clamp(min=0.1 * float(values.max()))))


def train(problem: Problem, start: Params, tol: float) -> Params:
    """Return where descent leads."""
    with torch.no_grad():
        return descend(problem, start, tol=tol, deadline=time.monotonic() + SECONDS, progress=_nothing)


def _nothing(params: tuple[Tensor, ...]) -> None:
    """Nobody watches."""


def described(problem: Problem, params: Params, y: Tensor) -> dict[str, Any]:
    """Return objective, training accuracy and the number of subnetworks that are not zero."""
    theta = problem.atom.theta(params)
    accuracy = (problem.predictions(params).argmax(1) == y).double().mean()
    return {
        "objective": problem.objective(params),
        "accuracy": float(accuracy),
        "alive": int((theta > 1e-6 * theta.sum()).sum()),
    }


def grow(
    problem: Problem, params: Params, tol: float, *, rounds: int, seconds: float
) -> tuple[Params, list[dict[str, Any]]]:
    """Descend after the witnesses of the polar are added, with the best weights; return the end and each step."""
    way = []
    for seed in range(rounds + 1):
        certificate = problem.certify(params, budget=seconds, seed=seed)
        way.append(
            {
                "units": count(params),
                "objective": problem.objective(params),
                "polar_low": certificate.polar.low,
                "decrease": certificate.decrease,
            }
        )
        if seed == rounds or certificate.decrease == 0.0 or certificate.polar.witness is None:
            break
        with torch.no_grad():
            more = reweight(problem, params, certificate.polar.witness)
        params = train(problem, more, tol)
    return params, way


def pruned(atom: ModuleAtom, make: Any, params: Params) -> dict[str, Any]:
    """Return what becomes of the trained network, as a module, when a zero subnetwork is added and pruned."""
    net = ParallelSubnetworks(make, 0).double()
    for module in atom.modules(params):
        net.grow(module)
    empty = net.grow()
    for p in empty.parameters():
        torch.nn.init.zeros_(p)
    with torch.no_grad():
        before = net(atom.X)
        removed = net.prune()
        after = net(atom.X)
        error = float((after - atom.phi(params)).abs().max())
    return {"removed": len(removed), "change": float((after - before).abs().max()), "module_error": error}


def best_of(numbers: dict[str, Any]) -> float:
    """Return the least objective found."""
    ends = [end["objective"] for group in numbers["trained"].values() for end in group]
    return min([*ends, *(step["objective"] for step in numbers["growth"])])


def claims_of(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    groups, best, way = list(numbers["trained"].values()), best_of(numbers), numbers["growth"]
    gaps = [min(end["objective"] for end in ends) / best - 1.0 for ends in (groups[0], groups[-1])]
    accuracy = max(end["accuracy"] for end in groups[-1])
    steps = [1.0 - b["objective"] / a["objective"] for a, b in pairwise(way)]
    least = min((step["polar_low"] for step in way[:-1]), default=math.nan) / numbers["lambda"]
    low, high = numbers["polar_ratio"]
    change, error = numbers["pruned"]["change"], numbers["pruned"]["module_error"]
    return [
        Claim(
            "the network is proved to be homogeneous of degree 8", numbers["degree"] == 8, numbers["degree"]
        ),
        Claim(
            "the best start of the most subnetworks has <= 0.5 of the gap to the best objective that one subnetwork's has",
            gaps[1] <= 0.5 * gaps[0],
            f"{gaps[1]:.3g} against {gaps[0]:.3g}",
        ),
        Claim("and reach a training accuracy >= 0.7", accuracy >= 0.7, accuracy),
        Claim("each witness found along growth has polar / lambda > 1", least > 1.0, least),
        Claim(
            "each growth by witnesses lowers the objective",
            bool(steps) and min(steps) > 0.0,
            min(steps, default=0.0),
        ),
        Claim(
            "the certificate is honest: its bound is below the best, and what it cannot close it does not call closed",
            0.0 <= numbers["dual_bound"] <= best
            and (numbers["verdict"] == "closed") == (numbers["gap"] <= 1e-3),
            f"{numbers['verdict']}, polar / lambda in [{low:.3g}, {high:.3g}]",
        ),
        Claim(
            "pruning a zero subnetwork changes the outputs by <= 1e-12",
            numbers["pruned"]["removed"] == 1 and change <= 1e-12,
            change,
        ),
        Claim("the modules compute what was certified, to 1e-9", error <= 1e-9, error),
    ]

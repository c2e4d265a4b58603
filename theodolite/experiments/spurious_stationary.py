"""A spurious stationary point of a small fixed rank, and how growing the rank escapes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.atoms import MatrixAtom
from theodolite.core.descend import descend
from theodolite.core.params import Params, count, select
from theodolite.core.problem import Problem
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.losses import MaskedSquaredLoss, SquaredLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIKES = (2.0, 1.5)  # what each of two groups of users gives to its own films; 0 to the other group's
LAM = 0.1
CLOSED = 1e-5
OBSERVED = 0.2
SHARE = 0.15  # of lambda_max, on the digits


class SpuriousStationary(Experiment):
    """Weight decay at a fixed small rank stops at a strict local minimum; the certificate sees it."""

    name = "spurious-stationary"
    title = "A spurious local minimum of a small rank, and the way out"
    statement = (
        r"At a fixed rank $r$, $\frac12\|M\odot(Y-UV^\top)\|_F^2+\frac\lambda2(\|U\|_F^2+\|V\|_F^2)$ has strict local "
        r"minima that are not global. The polar of the residual, $\Omega^\circ(R)=\sigma_{\max}(R)>\lambda$, tells so, and its "
        r"witness, the leading pair of singular vectors, is the column to add; growing the rank so lowers the "
        r"objective until $\Omega^\circ(R)=\lambda$, where the gap is 0 and no rank has a lower objective."
    )
    reference = "haeffele2015global"
    needs: ClassVar[str | None] = None

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Construct, verify and escape; then do the same from random starts on digits."""
        progress("the constructed minimum")
        toy, point = constructed()
        near = basin(toy, point, starts=100 if fast else 400)
        way = grow(toy, point)
        progress("a saddle of the fully observed digits")
        saddle = nonleading_pair(rows=200 if fast else 600)
        rows, starts, rank = (200, 3, 2) if fast else (400, 5, 2)
        digits = masked_digits(rows)
        ways = []
        for seed in range(starts):
            progress(f"digits, start {seed + 1} of {starts}")
            ways.append(grow(digits, random_start(digits, rank, seed)))
        numbers = {
            "lambda": LAM,
            "minimum": near | {"objective": way.objectives[0], "rank_one_global": rank_one_global()},
            "toy": way.to_dict(),
            "saddle": saddle,
            "digits": {
                "rows": rows,
                "observed": OBSERVED,
                "lambda": digits.lam,
                "start_rank": rank,
                "ways": [way.to_dict() for way in ways],
            },
        }
        return Result([*minimum_claims(near, way), *saddle_claims(saddle), *digits_claims(ways)], numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the excess over the certified bound by iterations, and the certificate by rank."""
        left, right = figure.subplots(1, 2)
        ratio = right.twinx()
        runs = [("4 x 4, from the constructed minimum", numbers["toy"], "C3")]
        runs.append(("digits, from a random start of rank 2", numbers["digits"]["ways"][0], "C0"))
        for label, way, color in runs:
            bound = max(way["dual_bounds"])
            excess = [max(value - bound, 1e-9 * abs(bound)) / abs(bound) for value in way["trace"]]
            steps = range(1, len(excess) + 1)
            left.loglog(steps, excess, color=color, label=label, lw=1.2)
            left.plot(
                [steps[i] for i in way["grown_at"]],
                [excess[i] for i in way["grown_at"]],
                "o",
                color=color,
                ms=4,
            )
            right.semilogy(
                way["ranks"], [max(gap, 1e-9) for gap in way["gaps"]], "o-", color=color, ms=4, lw=1.2
            )
            ratio.semilogy(way["ranks"], way["polar_ratios"], "x:", color=color, ms=5, lw=1.0)
        left.set(xlabel="iterations (dots: a column is added)", ylabel="(objective - bound) / bound")
        left.legend(fontsize=8, loc="upper right")
        right.set(xlabel="rank", ylabel="certified gap (dots)")
        ratio.set_ylabel(r"polar / $\lambda$ (crosses)")


# --- the constructed minimum


def constructed() -> tuple[Problem, Params]:
    r"""Return the 4 x 4 problem and its spurious minimum of rank one.

    Two groups of two users rate two films each.  Between groups all is observed and 0; within a
    group each user rated one film.  A rank-one model serves one group; serving the one that likes
    less is a strict local minimum, because to turn to the other it must first predict nonzero between groups.
    At :math:`u=v=\sqrt s\,(0,0,1,1)`, :math:`s=b-\lambda`, the Hessian's eigenvalues along the other
    group's entries are :math:`2s+\lambda\pm a`, and the least of all is :math:`2\lambda`, along the rescaling
    of u against v; with a = 2 and b = 1.5 they are .9 and .2.
    """
    a, b = LIKES
    Y = torch.diag(torch.tensor([a, a, b, b], dtype=torch.float64))
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    rows, cols = (~blocks | torch.eye(4, dtype=torch.bool)).nonzero(as_tuple=True)
    problem = Problem(MaskedSquaredLoss(rows, cols, Y[rows, cols], (4, 4)), MatrixAtom((4, 4)), LAM)
    u = math.sqrt(b - LAM) * torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    return problem, (u, u.clone())


def rank_one_global() -> float:
    """Return the objective of the rank-one model that serves the other group."""
    a, b = LIKES
    return b**2 + LAM**2 + 2.0 * LAM * (a - LAM)


def penalized(problem: Problem, params: Params) -> Tensor:
    """Return the objective with weight decay, differentiable, of a squared loss."""
    U, V = params
    residual = problem.loss.gradient(problem.atom.predict(params, problem.loss.support))
    return 0.5 * residual.square().sum() + 0.5 * problem.lam * (U.square().sum() + V.square().sum())


def basin(problem: Problem, point: Params, *, starts: int, radius: float = 0.2) -> dict[str, Any]:
    """Return gradient, Hessian and return rate of a stationary point of rank one.

    The Hessian of the objective *with weight decay* is taken, in which a rescaling
    (c u, v / c) costs, so that a strict minimum has a positive definite one.
    """
    n = point[0].numel()

    def objective(flat: Tensor) -> Tensor:
        return penalized(problem, (flat[None, :n], flat[None, n:]))

    flat = torch.cat([p.flatten() for p in point])
    with torch.enable_grad():
        gradient = torch.autograd.functional.jacobian(objective, flat)
        hessian = torch.autograd.functional.hessian(objective, flat)
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(starts, flat.numel(), dtype=torch.float64, generator=generator)
    points = flat + radius * flat.norm() * moves / moves.norm(dim=1, keepdim=True)
    for _ in range(1000):  # short steps of plain gradient descent do not leave a basin
        points = points - 0.1 * slopes(problem, points)
    distance = (points - flat).norm(dim=1)
    return {
        "gradient": float(gradient.norm()),
        "least_eigenvalue": float(torch.linalg.eigvalsh(hessian)[0]),
        "starts": starts,
        "radius": radius,
        "returned": int((distance < 1e-6).sum()),
        "farthest": float(distance.max()),
    }


def slopes(problem: Problem, points: Tensor) -> Tensor:
    """Return the gradients of the objective with weight decay at many points (u, v) of rank one, a row each."""
    support = problem.loss.support
    assert support is not None
    U, V = points.chunk(2, dim=1)
    u, v = U[:, support.rows], V[:, support.cols]
    R = u * v + problem.loss.gradient(problem.loss.zeros())  # a squared loss: minus the data at zero
    gradient = problem.lam * points
    gradient.index_add_(1, support.rows, R * v)
    return gradient.index_add_(1, U.shape[1] + support.cols, R * u)


def minimum_claims(near: dict[str, Any], way: Way) -> list[Claim]:
    """Return what is claimed of the constructed minimum."""
    least, returned = near["least_eigenvalue"], near["returned"]
    better, lowered = rank_one_global() / way.objectives[0], 1.0 - way.objectives[-1] / way.objectives[0]
    gap, polar = way.gaps[-1], way.polar_lows[0]
    return [
        Claim(
            "4 x 4: the constructed point of rank 1 has a gradient <= 1e-12",
            near["gradient"] <= 1e-12,
            near["gradient"],
        ),
        Claim(
            "its Hessian's least eigenvalue is 2 lambda = 0.2: a strict minimum",
            abs(least - 2.0 * LAM) < 1e-9,
            least,
        ),
        Claim(
            "descent from every point within 20 % returns to it",
            returned == near["starts"],
            f"{returned} of {near['starts']}",
        ),
        Claim("it is spurious: another point of rank 1 has <= 0.7 of its objective", better <= 0.7, better),
        Claim("the certificate sees it: polar / lambda is proved to be >= 10", polar >= 10.0, polar),
        Claim("growing the rank lowers the objective by >= 0.8 of it", lowered >= 0.8, lowered),
        Claim(f"and closes the certified gap to <= {CLOSED:g}", gap <= CLOSED, gap),
    ]


# --- growth


@dataclass
class Way:
    """What happened while the rank grew: the objective at each iteration, a certificate at each rank."""

    trace: list[float] = field(default_factory=list)
    grown_at: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    objectives: list[float] = field(default_factory=list)
    dual_bounds: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    polar_ratios: list[float] = field(default_factory=list)
    polar_lows: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers."""
        return dict(vars(self))


def random_start(problem: Problem, rank: int, seed: int) -> Params:
    """Return a random start of fixed rank, about as large as the data."""
    size = math.sqrt(float(problem.lambda_max().low) / rank)
    U, V = problem.atom.init(rank, seed)
    return size * U, size * V


def grow(problem: Problem, params: Params, most: int = 60) -> Way:
    """Descend at fixed rank, certify, add the polar's witness as one more column; until the gap is closed."""
    way = Way()
    for _ in range(most):
        way.trace.append(problem.objective(params))
        with torch.no_grad():
            params = descend(
                problem,
                params,
                tol=1e-10,
                deadline=math.inf,
                progress=lambda p: way.trace.append(problem.objective(p)),
            )
        certificate = problem.certify(params, tol=CLOSED)
        way.ranks.append(count(params))
        way.objectives.append(certificate.objective)
        way.dual_bounds.append(certificate.dual_bound)
        way.gaps.append(certificate.gap)
        way.polar_ratios.append(certificate.polar_ratio[1])
        way.polar_lows.append(certificate.polar_ratio[0])
        if certificate.verdict != "improvable" or certificate.polar.witness is None:
            break
        column = select(certificate.polar.witness, slice(0, 1))
        F = problem.predictions(column)
        size = (certificate.polar.low - problem.lam) / float(F.square().sum())  # exact for a squared loss
        params = tuple(torch.cat([p, math.sqrt(size) * c]) for p, c in zip(params, column, strict=True))
        way.grown_at.append(len(way.trace))
    return way


# --- digits


def digits_matrix(rows: int) -> Tensor:
    """Return the first images of scikit-learn's digits, a row each, with pixels from 0 to 1."""
    return torch.from_numpy(load_digits().data[:rows]).double() / 16.0


def masked_digits(rows: int) -> Problem:
    """Return the completion of digits of which a seeded fifth of the pixels was observed."""
    Y = digits_matrix(rows)
    seen = torch.rand(Y.shape, generator=torch.Generator().manual_seed(0)) < OBSERVED
    r, c = seen.nonzero(as_tuple=True)
    shape = (Y.shape[0], Y.shape[1])
    loss, atom = MaskedSquaredLoss(r, c, Y[r, c], shape), MatrixAtom(shape)
    return Problem(loss, atom, SHARE * Problem(loss, atom, 1.0).lambda_max().high)


def nonleading_pair(rows: int) -> dict[str, Any]:
    """Return gradient, curvature and certificate of the second pair of singular vectors alone."""
    Y = digits_matrix(rows)
    U, S, Vh = torch.linalg.svd(Y, full_matrices=False)
    lam = 0.1 * float(S[0])
    scale = math.sqrt(float(S[1]) - lam)
    problem = Problem(SquaredLoss(Y), MatrixAtom((Y.shape[0], Y.shape[1])), lam)
    point = (scale * U[:, 1][None], scale * Vh[1][None])
    leaves = tuple(p.clone().requires_grad_() for p in point)
    with torch.enable_grad():
        gradients = torch.autograd.grad(penalized(problem, leaves), leaves)
    step = 1e-3 * scale  # towards the leading pair
    moved = (point[0] + step * U[:, 0], point[1] + step * Vh[0])
    curvature = 2.0 * float(penalized(problem, moved) - penalized(problem, point)) / (2.0 * step**2)
    certificate = problem.certify(point, tol=CLOSED)
    return {
        "gradient": math.sqrt(sum(float(g.square().sum()) for g in gradients)) / float(S[0]),
        "curvature": curvature,
        "polar_ratio": certificate.polar_ratio[0],
        "gap": certificate.gap,
    }


def saddle_claims(saddle: dict[str, Any]) -> list[Claim]:
    """Return what is claimed of the second pair of singular vectors."""
    gradient, curvature, polar = saddle["gradient"], saddle["curvature"], saddle["polar_ratio"]
    return [
        Claim(
            "digits, fully observed: the second singular pair alone has a gradient <= 1e-10",
            gradient <= 1e-10,
            gradient,
        ),
        Claim("it is a saddle: the curvature towards the leading pair is < 0", curvature < 0.0, curvature),
        Claim("and polar / lambda is proved to be > 1", polar > 1.0, polar),
    ]


def digits_claims(ways: list[Way]) -> list[Claim]:
    """Return what is claimed of random starts on the masked digits."""
    polar, gap = min(way.polar_lows[0] for way in ways), max(way.gaps[-1] for way in ways)
    ends = [way.objectives[-1] for way in ways]
    spread = max(ends) / min(ends) - 1.0
    step = min(1.0 - b / a for way in ways for a, b in zip(way.objectives, way.objectives[1:], strict=False))
    lowered = min(1.0 - way.objectives[-1] / way.objectives[0] for way in ways)
    return [
        Claim(
            "digits, 20 % observed: each random start of rank 2 ends where polar / lambda is > 1",
            polar > 1.0,
            polar,
        ),
        Claim("each column that is added lowers the objective, at least by a share > 0", step > 0.0, step),
        Claim("all together by >= 0.05 of it", lowered >= 0.05, lowered),
        Claim(f"each start ends with a certified gap <= {CLOSED:g}", gap <= CLOSED, gap),
        Claim(f"and all at one objective, relative spread <= {CLOSED:g}", spread <= CLOSED, spread),
    ]

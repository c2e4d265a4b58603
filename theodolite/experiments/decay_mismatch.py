"""Weight decay on three layers makes W = 0 a minimum that small starts fall into; a matched regularizer does not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.atoms import ModuleAtom
from theodolite.core.params import Params, count
from theodolite.core.problem import Problem
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.losses import CrossEntropyLoss, SquaredLoss
from theodolite.models import MLP
from theodolite.nn.regularizers import WeightDecay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAM = 0.2  # of the example in three numbers
DECAY = 0.02  # on digits
DEPTH = 3
ZERO = 1e-2  # norm of all weights below which a network has ended at zero
LEARNED = 0.9  # of the loss at zero, below which a network has learned something
RATE, MOMENTUM = 0.1, 0.9


class DecayMismatch(Experiment):
    """The landscape of a product of three numbers, and three-layer ReLU networks on digits."""

    name = "decay-mismatch"
    title = "Weight decay on three layers against the matched regularizer"
    statement = (
        r"$\frac\lambda2\|W\|^2$ has degree 2, a network of $L = 3$ layers degree 3: for every $\lambda > 0$, $W = 0$ is a "
        r"strict local minimum, and gradient flow from $\|W\| \le wL^{1/2}/u$ ends there. With "
        r"$\lambda\prod_l\|W_l\|$, of degree 3, it is no minimum, though a stationary point: the polar's witness leads out. "
        r"A chord of the decay, which is concave in $\prod_l\|W_l\|$, bounds the decay problem from below by a matched one."
    )
    reference = "haeffele2015global"
    needs: ClassVar[str | None] = None

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Compute the landscape, then train networks from starts of many sizes."""
        progress("the landscape of three numbers")
        example = landscape()
        rows, starts, steps = (60, 4, 300) if fast else (300, 12, 800)
        digits = on_digits(rows, starts, steps, fast=fast, progress=progress)
        return Result(
            [*landscape_claims(example), *digits_claims(digits)], {"landscape": example, "digits": digits}
        )

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw both landscapes along balanced weights, and where starts of each size end."""
        left, right = figure.subplots(1, 2)
        example, digits = numbers["landscape"], numbers["digits"]
        left.plot(example["w"], example["decay"], color="C3", label="weight decay, degree 2")
        left.plot(example["w"], example["matched"], color="C0", label="matched, degree 3")
        left.axhline(
            example["lower_bound"], color="C3", ls=":", lw=1.2, label="bound below the decay problem"
        )
        left.axvline(
            example["basin"] / math.sqrt(3.0), color="0.5", ls="--", lw=1.0, label="proved basin of 0"
        )
        left.set(xlabel=r"$w_1 = w_2 = w_3$", ylabel="objective", ylim=(0.1, 0.8))
        left.legend(fontsize=8)
        sizes = digits["sizes"]
        right.semilogx(
            sizes, digits["zero_by_decay"], "o-", color="C3", ms=4, label="decay: share that ends at 0"
        )
        right.semilogx(
            sizes, digits["learned_by_decay"], "x:", color="C3", ms=4, label="decay: share that learns"
        )
        right.semilogx(
            sizes, digits["learned_by_product"], "s-", color="C0", ms=4, label="matched: share that learns"
        )
        right.axvline(digits["attraction"], color="0.5", ls="--", lw=1.0, label="proved: all below end at 0")
        right.axvline(digits["usual_size"], color="0.2", ls=":", lw=1.2, label="He's initialization")
        right.set(xlabel="norm of all weights at the start", ylabel="share of starts", ylim=(-0.05, 1.05))
        right.legend(fontsize=8)


# --- three numbers


def landscape() -> dict[str, Any]:
    """Return the two objectives of x = y = 1 along balanced weights, and their known answers."""
    w = torch.linspace(0.0, 1.2, 241, dtype=torch.float64)
    fit = 0.5 * (1.0 - w**3).square()
    decay, matched = fit + 1.5 * LAM * w.square(), fit + LAM * w**3
    grid = torch.linspace(0.5, 1.2, 700_001, dtype=torch.float64)
    values = 0.5 * (1.0 - grid**3).square() + 1.5 * LAM * grid.square()
    best = float(values.min())
    one = torch.ones(1, 1, dtype=torch.float64)
    atom = ModuleAtom(MLP((1, 1, 1, 1), bias=False), one)
    polar = atom.polar(one).high
    slope = WeightDecay.slope(LAM, DEPTH, best)
    bound = Problem(SquaredLoss(one), atom, slope).solve(tol=1e-9).certificate.dual_bound
    solution = Problem(SquaredLoss(one), atom, LAM).solve(tol=1e-9)
    basin = WeightDecay.basin(LAM, DEPTH, polar)
    generator = torch.Generator().manual_seed(0)
    ball = torch.randn(100_000, 3, dtype=torch.float64, generator=generator)
    ball = ball / ball.norm(dim=1, keepdim=True)
    ball = ball * basin * torch.rand(len(ball), 1, dtype=torch.float64, generator=generator) ** (1.0 / 3.0)
    inside = 0.5 * (1.0 - ball.prod(1)).square() + 0.5 * LAM * ball.square().sum(1)
    return {
        "w": w,
        "decay": decay,
        "matched": matched,
        "minimizer": float(grid[values.argmin()]),
        "minimum": best,
        "basin": basin,
        "least_inside": float((inside - 0.5).min()),
        "slope": slope,
        "lower_bound": bound,
        "matched_minimum": solution.certificate.objective,
        "matched_gap": solution.certificate.gap,
    }


def landscape_claims(example: dict[str, Any]) -> list[Claim]:
    """Return what is claimed of the example."""
    inside, basin, best, bound = (example[k] for k in ("least_inside", "basin", "minimum", "lower_bound"))
    matched = example["matched_minimum"]
    return [
        Claim(
            "three numbers: the proved basin of W = 0 has radius 0.5196", abs(basin - 0.519615) < 1e-6, basin
        ),
        Claim("100,000 points inside all have a larger objective than W = 0", inside > 0.0, inside),
        Claim(
            "W = 0 is spurious: the least objective is 0.278401, against 0.5",
            abs(best - 0.278401) < 1e-6,
            best,
        ),
        Claim("the matched problem bounds it from below by 0.26293", 0.26292 < bound <= best, bound),
        Claim(
            "with the matched regularizer the minimum, certified, is lambda - lambda^2/2 = 0.18",
            abs(matched - 0.18) < 1e-6 and example["matched_gap"] < 1e-6,
            matched,
        ),
    ]


# --- digits


def on_digits(rows: int, starts: int, steps: int, *, fast: bool, progress: Progress) -> dict[str, Any]:
    """Return where starts of each size end, with decay and with the matched regularizer, and the bounds."""
    data = load_digits()
    X = torch.from_numpy(data.data[:rows]).double() / 16.0
    loss = CrossEntropyLoss(torch.from_numpy(data.target[:rows]), 10, scale=1.0 / rows)
    net = MLP((64, 16, 16, 10), bias=False)
    power, product = ModuleAtom(net, X, regularizer="power", starts=8), ModuleAtom(net, X, starts=8)
    upper = power.polar(-loss.gradient(loss.zeros())).high
    radius = WeightDecay.attraction(DECAY, DEPTH, upper)
    usual = math.sqrt(
        2.0 * (16 + 16 + 10)
    )  # entries of variance 2 / inputs, in layers of 16, 16 and 10 outputs
    grid = torch.logspace(math.log10(0.9 * radius), math.log10(usual), 4 if fast else 8, dtype=torch.float64)
    zeros: list[float] = []
    learned: dict[str, list[float]] = {"decay": [], "product": []}
    trained: list[float] = []
    zero = loss.value(loss.zeros())
    for size in grid.tolist():
        progress(f"digits: {starts} starts of norm {size:.2g}")
        start = tuple(size / math.sqrt(DEPTH) * p for p in power.init(starts, seed=len(trained)))
        start = power.scale(start, (size**2 / norms(start).square()) ** (DEPTH / 2))
        end = flow(power, loss, start, lambda p: 0.5 * DECAY * norms(p).square(), steps)
        zeros.append(float((norms(end) < ZERO).double().mean()))
        reached = losses(power, loss, end)
        learned["decay"].append(float((reached < LEARNED * zero).double().mean()))
        trained.append(float((reached + 0.5 * DECAY * norms(end).square()).min()))
        slope = WeightDecay.slope(DECAY, DEPTH, zero)
        other = flow(product, loss, start, lambda p, slope=slope: slope * product.theta(p), steps)
        learned["product"].append(float((losses(product, loss, other) < LEARNED * zero).double().mean()))
    progress("digits: the bound, and the way out of zero")
    best = min(trained)
    problem = Problem(loss, power, WeightDecay.slope(DECAY, DEPTH, best))
    certificate = problem.certify(power.init(0), budget=2 if fast else 20)
    matched = Problem(loss, product, WeightDecay.slope(DECAY, DEPTH, zero))
    out = matched.certify(product.init(0), budget=2 if fast else 20)
    grown = matched.solve(tol=1e-2, budget=4 if fast else 40, max_rounds=2 if fast else 3)
    return {
        "rows": rows,
        "decay": DECAY,
        "sizes": grid,
        "attraction": radius,
        "usual_size": usual,
        "zero_by_decay": zeros,
        "learned_by_decay": learned["decay"],
        "learned_by_product": learned["product"],
        "trained": trained,
        "at_zero": zero,
        "lower_bound": max(certificate.dual_bound, 0.0),
        "witness_ratio": out.polar.low / matched.lam,
        "witness_decrease": out.decrease,
        "matched_objective": grown.certificate.objective,
        "matched_units": count(grown.params),
    }


def norms(params: Params) -> Tensor:
    """Return the norm of all weights of each network, shape (r,)."""
    return torch.stack([p.flatten(1).square().sum(1) for p in params]).sum(0).sqrt()


def losses(atom: ModuleAtom, loss: CrossEntropyLoss, params: Params) -> Tensor:
    """Return the loss of each network alone, shape (r,)."""
    return torch.tensor([loss.value(Z) for Z in atom.each(params).view(-1, *atom.shape)], dtype=torch.float64)


def flow(atom: ModuleAtom, loss: CrossEntropyLoss, params: Params, penalty: Any, steps: int) -> Params:
    """Return where gradient descent leads, of each network alone but all at once, with momentum late."""
    speed = tuple(torch.zeros_like(p) for p in params)
    for step in range(steps):
        leaves = tuple(p.detach().requires_grad_() for p in params)
        with torch.enable_grad():
            outputs = atom.each(leaves).view(-1, *atom.shape)
            slopes = torch.stack([loss.gradient(Z) for Z in outputs.detach()])
            total = (outputs * slopes).sum() + penalty(leaves).sum()
            gradients = torch.autograd.grad(total, leaves)
        momentum = MOMENTUM if step > steps // 10 else 0.0
        speed = tuple(momentum * v - RATE * g for v, g in zip(speed, gradients, strict=True))
        params = tuple(p + v for p, v in zip(params, speed, strict=True))
    return params


def digits_claims(found: dict[str, Any]) -> list[Claim]:
    """Return what is claimed of the networks on digits."""
    decay = found["zero_by_decay"]
    more = sum(found["learned_by_product"]) - sum(found["learned_by_decay"])
    best, zero, bound = min(found["trained"]), found["at_zero"], found["lower_bound"]
    ratio, gain = found["witness_ratio"], 1.0 - found["matched_objective"] / zero
    return [
        Claim("digits, decay: every start within the proved radius ends at zero", decay[0] == 1.0, decay[0]),
        Claim("of starts of He's size none does", decay[-1] == 0.0, decay[-1]),
        Claim("zero is spurious: training reaches <= 0.9 of its objective", best <= 0.9 * zero, best / zero),
        Claim("the chord's bound is > 0 and below all that was trained", 0.0 < bound <= best, bound),
        Claim("over all sizes at least as many starts learn with the matched regularizer", more >= 0.0, more),
        Claim("zero is no minimum of it: a witness has polar / lambda > 1", ratio > 1.0, ratio),
        Claim("growing from zero lowers the objective by >= 0.1 of it", gain >= 0.1, gain),
    ]

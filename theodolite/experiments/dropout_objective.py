"""Training with dropout is stochastic gradient descent on a deterministic objective."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.analysis.dropout import feature_regularizer
from theodolite.experiments._dropout_training import graded_matrix
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.dropout import BernoulliDropout, kappa

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, RANK, NOISE, WIDTH = 100, 10, 0.1, 20
RATE = 0.5  # where gradients are compared


class DropoutObjective(Experiment):
    """The masked loss and its gradient have the means that the closed form says."""

    name = "dropout-objective"
    title = "Dropout is stochastic gradient descent on a deterministic objective"
    statement = (
        r"With masks $\xi$ of retention $\theta$ and $\kappa=(1-\theta)/\theta$, "
        r"$\mathbb E\|Y-\frac1\theta U\mathrm{diag}(\xi)V^\top\|_F^2=\|Y-UV^\top\|_F^2+\kappa\sum_k\|u_k\|^2\|v_k\|^2$, "
        r"and the gradient of the left with fresh masks has the gradient of the right as its mean: along training, the "
        r"masked loss averages to the deterministic curve at every $\theta$."
    )
    reference = "cavazza2018dropout"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train at several rates, recording both losses; then compare gradients at one point."""
        Y, steps = torch.from_numpy(data()), 200 if fast else 1000
        curves = []
        for theta in (0.1, 0.5, 0.9) if fast else tuple(i / 10 for i in range(1, 10)):
            progress(f"retention {theta:g}")
            curves.append(curve(Y, theta, steps))
        progress("gradients, all masks of eight units")
        exact = exhaustive()
        progress("gradients, sampled masks")
        sampled = gradients(Y, 1000 if fast else 10_000)
        numbers = {"width": WIDTH, "curves": curves, "exhaustive": exact, "gradients": sampled}
        return Result(claims(curves, exact, sampled), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the curves with the running means of the masked loss, and the gradient's error by masks."""
        left, right = figure.subplots(1, 2)
        for i, run in enumerate(numbers["curves"][::-1][:: 1 if len(numbers["curves"]) < 6 else 2]):
            window = max(len(run["masked"]) // 40, 1)
            mean = np.convolve(run["masked"], np.ones(window) / window, "valid")
            steps = np.arange(len(mean)) + window
            left.semilogy(run["masked"], color=f"C{i}", lw=0.4, alpha=0.3)
            left.semilogy(steps - window / 2, mean, color=f"C{i}", lw=2.2, alpha=0.6)
            left.semilogy(run["deterministic"], "--", color="k", lw=0.8)
            left.plot([], [], color=f"C{i}", lw=2.2, label=rf"$\theta = {run['theta']:g}$")
        left.plot([], [], "k--", lw=0.8, label="closed form")
        left.set(xlabel="step", ylabel="squared error with masks, running mean")
        left.set_ylim(bottom=0.4 * min(min(run["masked"]) for run in numbers["curves"]))
        left.legend(fontsize=8, ncols=3, loc="lower center")
        masks, errors = numbers["gradients"]["masks"], numbers["gradients"]["errors"]
        right.loglog(masks, errors, "o-", ms=4, label="mean over sampled masks")
        right.loglog(
            masks, numbers["gradients"]["expected"], "k--", lw=0.8, label="what independent masks give"
        )
        right.set(xlabel="masks", ylabel="relative distance to the closed form's gradient")
        right.legend(fontsize=8)


def data() -> np.ndarray:
    """Return a 100 x 100 matrix of rank ten and noise."""
    noise = NOISE * np.random.default_rng(1).normal(size=(SIDE, SIDE))
    return graded_matrix(SIDE, SIDE, np.linspace(30.0, 10.0, RANK)) + noise


class Network(nn.Module):
    """The factorization as a network: a row of V' for each column of Y, dropout, and U."""

    def __init__(self, Y: Tensor, width: int, p: float) -> None:
        super().__init__()
        self.first = nn.Linear(Y.shape[1], width, bias=False)
        self.dropout = BernoulliDropout(p)
        self.last = nn.Linear(width, len(Y), bias=False)
        self.double()
        size = (float(torch.linalg.matrix_norm(Y, 2)) / (width * math.sqrt(Y.numel()))) ** 0.5
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.weights:
                weight.normal_(std=size, generator=generator)

    @property
    def weights(self) -> list[Tensor]:
        """V' and U."""
        return [self.first.weight, self.last.weight]

    def forward(self, x: Tensor) -> Tensor:
        """Return rows of V U' for the inputs' rows."""
        output: Tensor = self.last(self.dropout(self.first(x)))
        return output


def masked_loss(net: Network, Y: Tensor) -> Tensor:
    """Return the squared error with masks drawn by the network's own dropout layer, one for each column of Y."""
    identity = torch.eye(Y.shape[1], dtype=torch.float64)
    return (Y.T - net(identity)).square().sum()


def deterministic_loss(net: Network, Y: Tensor) -> Tensor:
    """Return the squared error without masks plus the closed form, differentiable."""
    V, U = net.weights
    penalty = (U.square().sum(0) * V.square().sum(1)).sum()
    return (Y - U @ V).square().sum() + kappa(net.dropout.rate(len(V))) * penalty


def curve(Y: Tensor, theta: float, steps: int) -> dict[str, Any]:
    """Return both losses along training with dropout."""
    net = Network(Y, WIDTH, 1.0 - theta)
    top = float(torch.linalg.matrix_norm(Y, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05 * theta / top)
    masked, deterministic = [], []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(1)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = masked_loss(net, Y)
            loss.backward()
            masked.append(float(loss.detach()))
            deterministic.append(float(deterministic_loss(net, Y).detach()))
            optimizer.step()
    ratio = np.array(masked) / np.array(deterministic) - 1.0  # of mean zero at every step, given the past
    error = float(ratio.std()) / math.sqrt(steps)
    with torch.no_grad():
        V, U = net.weights
        value = feature_regularizer(V.T, U, 1.0 - theta).value or 0.0
        plain = float((Y - U @ V).square().sum())
    return {
        "theta": theta,
        "masked": masked,
        "deterministic": deterministic,
        "ratio": float(ratio.mean()),
        "standard_errors": float(ratio.mean()) / error,
        "penalty": value,
        "squared_error": plain,
    }


def exhaustive(width: int = 8) -> float:
    """Return the relative distance of the mean gradient over all masks to that of the closed form."""
    Y = torch.from_numpy(graded_matrix(12, 9, np.arange(6.0, 0.0, -1.0)))
    net = Network(Y, width, RATE)
    V, U = (weight.detach().clone().requires_grad_() for weight in net.weights)
    total = [torch.zeros_like(V), torch.zeros_like(U)]
    with torch.enable_grad():
        for kept in itertools.product((0.0, 1.0), repeat=width):
            mask = torch.tensor(kept, dtype=torch.float64) / (1.0 - RATE)
            chance = math.prod(1.0 - RATE if k else RATE for k in kept)
            parts = torch.autograd.grad((Y - (U * mask) @ V).square().sum(), (V, U))
            total = [t + chance * g for t, g in zip(total, parts, strict=True)]
        exact = torch.autograd.grad(deterministic_loss(net, Y), net.weights)
    return _distance(total, exact)


def gradients(Y: Tensor, most: int) -> dict[str, Any]:
    """Return the distance of the mean gradient with sampled masks to that of the closed form, by their number."""
    net = Network(Y, WIDTH, RATE)
    weights = net.weights
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(2)
        exact = torch.autograd.grad(deterministic_loss(net, Y), weights)
        total, squares = [torch.zeros_like(w) for w in weights], 0.0
        marks = sorted({round(float(10.0**e)) for e in np.linspace(0.0, math.log10(most), 13)})
        errors = []
        for count in range(1, most + 1):
            parts = torch.autograd.grad(masked_loss(net, Y), weights)
            total = [t + g for t, g in zip(total, parts, strict=True)]
            squares += _distance(parts, exact) ** 2
            if count in marks:
                errors.append(_distance([t / count for t in total], exact))
    deviation = math.sqrt(squares / most)
    return {"masks": marks, "errors": errors, "expected": [deviation / math.sqrt(m) for m in marks]}


def _distance(parts: Any, exact: Any) -> float:
    difference = sum(float((a - b).square().sum()) for a, b in zip(parts, exact, strict=True))
    return math.sqrt(difference / sum(float(b.square().sum()) for b in exact))


def claims(curves: list[dict[str, Any]], exact: float, sampled: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    ratio = max(abs(run["ratio"]) for run in curves)
    errors = max(abs(run["standard_errors"]) for run in curves)
    share = max(run["penalty"] / (run["penalty"] + run["squared_error"]) for run in curves)
    last = sampled["errors"][-1] / sampled["expected"][-1]
    slope = float(np.polyfit(np.log(sampled["masks"]), np.log(sampled["errors"]), 1)[0])
    return [
        Claim(
            "along training, the masked loss is on average within 1 % of the closed form",
            ratio <= 0.01,
            ratio,
        ),
        Claim("and at every retention within 4 standard errors of it", errors <= 4.0, errors),
        Claim(
            "which the loss without masks is not: the penalty is >= 10 % of it somewhere", share >= 0.1, share
        ),
        Claim(
            "over all 256 masks of eight units the mean gradient is the closed form's to 1e-12",
            exact <= 1e-12,
            exact,
        ),
        Claim("over sampled masks it is so to 3 times the error of independent masks", last <= 3.0, last),
        Claim(
            "and nears it as masks^-1/2: the slope of the logarithms is within 0.1",
            abs(slope + 0.5) <= 0.1,
            slope,
        ),
    ]

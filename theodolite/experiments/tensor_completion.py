"""A tensor of fluorescence spectra, completed and certified; against its unfoldings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from theodolite.atoms.tensor_contractions import unfold
from theodolite.atoms.tensor_polar import bipartitions
from theodolite.estimators import TensorFactorization
from theodolite.estimators.completion_cv import completion_path
from theodolite.experiments import datasets
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.linalg.spectral import sigma_max

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOL = 1e-3
HELD_OUT, VALIDATION = 0.5, 0.05
MODES = ("sample", "time", "excitation", "emission")
CLOSING = (
    0.08,
    0.03,
)  # alphas as shares of the largest norm of an unfolding: these are solved to the tolerance,
HARD = (0.009, 0.003)  # and these within a budget
BUDGET, PATIENCE = 20.0, 300.0  # seconds
UNFOLDINGS = ((0, 1), (0, 2), (3,))
GAIN = 5.0  # least factor between errors of the mean and of a fit
SMALLER = 10.0  # least factor between numbers in a matrix model and in a tensor model
APART = 1.2  # least ratio of the unfoldings' bound to the polar


class TensorCompletion(Experiment):
    """A tensor with a missing mask, half of the rest held out: how far a proof gets, and what it is worth."""

    name = "tensor-completion"
    title = "A tensor of spectra: certified completion, and its unfoldings"
    statement = (
        r"Sums of $r$ rank-one tensors with weights $w$ minimize $\frac12\sum(X-\hat X)^2+\alpha\sum_jw_j$ over the "
        r"observed entries and over $r$: NP-hard in general. The polar of the residual is the spectral norm of a "
        r"tensor; norms of unfoldings bound it, but not closely enough to prove optimality, which a convex relaxation "
        r"does. Where $\alpha$ is small the gap stays open within the budget and is reported as reached. $\alpha$ is "
        r"chosen on validation entries. The best unfolding, a matrix, predicts better, by far more numbers."
    )
    reference = "haeffele2015global, hillar2013most"
    needs: ClassVar[str | None] = "tensorly"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Complete the tensor and its unfoldings."""
        data = Data.draw(fast)
        shares = CLOSING if fast else (*CLOSING, *HARD)
        tensors = []
        for share in shares:
            progress(f"tensor, alpha {share * data.top:.0f}")
            budget = BUDGET if share in HARD else PATIENCE
            tensors.append(data.tensor(share * data.top, budget) | {"share": share})
        matrices = []
        for rows in UNFOLDINGS:
            progress(f"unfolding with {label(rows)} as rows")
            matrices.append(data.unfolding(rows, n_alphas=5 if fast else 8))
        numbers = {
            "shape": data.whole.shape,
            "missing": float(1.0 - data.observed.mean()),
            "held_out": HELD_OUT,
            "tol": TOL,
            "mean": data.rmse(np.full(data.whole.shape, data.whole[data.fitted].mean()), data.held),
            "tensors": tensors,
            "matrices": matrices,
        }
        return Result(claims(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the held-out errors with their gaps, and the bounds of the polar."""
        left, right = figure.subplots(1, 2)
        styles = zip(numbers["matrices"], ("C0", "C9", "C7"), ("o", "s", "^"), strict=True)
        for found, color, marker in styles:
            name = f"matrix: {label(found['rows'])} as rows"
            left.loglog(
                found["alphas"], found["held_out_rmse"], marker=marker, color=color, ms=4, lw=1.2, label=name
            )
        alphas = [found["alpha"] for found in numbers["tensors"]]
        errors = [found["held_out_rmse"] for found in numbers["tensors"]]
        left.loglog(alphas, errors, "D-", color="C1", ms=6, lw=1.2, label="tensor, with its certified gap")
        for found in numbers["tensors"]:
            left.annotate(
                f"gap {found['gap']:.1g}",
                (found["alpha"], found["held_out_rmse"]),
                fontsize=8,
                color="C1",
                xytext=(-2, 8),
                textcoords="offset points",
                ha="right",
            )
        left.axhline(numbers["mean"], color="k", ls="--", lw=1, label="mean of the training entries")
        left.set(xlabel=r"$\alpha$", ylabel="RMSE of held-out entries (fluorescence)")
        left.legend(fontsize=7, loc="upper left")
        low, high = left.get_ylim()
        left.set_ylim(low, high * 3.5)
        closed = proved(numbers)
        bars = {name: value / closed["polar_low"] for name, value in closed["unfoldings"].items()}
        bars["convex relaxation"] = closed["polar_high"] / closed["polar_low"]
        colors = ["C0"] * len(closed["unfoldings"]) + ["C1"]
        right.hlines(range(len(bars)), 1.0, list(bars.values()), color=colors, lw=2)
        right.scatter(list(bars.values()), range(len(bars)), color=colors, s=30)
        right.set_yticks(range(len(bars)), list(bars), fontsize=8)
        right.invert_yaxis()
        for row, value in enumerate(bars.values()):
            text = f"{value:.4f}" if value < 1.01 else f"{value:.2f}"
            right.annotate(
                text, (value, row), fontsize=8, va="center", xytext=(6, 0), textcoords="offset points"
            )
        right.axvline(1.0, color="k", lw=1, ls="--")
        right.set(xlim=(0.95, 1.12 * max(bars.values())))
        right.set(
            xlabel=r"proved upper bound of the polar / value attained",
            ylabel="norm of the unfolding with these rows",
        )


@dataclass(frozen=True)
class Data:
    """The tensor; what was observed, and of this what is fitted, held out, and for validation."""

    whole: NDArray[np.float64]
    observed: NDArray[np.bool_]
    held: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    fitted: NDArray[np.bool_]
    top: float

    @classmethod
    def draw(cls, fast: bool) -> Data:
        """Return the tensor, or a quarter of it, with seeded parts."""
        whole, observed = datasets.kinetic()
        if fast:
            whole, observed = whole[::2, :, :, ::2], observed[::2, :, :, ::2]
        uniform = np.random.default_rng(0).random(whole.shape)
        held = observed & (uniform < HELD_OUT)
        validation = observed & ~held & (uniform < HELD_OUT + VALIDATION)
        fitted = observed & ~held & ~validation
        zeroed = torch.from_numpy(np.where(fitted, whole, 0.0))
        top = max(float(torch.linalg.matrix_norm(unfold(zeroed, rows), 2)) for rows in UNFOLDINGS)
        return cls(whole, observed, held, validation, fitted, top)

    def rmse(self, predicted: NDArray[np.float64], where: NDArray[np.bool_]) -> float:
        """Return the root mean squared error on some entries."""
        return float(np.sqrt(np.mean((predicted - self.whole)[where] ** 2)))

    def tensor(self, alpha: float, budget: float) -> dict[str, Any]:
        """Complete as a tensor; return the errors, the certificate, and bounds of the polar of the residual."""
        model = TensorFactorization(alpha=alpha, tol=TOL, budget=budget).fit(self.whole, mask=self.fitted)
        predicted = model.reconstruct()
        residual = torch.from_numpy(np.where(self.fitted, self.whole - predicted, 0.0))
        polar = model.certificate_.polar
        return {
            "alpha": alpha,
            "gap": model.gap_,
            "objective": model.objective_,
            "dual_bound": model.dual_bound_,
            "rank": model.rank_,
            "size": model.rank_ * sum(self.whole.shape),
            "validation_rmse": self.rmse(predicted, self.validation),
            "held_out_rmse": self.rmse(predicted, self.held),
            "polar_low": polar.low,
            "polar_high": polar.high,
            "unfoldings": {
                label(rows): sigma_max(unfold(residual, rows), method="inertia", tol=1e-10).high
                for rows in bipartitions(residual.ndim)
            },
        }

    def unfolding(self, rows: Sequence[int], n_alphas: int) -> dict[str, Any]:
        """Complete as a matrix along a path of alpha."""
        order = [*rows, *(k for k in range(self.whole.ndim) if k not in rows)]
        shape = [self.whole.shape[k] for k in order]
        given = np.where(self.fitted, self.whole, np.nan).transpose(order)
        height = math.prod(shape[: len(rows)])
        path = completion_path(given.reshape(height, -1), n_alphas=n_alphas, eps=0.001, tol=TOL)
        filled = [model.complete().reshape(shape).transpose(np.argsort(order)) for model in path]
        return {
            "rows": list(rows),
            "alphas": [model.alpha_ for model in path],
            "gaps": [model.gap_ for model in path],
            "ranks": [model.rank_ for model in path],
            "sizes": [model.rank_ * (height + self.whole.size // height) for model in path],
            "validation_rmse": [self.rmse(one, self.validation) for one in filled],
            "held_out_rmse": [self.rmse(one, self.held) for one in filled],
        }


def label(rows: Sequence[int]) -> str:
    """Return the modes that are rows, in words."""
    return " x ".join(MODES[k] for k in rows)


def proved(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the fit with the smallest alpha of those that are solved to the tolerance."""
    found: dict[str, Any] = next(one for one in numbers["tensors"] if one["share"] == CLOSING[-1])
    return found


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    tensors, matrices, closed = numbers["tensors"], numbers["matrices"], proved(numbers)
    gap = max(found["gap"] for found in tensors if found["share"] in CLOSING)
    below = min(found["objective"] - found["dual_bound"] for found in tensors)
    loosest = min(closed["unfoldings"].values()) / closed["polar_low"]
    near = closed["polar_high"] / closed["polar_low"] - 1.0
    worst = max(max(found["gaps"]) for found in matrices)
    tensor = min(tensors, key=lambda found: found["validation_rmse"])
    choices = [
        (found["validation_rmse"][k], found, k) for found in matrices for k in range(len(found["alphas"]))
    ]
    _, matrix, k = min(choices, key=lambda choice: choice[0])
    error, size = matrix["held_out_rmse"][k], matrix["sizes"][k]
    gains = [numbers["mean"] / tensor["held_out_rmse"], numbers["mean"] / error]
    return [
        Claim(
            f"tensor: the certified gap is <= {TOL:g} at the {len(CLOSING)} larger alphas", gap <= TOL, gap
        ),
        Claim(
            "at every alpha objective - dual bound is >= 0, also where the budget ended the fit",
            below >= 0.0,
            ", ".join(f"gap {found['gap']:.2g} at alpha {found['alpha']:.0f}" for found in tensors),
        ),
        Claim(
            f"the least norm of an unfolding of the residual is >= {APART:g} times what the polar attains",
            loosest >= APART,
            loosest,
        ),
        Claim(f"the convex relaxation proves the polar to a relative {TOL:g}", near <= TOL, near),
        Claim(f"matrices: each certified gap is <= {TOL:g}", worst <= TOL, worst),
        Claim(
            f"both have a held-out RMSE >= {GAIN:g} times lower than the mean",
            min(gains) >= GAIN,
            f"mean {numbers['mean']:.1f}, tensor {tensor['held_out_rmse']:.1f}, matrix {error:.1f}",
        ),
        Claim(
            "the best unfolding predicts better than the tensor: ratio of held-out RMSE < 1",
            error < tensor["held_out_rmse"],
            error / tensor["held_out_rmse"],
        ),
        Claim(
            f"the tensor model has >= {SMALLER:g} times fewer numbers",
            size >= SMALLER * tensor["size"],
            f"{tensor['size']} against {size}",
        ),
    ]

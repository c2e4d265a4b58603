"""The singular values that training with dropout ends with, against the closed form."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from theodolite.analysis.dropout_certificate import certify_dropout
from theodolite.analysis.squared_norms import squared_nuclear_prox
from theodolite.experiments._dropout_training import Array, expected_objective, graded_matrix, train
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.dropout import kappa, theta_for_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE, TOP, RATIO = (40, 30), 10.0, 0.8  # singular values 10, 8, 6.4, ...
FIXED = 0.5
REFERENCE = 20  # the width at which the adapted rate is the fixed one
WIDTHS = (10, 20, 40, 80, 160)
VISIBLE = 0.012  # of the largest singular value: what counts into the rank of a trained matrix
LONG = 100_000


class DropoutSpectrum(Experiment):
    """Dropout induces the squared nuclear norm: trained products are the closed form's at every width."""

    name = "dropout-spectrum"
    title = "What dropout converges to: the squared nuclear norm"
    statement = (
        r"Factors of width $r$ trained with dropout end at $\min_X\|Y-X\|_F^2+\frac\kappa r\|X\|_*^2$: the singular values of "
        r"$Y$ less a threshold that depends on all of them. At a fixed rate the penalty falls as $1/r$ and the rank "
        r"grows with the width; with the retention $\theta(r)=\bar\theta/(r-(r-1)\bar\theta)$ both stay the same."
    )
    reference = "cavazza2018dropout, mianjy2018implicit"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train at several widths with fixed and with adapted rates, and once for 100,000 steps."""
        Y = graded_matrix(*SHAPE, TOP * RATIO ** np.arange(20.0))
        widths, steps = (WIDTHS[:3], 20_000) if fast else (WIDTHS, 40_000)
        runs = []
        for kind in ("fixed", "adapted"):
            for width in widths:
                progress(f"{kind} rate, width {width}")
                p = FIXED if kind == "fixed" else adapted_rate(width)
                runs.append({"rate": kind, **trained(Y, width, p, steps)})
        progress(f"{LONG:,} steps")
        long = trained(Y, REFERENCE, FIXED, LONG)
        numbers = {"singular": np.linalg.svd(Y)[1][:20], "runs": runs, "long": long}
        return Result(claims(runs, long), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the singular values at each width, and the ranks."""
        axes = figure.subplots(1, 3)
        for axis, kind in zip(axes, ("fixed", "adapted"), strict=False):
            runs = [run for run in numbers["runs"] if run["rate"] == kind]
            axis.plot(range(1, 17), numbers["singular"][:16], color="0.7", lw=1.0, label="data")
            for i, run in enumerate(runs):
                k = range(1, 17)
                axis.plot(k, _padded(run["predicted"], 16), "-", color=f"C{i}", lw=1.0)
                axis.plot(
                    k, _padded(run["trained"], 16), "o", color=f"C{i}", ms=3.5, label=f"width {run['width']}"
                )
            axis.set(xlabel="index", ylabel="singular value", title=f"{kind} rate")
            axis.legend(fontsize=7, title="trained (dots), closed form (lines)", title_fontsize=7)
        for i, kind in enumerate(("fixed", "adapted")):
            runs = [run for run in numbers["runs"] if run["rate"] == kind]
            widths = [run["width"] for run in runs]
            axes[2].semilogx(widths, [run["predicted_rank"] for run in runs], "-", color=f"C{i}", lw=1.0)
            axes[2].semilogx(
                widths, [run["trained_rank"] for run in runs], "o", color=f"C{i}", ms=5, label=kind
            )
        axes[2].set_xticks(widths, [str(width) for width in widths], minor=False)
        axes[2].minorticks_off()
        axes[2].set(
            xlabel="width", ylabel=f"singular values > {100 * VISIBLE:g} % of the largest", title="rank"
        )
        axes[2].legend(fontsize=8)


def adapted_rate(width: int) -> float:
    """Return the rate that regularizes at a width as the fixed one does at the reference width."""
    L = kappa(FIXED) / REFERENCE
    return 1.0 - theta_for_width(1.0 / (1.0 + L), width)


def trained(Y: Array, width: int, p: float, steps: int) -> dict[str, Any]:
    """Return the outcome of stochastic gradient descent beside the closed form."""
    best = squared_nuclear_prox(Y, kappa(p) / width, width)
    U, V = train(Y, width, p, steps)
    product, optimum = U @ V.T, best.matrix.numpy()
    found, predicted = np.linalg.svd(product)[1], np.linalg.svd(optimum)[1]
    return {
        "width": width,
        "p": p,
        "steps": steps,
        "trained": found,
        "predicted": predicted,
        "trained_rank": int((found > VISIBLE * found[0]).sum()),
        "predicted_rank": int((predicted > VISIBLE * predicted[0]).sum()),
        "distance": float(np.linalg.norm(product - optimum) / np.linalg.norm(optimum)),
        "excess": expected_objective(Y, U, V, p) / best.value - 1.0,
        "gap": certify_dropout(U, V, Y, p).gap,
        "threshold": best.threshold,
    }


def _padded(values: Any, length: int) -> list[float]:
    return [*map(float, values[:length]), *[0.0] * (length - len(values))]


def claims(runs: list[dict[str, Any]], long: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    fixed = [run for run in runs if run["rate"] == "fixed"]
    adapted = [run for run in runs if run["rate"] == "adapted"]
    apart = max(float(np.abs(run["trained"] - run["predicted"]).max() / run["predicted"][0]) for run in runs)
    distance, gap = max(run["distance"] for run in runs), max(run["gap"] for run in runs)
    same = [run["trained_rank"] for run in runs], [run["predicted_rank"] for run in runs]
    grows, stays = ([run["trained_rank"] for run in kind] for kind in (fixed, adapted))
    strict = all(a < b for a, b in pairwise(grows))
    return [
        Claim(
            f"after {LONG:,} steps the product of the factors is the closed form's to 1 %",
            long["distance"] <= 0.01,
            long["distance"],
        ),
        Claim("at every width the product is the closed form's to 2 %", distance <= 0.02, distance),
        Claim("each singular value is, to 1 % of the largest", apart <= 0.01, apart),
        Claim("the ranks are those of the closed form", same[0] == same[1], ", ".join(map(str, same[0]))),
        Claim("at a fixed rate the rank grows with the width", strict, ", ".join(map(str, grows))),
        Claim("at the adapted rate it stays the same", len(set(stays)) == 1, ", ".join(map(str, stays))),
        Claim("trained factors are certified to be within 1 % of the global optimum", gap <= 0.01, gap),
    ]

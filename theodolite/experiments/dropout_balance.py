"""Dropout makes hidden units equally strong; without it they stay as unequal as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from theodolite.analysis.equalization import balance
from theodolite.analysis.squared_norms import squared_nuclear_prox
from theodolite.experiments._dropout_training import Array, expected_objective, graded_matrix, spread, train
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.dropout import kappa

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE, TOP, RATIO, WIDTH = (40, 30), 10.0, 0.8, 20
RATES = (0.0, 0.2, 0.35, 0.5)


class DropoutBalance(Experiment):
    """The spread of the units' strengths along training, from unequal starts, with and without dropout."""

    name = "dropout-balance"
    title = "Dropout balances hidden units"
    statement = (
        r"At the optima of dropout all products $\|u_k\|\|v_k\|$ equal $\|X\|_*/r$. From starts in "
        r"which the strengths of the units differ by factors of tens, training with dropout makes them equal up to the "
        r"noise of its masks, at every rate; the faster, the higher the rate. Training without dropout does not."
    )
    reference = "mianjy2018implicit"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train from unequal starts."""
        Y = graded_matrix(*SHAPE, TOP * RATIO ** np.arange(20.0))
        steps, starts = (40_000, 1) if fast else (80_000, 2)
        runs = []
        for p in RATES:
            for seed in range(starts):
                progress(f"rate {p:g}, start {seed + 1} of {starts}")
                runs.append(watched(Y, p, steps, seed))
        return Result(claims(runs), {"width": WIDTH, "steps": steps, "runs": runs})

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the spread along training, and the units' strengths before and after."""
        left, right = figure.subplots(1, 2)
        rates = sorted({run["p"] for run in numbers["runs"]})
        for run in numbers["runs"]:
            i = rates.index(run["p"])
            label = (f"rate {run['p']:g}" if run["p"] else "no dropout") if run["seed"] == 0 else None
            left.loglog([t + 1 for t in run["steps"]], run["spread"], color=f"C{i}", lw=1.2, label=label)
        left.set(xlabel="step", ylabel=r"spread of $\|u_k\|\|v_k\|$: deviation / mean")
        left.legend(fontsize=8)
        units = range(1, numbers["width"] + 1)
        plain, last = numbers["runs"][0], numbers["runs"][-1]
        right.semilogy(
            units, sorted(plain["start"], reverse=True), "x-", color="0.5", lw=0.6, ms=4, label="start"
        )
        right.semilogy(
            units, sorted(plain["end"], reverse=True), "o-", color="C0", lw=0.6, ms=4, label="no dropout"
        )
        right.semilogy(
            units,
            sorted(last["end"], reverse=True),
            "o-",
            color=f"C{len(rates) - 1}",
            lw=0.6,
            ms=4,
            label=f"rate {last['p']:g}",
        )
        right.axhline(last["predicted"], color="k", ls="--", lw=0.8, label=r"$\|X\|_*/r$ of the closed form")
        right.set_xticks(range(5, numbers["width"] + 1, 5))
        right.set(xlabel="unit, sorted", ylabel=r"$\|u_k\|\|v_k\|$")
        right.legend(fontsize=8)


def watched(Y: Array, p: float, steps: int, seed: int) -> dict[str, Any]:
    """Return the spread along training from an unequal start, and where it ends."""
    generator = np.random.default_rng(100 + seed)
    strengths = np.geomspace(2.0, 0.1, WIDTH)  # of u_k; v_k are apart from it by as much, in another order
    U = strengths * generator.normal(size=(len(Y), WIDTH)) / np.sqrt(len(Y))
    V = generator.permutation(strengths) * generator.normal(size=(Y.shape[1], WIDTH)) / np.sqrt(Y.shape[1])
    marks = set(np.unique(np.geomspace(1, steps, 60).astype(int) - 1).tolist())
    at: list[int] = []
    spreads: list[float] = []

    def watch(t: int, u: Array, v: Array) -> None:
        if t in marks:
            at.append(t)
            spreads.append(spread(u, v))

    begin = balance(U, V)
    U, V = train(Y, WIDTH, p, steps, seed=seed, start=(U, V), watch=watch)
    end, best = balance(U, V), squared_nuclear_prox(Y, kappa(p) / WIDTH, WIDTH)
    return {
        "p": p,
        "seed": seed,
        "steps": [*at, steps],
        "spread": [*spreads, end.spread],
        "start": begin.products,
        "end": end.products,
        "predicted": float(best.singular.sum()) / WIDTH,
        "excess": expected_objective(Y, U, V, p) / best.value - 1.0 if best.value > 1e-9 else 0.0,
    }


def claims(runs: list[dict[str, Any]]) -> list[Claim]:
    """Return what is claimed."""
    plain, masked = [run for run in runs if run["p"] == 0.0], [run for run in runs if run["p"] > 0.0]
    start, end = min(run["spread"][0] for run in runs), max(run["spread"][-1] for run in masked)
    stays = min(run["spread"][-1] for run in plain)
    off = max(float((run["end"] / run["predicted"] - 1.0).abs().max()) for run in masked)
    excess = max(run["excess"] for run in masked)
    return [
        Claim("every start is unequal: deviation / mean of the strengths is >= 0.9", start >= 0.9, start),
        Claim("with dropout it ends <= 0.03", end <= 0.03, end),
        Claim(
            "each strength is the closed form's, the nuclear norm over the width, to 10 %", off <= 0.1, off
        ),
        Claim("without dropout it stays >= 0.3", stays >= 0.3, stays),
        Claim("with dropout the objective ends within 1 % of the global optimum", excess <= 0.01, excess),
    ]

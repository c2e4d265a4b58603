"""Dropout on handwritten digits: a linear autoencoder in closed form, and the penalty of a trained ReLU network."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from theodolite.analysis.dropout import feature_regularizer, monte_carlo, softmax_score
from theodolite.estimators import DropoutFactorization
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.dropout import BernoulliDropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
TRAINED, NOISE, WIDTH = 300, 0.3, 64
SAMPLED = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)


class DropoutDigits(Experiment):
    """A denoising linear autoencoder at every rate; closed forms against sampled masks in a ReLU network."""

    name = "dropout-digits"
    title = "Dropout on digits: the optimum of an autoencoder, and the penalty of a trained network"
    statement = (
        r"The global optimum of a linear autoencoder with dropout has a rank that falls with the rate, and denoises best at a "
        r"rate that is not zero. Dropout before the last layer of a ReLU network adds exactly "
        r"$\kappa\sum_k\|u_k\|^2\sum_nh_k(x_n)^2$ to its squared error; for cross-entropy the second-order formula "
        r"of trained networks stays below what sampled masks show."
    )
    reference = "cavazza2018dropout, wager2013dropout"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Fit autoencoders at all rates; train two networks and sample masks."""
        progress("autoencoders")
        fits = [autoencoder(p) for p in RATES]
        nets = []
        for loss in ("squared error", "cross-entropy"):
            progress(f"network, {loss}")
            nets.append({"loss": loss, "rows": penalties(loss, 100 if fast else 400)})
        return Result(claims(fits, nets), {"fits": fits, "nets": nets})

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw error and rank by rate, and the formulas over the sampled means."""
        left, right = figure.subplots(1, 2)
        rates, ranks = [f["p"] for f in numbers["fits"]], left.twinx()
        left.plot(rates, [f["test"] for f in numbers["fits"]], "o-", ms=4, label="held-out error")
        left.plot(
            rates,
            [f["train"] for f in numbers["fits"]],
            "o--",
            ms=4,
            color="C0",
            alpha=0.5,
            label="training error",
        )
        ranks.plot(rates, [f["rank"] for f in numbers["fits"]], "x:", color="C3", label="rank (right)")
        left.set(
            xlabel="dropout rate", ylabel="mean squared error a pixel", title="denoising linear autoencoder"
        )
        ranks.set_ylabel("rank")
        handles = [*left.get_legend_handles_labels()[0], *ranks.get_legend_handles_labels()[0]]
        left.legend(handles=handles, fontsize=8, loc="upper center")
        for i, net in enumerate(numbers["nets"]):
            rates = [row["p"] for row in net["rows"]]
            ratios = np.array([row["ratio"] for row in net["rows"]])
            ends = np.abs(np.array([row["interval"] for row in net["rows"]]).T - ratios)
            right.errorbar(
                rates, ratios, yerr=ends, fmt="o-", color=f"C{i}", ms=4, capsize=3, label=net["loss"]
            )
        right.axhspan(0.9, 1.1, color="0.9")
        right.set(
            xlabel="dropout rate", ylabel="formula / sampled mean", title="penalty of a trained ReLU network"
        )
        right.set_ylim(0.0, 1.3)
        right.legend(fontsize=8, loc="lower left")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, pixels from 0 to 1, and classes, in a random order."""
    order = np.random.default_rng(0).permutation(1797)
    data = load_digits()
    return data.data[order] / 16.0, data.target[order]


def autoencoder(p: float) -> dict[str, Any]:
    """Return the optimum of a linear network from noisy to clean images with dropout of 64 hidden units."""
    X, _ = digits()
    noisy = X + NOISE * np.random.default_rng(1).normal(size=X.shape)
    model = DropoutFactorization(width=WIDTH, p=p, center=True).fit(X[:TRAINED], inputs=noisy[:TRAINED])
    errors = np.square(model.predict(noisy) - X).mean(1)
    return {
        "p": p,
        "rank": model.rank_,
        "gap": model.gap_,
        "train": float(errors[:TRAINED].mean()),
        "test": float(errors[TRAINED:].mean()),
    }


def penalties(loss: str, draws: int) -> list[dict[str, Any]]:
    """Return the formula over the mean with sampled masks, at several rates, in a network trained with dropout."""
    X, classes = digits()
    x, y = torch.from_numpy(X[:1000]), torch.from_numpy(classes[:1000])
    one_hot = F.one_hot(y, 10).double()

    def mean_loss(output: Tensor) -> Tensor:
        return F.mse_loss(output, one_hot) if loss == "squared error" else F.cross_entropy(output, y)

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).double(), nn.Linear(64, 10).double()
        train = nn.Sequential(body, BernoulliDropout(0.3), head)
        optimizer = torch.optim.Adam(train.parameters(), lr=3e-3)
        for _ in range(200):
            optimizer.zero_grad()
            mean_loss(train(x)).backward()
            optimizer.step()
        rows = []
        with torch.no_grad():
            h = body(x)
            plain = float(mean_loss(head(h)))
            for p in SAMPLED:
                masks = BernoulliDropout(p)

                def draw(masks: nn.Module = masks) -> float:
                    return float(mean_loss(head(masks(h)))) - plain

                sampled = monte_carlo(draw, draws, confidence=0.999)
                if loss == "squared error":
                    value = (feature_regularizer(h, head.weight, p).value or 0.0) / one_hot.numel()
                else:
                    value = (softmax_score(h, head.weight, head(h).softmax(1), p).value or 0.0) / len(x)
                mean = float(sampled.value or 0.0)
                interval = [value / sampled.high, value / max(sampled.low, 1e-9)]
                rows.append({"p": p, "ratio": value / mean, "interval": interval, "share": mean / plain})
    return rows


def claims(fits: list[dict[str, Any]], nets: list[dict[str, Any]]) -> list[Claim]:
    """Return what is claimed."""
    ranks, gap = [fit["rank"] for fit in fits], max(fit["gap"] for fit in fits)
    best = min(fits, key=lambda fit: fit["test"])
    squared, entropy = (net["rows"] for net in nets)
    inside = all(row["interval"][0] <= 1.0 <= row["interval"][1] for row in squared)
    off, share = max(abs(row["ratio"] - 1.0) for row in squared), max(row["share"] for row in squared)
    above, least = max(row["interval"][0] for row in entropy), min(row["ratio"] for row in entropy)
    falls = all(a >= b for a, b in pairwise(ranks)) and ranks[-1] < ranks[0]
    return [
        Claim("autoencoder: certified at every rate, gap <= 1e-8", gap <= 1e-8, gap),
        Claim("its rank falls with the rate", falls, ", ".join(map(str, ranks))),
        Claim("it denoises best at a rate between 0 and 0.9", 0.0 < best["p"] < 0.9, best["p"]),
        Claim(
            "network, squared error: each closed form is in the 99.9 % interval of sampled masks", inside, off
        ),
        Claim("which at the largest rate more than doubles the loss", share >= 1.0, share),
        Claim(
            "cross-entropy: the second-order formula is below what is sampled, at every rate",
            above < 1.0,
            above,
        ),
        Claim("by more than 10 % somewhere, so that it is a score", least < 0.9, least),
    ]

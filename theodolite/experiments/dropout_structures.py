"""Dropping blocks of units and single weights: which norms they lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from theodolite.analysis.dropout import dropconnect_regularizer, dropout_regularizer
from theodolite.analysis.dropout_certificate import certify_dropout
from theodolite.analysis.squared_norms import squared_ksupport_prox, squared_nuclear_prox
from theodolite.experiments._dropout_training import Array, expected_objective, graded_matrix, train
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.dropout import kappa

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE, TOP, RATIO, WIDTH, RATE = (40, 30), 10.0, 0.8, 24, 0.5
BLOCKS = (1, 6, 8)
FEATURES, SAMPLES, OUTPUTS, HIDDEN = 8, 60, 10, 8


class DropoutStructures(Experiment):
    """Spectra after training with DropBlock and DropConnect, against k-support and nuclear predictions."""

    name = "dropout-structures"
    title = "Dropping blocks of units, and dropping weights"
    statement = (
        r"Dropping $B$ disjoint blocks of $k$ units leads to $\min_X\|Y-X\|_F^2+\frac\kappa B\|X\|_{(k)}^2$ with the spectral "
        r"$k$-support norm: large singular values are divided, not reduced, the others reduced. Dropping single weights of the "
        r"first layer has dropout's penalty, and its solution, if the inputs are white, and another one if they are not."
    )
    reference = "pal2020dropblock, mcdonald2014spectral"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Train with blocks of several sizes; then with dropped weights on white and on correlated inputs."""
        Y, steps = graded_matrix(*SHAPE, TOP * RATIO ** np.arange(20.0)), 20_000 if fast else 60_000
        blocks = []
        for block in BLOCKS:
            progress(f"blocks of {block}")
            blocks.append(with_blocks(Y, block, steps))
        weights = []
        for white in (True, False):
            progress(f"dropped weights, {'white' if white else 'correlated'} inputs")
            weights.append(with_weights(white, 40_000 if fast else 120_000))
        numbers = {"singular": np.linalg.svd(Y)[1][:20], "blocks": blocks, "weights": weights}
        return Result(claims(blocks, weights), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the singular values that each leads to."""
        left, right = figure.subplots(1, 2)
        k = range(1, 17)
        left.plot(k, numbers["singular"][:16], color="0.7", lw=1.0, label="data")
        for i, run in enumerate(numbers["blocks"]):
            left.plot(k, run["predicted"][:16], "-", color=f"C{i}", lw=1.0)
            left.plot(k, run["trained"][:16], "o", color=f"C{i}", ms=3.5, label=f"blocks of {run['block']}")
        left.set(xlabel="index", ylabel="singular value", title="blocks: trained (dots), k-support (lines)")
        left.legend(fontsize=8)
        for i, run in enumerate(numbers["weights"]):
            k = range(1, len(run["predicted"]) + 1)
            kind = "white" if run["white"] else "correlated"
            right.plot(k, run["predicted"], "-", color=f"C{i}", lw=1.0)
            right.plot(k, run["trained"], "o", color=f"C{i}", ms=4, label=f"{kind} inputs")
        right.set(
            xlabel="index",
            ylabel="singular value",
            title="weights: trained (dots), nuclear norm (lines)",
        )
        right.legend(fontsize=8)


def with_blocks(Y: Array, block: int, steps: int) -> dict[str, Any]:
    """Return the spectrum after training with dropped blocks, beside the closed form."""
    L = kappa(RATE) * block / WIDTH
    best = squared_ksupport_prox(Y, L, block)
    U, V = train(Y, WIDTH, RATE, steps, block=block)
    optimum, product = best.matrix.numpy(), U @ V.T
    return {
        "block": block,
        "trained": np.linalg.svd(product)[1],
        "predicted": np.linalg.svd(optimum)[1],
        "distance": float(np.linalg.norm(product - optimum) / np.linalg.norm(optimum)),
        "excess": expected_objective(Y, U, V, RATE, block=block) / best.value - 1.0,
        "gap": certify_dropout(U, V, Y, RATE, block=block).gap,
    }


def with_weights(white: bool, steps: int) -> dict[str, Any]:
    """Return what training with dropped weights of the first layer ends with, beside dropout's closed form."""
    generator = np.random.default_rng(0)
    X = np.linalg.qr(generator.normal(size=(SAMPLES, FEATURES)))[0].T  # orthonormal features
    if not white:
        mix = np.eye(FEATURES) + 0.5  # every two features share most of what they are
        X = mix @ X / np.sqrt(np.mean(np.diag(mix @ mix.T)))
    Y = graded_matrix(OUTPUTS, SAMPLES, TOP * RATIO ** np.arange(float(OUTPUTS))) * 0.1
    Y = Y + graded_matrix(OUTPUTS, FEATURES, TOP * RATIO ** np.arange(float(FEATURES)), seed=1) @ X
    U, V = drop_weights(Y, X, HIDDEN, RATE, steps)
    rows = np.linalg.svd(X, full_matrices=False)[2]
    best = squared_nuclear_prox(Y @ rows.T, kappa(RATE) / HIDDEN, HIDDEN)
    optimum, product = best.matrix.numpy() @ rows, U @ V.T @ X
    own = dropconnect_regularizer(U, V, RATE, side="in", inputs=X).value or 0.0
    units = dropout_regularizer(U, V, RATE, inputs=X).value or 0.0
    return {
        "white": white,
        "trained": np.linalg.svd(product)[1][:FEATURES],
        "predicted": np.linalg.svd(optimum)[1][:FEATURES],
        "distance": float(np.linalg.norm(product - optimum) / np.linalg.norm(optimum)),
        "penalty_ratio": own / units,
    }


def drop_weights(
    Y: Array, X: Array, width: int, p: float, steps: int, *, step_size: float = 0.1, decay: float = 1000.0
) -> tuple[Array, Array]:
    """Return U, V of the network U V' X after descent with entries of V dropped, one mask a step."""
    generator = np.random.default_rng(1)
    U = generator.normal(size=(len(Y), width)) / np.sqrt(width)
    V = generator.normal(size=(len(X), width)) / np.sqrt(width)
    rate = step_size / float(np.linalg.norm(Y, 2))
    for t in range(steps):
        mask = (generator.random(V.shape) >= p) / (1.0 - p)
        hidden = (V * mask).T @ X
        residual = Y - U @ hidden
        step = rate / (1.0 + decay * t / steps)
        U, V = U + step * residual @ hidden.T, V + step * (X @ (residual.T @ U)) * mask
    return U, V


def claims(blocks: list[dict[str, Any]], weights: list[dict[str, Any]]) -> list[Claim]:
    """Return what is claimed."""
    distance, gap = max(run["distance"] for run in blocks), max(run["gap"] for run in blocks)
    apart = max(
        float(np.abs(run["trained"] - run["predicted"]).max() / run["predicted"][0]) for run in blocks
    )
    other = float(np.abs(blocks[-1]["trained"] - blocks[0]["trained"]).max() / blocks[0]["trained"][0])
    white, raw = weights
    return [
        Claim(
            "with blocks the product is the k-support norm's closed form to 3 %", distance <= 0.03, distance
        ),
        Claim("each singular value is, to 2 % of the largest", apart <= 0.02, apart),
        Claim("and certified to be within 1 % of the global optimum", gap <= 0.01, gap),
        Claim(
            "the largest blocks lead elsewhere than single units, by >= 5 % of the largest value",
            other >= 0.05,
            other,
        ),
        Claim(
            "white inputs: dropping weights has the penalty of dropping units to 1e-10",
            abs(white["penalty_ratio"] - 1.0) <= 1e-10,
            white["penalty_ratio"],
        ),
        Claim("and ends at its closed form to 5 %", white["distance"] <= 0.05, white["distance"]),
        Claim("correlated inputs: it ends >= 10 % away from it", raw["distance"] >= 0.1, raw["distance"]),
    ]

"""The last layer's convex problem: our certified solver against scikit-learn's logistic regression.

``digits``
    the 1,797 digits themselves, 64 features;
``features-N``
    N random ReLU features of the digits (N = 256, 1024, 4096): the cost in the width.

Both minimize mean cross-entropy + decay/2 ||V||^2 without a bias.  The peer runs with its fastest
solver for these sizes (newton-cg) and with its default (lbfgs); it certifies nothing: the relative
gap of what it returns is measured by our certificate, and its tolerance is the largest of a list
at which that gap is within the tolerance that ours proves.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from benchmarks.timing import alternate, read_options
from theodolite.analysis.head import HeadProblem, relative_gap
from theodolite.losses import CrossEntropyLoss

CASES = ["digits", "features-256", "features-1024", "features-4096"]
DECAY, GAP = 1e-3, 1e-6
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def features(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (n, d) in float64 and classes (n,)."""
    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x / 16.0)
    if case == "digits":
        return pixels, torch.tensor(y)
    width = int(case.removeprefix("features-"))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, width, generator=generator, dtype=torch.float64) * (2 / 64) ** 0.5
    return torch.relu(pixels @ weight) / width**0.5, torch.tensor(y)


def main() -> None:
    """Run one case and print one JSON line last."""
    options = read_options(__doc__, CASES, "digits")
    F, y = features(options.case)
    rows, classes = F.numpy(), y.numpy()
    problem = HeadProblem(F, CrossEntropyLoss(y, 10, scale=1 / len(y)), DECAY)

    def ours() -> float:
        return problem.solve(tol=GAP).gap

    def peer(solver: str, tolerance: float) -> float:
        model = LogisticRegression(
            C=1 / (len(y) * DECAY), fit_intercept=False, tol=tolerance, max_iter=100_000, solver=solver
        ).fit(rows, classes)
        weight = torch.from_numpy(np.ascontiguousarray(model.coef_))
        return relative_gap(problem.objective(weight), best.dual_bound)

    def enough(solver: str) -> float:
        return next(t for t in TOLERANCES if peer(solver, t) <= GAP)

    best = problem.solve(tol=1e-10)
    gap = ours()
    if gap > GAP:
        raise SystemExit(f"ours stopped at a relative gap of {gap:.1e}")
    contenders: dict[str, Callable[[], float]] = {"ours": ours}
    for solver in ("newton-cg", "lbfgs"):
        contenders[solver] = functools.partial(peer, solver, enough(solver))
    seconds = alternate(contenders)
    print(
        json.dumps(
            {
                "benchmark": "head",
                "case": options.case,
                "ours": round(seconds["ours"], 4),
                "peer": round(seconds["newton-cg"], 4),
                "ratio": round(seconds["newton-cg"] / seconds["ours"], 2),
                "ratio_lbfgs": round(seconds["lbfgs"] / seconds["ours"], 2),
                "error": gap,
                "unit": "s",
                "device": "cpu",
                "threads": options.threads,
            }
        )
    )


if __name__ == "__main__":
    main()

"""Certified networks: gap and CPU seconds, against what other optimizers reach.

``breast-cancer``
    569 samples, standardized features and a column of ones, columns of norm 1, targets +-1, 1/(2n) squared loss +
    0.001 sum |w| |u|: our objective, with its bound, against pyscnn's with ``--gates`` gate vectors (its default 50);
``relu-D``
    ``--n`` samples in D dimensions, outputs of four ReLU units with noise, lambda = 1, for as many seeds as
    ``--seeds`` says: the medians of the gap and of the seconds to ``--tol``, or to ``--budget``;
``exact-D``
    50 samples, seed 0: whether our interval contains the optimum of the convex program over all patterns (cvxpy);
``restarts``
    20 real tables, lambda = 0.1 lambda_max: how many of ``--restarts`` random restarts of Adam, shared among them, end
    below the bound that we certify (none may), and the least ratio of objective to bound;
``digits-2x2``, ``digits-pca``, ``digits-3x3``, ``mnist-2x2``, ``fashion-2x2``
    filters with ReLU, average pooling over disjoint 2 x 2 positions and output weights, squared loss of centered
    one-hot targets scaled by 1/n, lambda = ``--share`` of the lower end of lambda_max: 2 x 2 filters, 3 x 3 ones in
    their 5 principal directions, free ones; digits of 8 x 8 pixels, or images averaged down to 14 x 14, ``--images``
    of them.  Accuracies are of the training images, and held out: a second network of a random three quarters
    (``--seed``), with the same lambda, on the others.

With ``--jobs`` above 1 as many processes share the open boxes of a proof; their seconds do not count in ``ours``, but
in ``wall``.

Seconds are of the processor, on all threads.  The last line is one JSON object: ``error`` is the proved relative gap.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from argparse import Namespace
from typing import Any

import joblib
import numpy as np
import torch

from benchmarks import network_data as data
from benchmarks.certified import relu
from benchmarks.peers import restarts, scnn
from benchmarks.timing import read_options
from theodolite.atoms import ReLUAtom
from theodolite.atoms.conv import ConvReLUAtom
from theodolite.core.problem import Problem
from theodolite.core.solve import Solution
from theodolite.losses import SquaredLoss

IMAGES: dict[str, tuple[Any, int, str | None]] = {
    "digits-2x2": (data.digits, 2, None),
    "digits-pca": (data.digits, 3, "pca"),
    "digits-3x3": (data.digits, 3, None),
    "mnist-2x2": (data.mnist, 2, None),
    "fashion-2x2": (data.fashion, 2, None),
}
CASES = [
    "breast-cancer",
    *(f"relu-{d}" for d in (2, 3, 4, 5)),
    *(f"exact-{d}" for d in (2, 3)),
    "restarts",
    *IMAGES,
]
LAMBDA = 1e-3  # of breast-cancer
SHARE = 0.1  # of lambda_max, of the restarts
Json = dict[str, Any]


def solve(problem: Problem, tol: float, options: Namespace, seed: int = 0) -> tuple[Solution, float]:
    """Return the solution and the processor's seconds."""
    budget = None if options.budget == "none" else float(options.budget)
    start = time.process_time()
    with joblib.parallel_config("loky", n_jobs=options.jobs):
        solution = problem.solve(tol, budget, options.device, seed, bool(options.verbose))
    return solution, time.process_time() - start


def described(solution: Solution, seconds: float) -> Json:
    """Return what a certificate says."""
    c = solution.certificate
    return {
        "ours": round(seconds, 3),
        "error": c.gap,
        "objective": c.objective,
        "dual_bound": c.dual_bound,
        "units": c.units,
        "polar_ratio": list(c.polar_ratio),
        "verdict": c.verdict,
        "bound": c.polar.note,
        "wall": round(solution.history[-1].seconds, 3),
    }


def breast_cancer(options: Namespace) -> Json:
    """Return our fit and pyscnn's."""
    table = data.breast_cancer()
    problem = Problem(SquaredLoss(table.y[:, None], 1.0 / len(table.y)), ReLUAtom(table.X, 1), LAMBDA)
    result = {"lambda": LAMBDA, **described(*solve(problem, float(options.tol), options))}
    if why := scnn.missing():
        return {**result, "peer": None, "ratio": None, "peers": {"pyscnn": {"skipped": why}}}
    start = time.process_time()
    W, U = scnn.fit(table, LAMBDA, options.gates)
    seconds = time.process_time() - start
    objective = scnn.objective(table, LAMBDA, W, U)
    found = {"seconds": round(seconds, 3), "objective": objective, "units": len(W), "gates": options.gates}
    ratio = round(seconds / result["ours"], 2)
    worse = round(objective / result["objective"], 4)
    return {
        **result,
        "peer": found["seconds"],
        "ratio": ratio,
        "objective_ratio": worse,
        "peers": {"pyscnn": found},
    }


def fully_connected(d: int, options: Namespace) -> Json:
    """Return medians over seeds."""
    runs = []
    for seed in range(options.seeds):
        table = data.generated(d, options.n, seed)
        problem = Problem(SquaredLoss(table.y[:, None]), ReLUAtom(table.X, 1), 1.0)
        runs.append({"seed": seed, **described(*solve(problem, float(options.tol), options))})
        print({key: runs[-1][key] for key in ("seed", "ours", "error", "units")}, flush=True)
    medians = {key: statistics.median(run[key] for run in runs) for key in ("ours", "error", "wall")}
    return {**medians, "peer": None, "ratio": None, "n": options.n, "lambda": 1.0, "runs": runs}


def exact(d: int, options: Namespace) -> Json:
    """Return whether our interval contains the optimum."""
    problem, peer = relu(d, 50)
    result = described(*solve(problem, float(options.tol), options))
    start = time.process_time()
    optimum = peer()
    seconds = time.process_time() - start
    slack = 1e-6 * optimum  # the accuracy that is asked of the program's solver
    inside = result["dual_bound"] <= optimum + slack and optimum <= result["objective"] + slack
    ratio = round(seconds / result["ours"], 2)
    return {**result, "peer": round(seconds, 3), "ratio": ratio, "optimum": optimum, "contains": inside}


def random_restarts(options: Namespace) -> Json:
    """Return how often an independent optimizer beats a bound."""
    rows: list[Json] = []
    skipped: Json = {}
    each = -(-options.restarts // len(data.TABLES))
    for name in data.TABLES:
        try:
            table = data.table(name, options.n, options.dimensions)
        except data.MissingData as outcome:
            skipped[name] = str(outcome)
            continue
        loss, atom = SquaredLoss(table.y[:, None], 1.0 / len(table.y)), ReLUAtom(table.X, 1)
        lam = SHARE * Problem(loss, atom, 1.0).lambda_max(budget=1.0).low
        solution, seconds = solve(Problem(loss, atom, lam), float(options.tol), options)
        start = time.process_time()
        ends = restarts.best_of(
            table, lam, restarts=each, width=options.width, steps=options.steps, seed=options.seed
        )
        row = {
            "data": name,
            "shape": list(table.X.shape),
            **described(solution, seconds),
            "below": int((ends < solution.certificate.dual_bound).sum()),
            "best": float(ends.min()),
            "better_than_ours": int((ends < solution.certificate.objective).sum()),
            "peer": round(time.process_time() - start, 3),
        }
        rows.append(row)
        print({key: row[key] for key in ("data", "shape", "error", "objective", "best", "below")}, flush=True)
    if not rows:
        raise SystemExit(f"--case restarts: expected some data, found none: {skipped}")
    total = sum(row["ours"] for row in rows), sum(row["peer"] for row in rows)
    return {
        "ours": round(total[0], 3),
        "peer": round(total[1], 3),
        "ratio": round(total[1] / total[0], 2),
        "error": max(row["error"] for row in rows),
        "below": sum(row["below"] for row in rows),
        "restarts": each * len(rows),
        "least_ratio": min(row["best"] / row["dual_bound"] for row in rows if row["dual_bound"] > 0.0),
        "tables": rows,
        "skipped": skipped,
    }


def convolution(case: str, options: Namespace) -> Json:
    """Return a certified network of images, and its accuracies."""
    load, kernel, basis = IMAGES[case]
    try:
        images, labels = load()
    except data.MissingData as outcome:
        raise SystemExit(f"--case {case}: {outcome}") from outcome
    order = np.random.default_rng(options.seed).permutation(len(images))[: options.images or len(images)]
    images, labels = images[order], labels[order]
    classes = int(labels.max()) + 1
    one_hot = np.eye(classes)[labels]

    def problem(chosen: slice, lam: float) -> Problem:
        targets = one_hot[chosen] - one_hot[chosen].mean(0)
        atom = ConvReLUAtom(images[chosen], classes, kernel, pool=2, basis=basis)
        return Problem(SquaredLoss(targets, 1.0 / len(targets)), atom, lam)

    def accuracy(fitted: Problem, solution: Solution, seen: slice, asked: slice) -> float:
        params = tuple(p.cpu() for p in solution.params)
        atom = fitted.atom
        assert isinstance(atom, ConvReLUAtom)
        scores = atom.phi(params, images[asked]).numpy() + one_hot[seen].mean(0)
        return float((scores.argmax(1) == labels[asked]).mean())

    whole, train, test = slice(None), slice(0, 3 * len(images) // 4), slice(3 * len(images) // 4, None)
    top = problem(whole, 1.0).lambda_max(budget=float(options.lambda_budget))
    lam = float(options.share) * top.low
    fitted = problem(whole, lam)
    solution, seconds = solve(fitted, float(options.tol), options, options.seed)
    result = described(solution, seconds)
    part = problem(train, lam)
    other, _ = solve(part, 10.0 * float(options.tol), options, options.seed)
    return {
        **result,
        "peer": None,
        "ratio": None,
        "lambda": lam,
        "lambda_max": [top.low, top.high],
        "share": float(options.share),
        "images": list(images.shape),
        "accuracy": accuracy(fitted, solution, whole, whole),
        "held_out_accuracy": accuracy(part, other, train, test),
        "history": [[line.seconds, line.gap, line.polar_high] for line in solution.history],
    }


def main() -> None:
    options = read_options(
        __doc__,
        CASES,
        "breast-cancer",
        budget="none",
        tol="1e-2",
        device="cpu",
        seed=0,
        seeds=5,
        n=200,
        gates=50,
        restarts=10_000,
        dimensions=4,
        width=16,
        steps=1000,
        share="0.1",
        lambda_budget="5",
        images=0,
        verbose=0,
        jobs=1,
    )
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: expected a GPU that PyTorch sees, found none")
    family, _, rest = options.case.partition("-")
    if options.case == "breast-cancer":
        result = breast_cancer(options)
    elif family == "relu":
        result = fully_connected(int(rest), options)
    elif family == "exact":
        result = exact(int(rest), options)
    elif options.case == "restarts":
        result = random_restarts(options)
    else:
        result = convolution(options.case, options)
    assert math.isfinite(result["ours"])
    last = {"unit": "s", "device": options.device, "threads": options.threads}
    print(json.dumps({"benchmark": "networks", "case": options.case, **result, **last}))


if __name__ == "__main__":
    main()

"""Certified fits against convex solvers: CPU seconds to the same optimum, ours with its own proof.

``relu-D-N``
    two-layer ReLU network, one output, N samples in D dimensions, lambda = 1: `Problem.solve` to a proved gap of
    1e-6 against cvxpy with Clarabel on the convex program over all activation patterns;
``nuclear-N``
    an N x N matrix, half of it observed: against cvxpy with Clarabel on the nuclear-norm program.
The last line is one JSON object; ``error`` is our proved relative gap, ``peer_error`` how far the peer ends above
our dual bound, relatively.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch

from benchmarks.timing import alternate, read_options
from theodolite.atoms import MatrixAtom, ReLUAtom
from theodolite.core.problem import Problem
from theodolite.losses import MaskedSquaredLoss, SquaredLoss
from theodolite.polar.arrangement import patterns

CASES = ["relu-2-50", "relu-2-100", "relu-3-50", "relu-3-100", "nuclear-20", "nuclear-40"]
TOL = 1e-6
Peer = Callable[[], float]


def relu(d: int, n: int) -> tuple[Problem, Peer]:
    rng = np.random.default_rng(0)
    X, A = rng.standard_normal((n, d)), rng.standard_normal((d, 4))
    y = np.maximum(X @ A, 0) @ np.array([1, -1, 1, -1]) + 0.1 * rng.standard_normal(n)

    def solve() -> float:
        D = patterns(torch.from_numpy(X)).numpy().astype(float)
        V, U = cp.Variable((d, len(D))), cp.Variable((d, len(D)))
        fit = cp.sum(cp.multiply(D.T, X @ (V - U)), axis=1)
        norms = cp.sum(cp.norm(V, 2, axis=0)) + cp.sum(cp.norm(U, 2, axis=0))
        inside = [cp.multiply(2 * D.T - 1, X @ part) >= 0 for part in (V, U)]
        program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(fit - y) + norms), inside)
        program.solve(solver=cp.CLARABEL)
        return float(program.value)

    return Problem(SquaredLoss(torch.from_numpy(y)[:, None]), ReLUAtom(X, 1), 1.0), solve


def nuclear(n: int) -> tuple[Problem, Peer]:
    rng = np.random.default_rng(0)
    L = rng.standard_normal((n, 3)) @ rng.standard_normal((3, n)) / math.sqrt(3)
    mask = rng.random((n, n)) < 0.5
    Y = L + 0.1 * rng.standard_normal((n, n))
    rows, cols = mask.nonzero()
    problem = Problem(MaskedSquaredLoss(rows, cols, Y[mask], (n, n)), MatrixAtom((n, n)), 1.0)

    def solve() -> float:
        Z = cp.Variable((n, n))
        objective = 0.5 * cp.sum_squares(cp.multiply(mask, Z - Y)) + cp.normNuc(Z)
        program = cp.Problem(cp.Minimize(objective))
        program.solve(solver=cp.CLARABEL)
        return float(program.value)

    return problem, solve


def main() -> None:
    options = read_options(__doc__, CASES, CASES[0], runs=3)
    family, *numbers = options.case.split("-")
    problem, solve = {"relu": relu, "nuclear": nuclear}[family](*map(int, numbers))
    certificate = problem.solve(tol=TOL).certificate
    value = solve()
    seconds = alternate({"ours": lambda: problem.solve(tol=TOL), "peer": solve}, options.runs)
    print(
        json.dumps(
            {
                "benchmark": "certified",
                "case": options.case,
                "ours": round(seconds["ours"], 4),
                "peer": round(seconds["peer"], 4),
                "ratio": round(seconds["peer"] / seconds["ours"], 2),
                "error": certificate.gap,
                "peer_error": value / certificate.dual_bound - 1.0,
                "objective": certificate.objective,
                "unit": "s",
                "device": "cpu",
                "threads": options.threads,
            }
        )
    )


if __name__ == "__main__":
    main()

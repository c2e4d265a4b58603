"""Certified fits against convex solvers: CPU seconds to the same optimum, ours with its own proof.

``relu-D-N``
    two-layer ReLU network, one output, N samples in D dimensions, lambda = 1: `Problem.solve` to a proved gap of
    1e-6 against cvxpy with Clarabel on the convex program over all activation patterns;
``nuclear-N``
    an N x N matrix, half of it observed: against cvxpy with Clarabel on the nuclear-norm program;
``completion-N``
    an N x N matrix of rank 5 with noise, 20 % observed, to 1e-6: against accelerated proximal gradient with a full
    singular value decomposition in NumPy, stopped by the knowledge of our bound.

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
from numpy.typing import NDArray

from benchmarks.timing import alternate, read_options
from theodolite.atoms import MatrixAtom, ReLUAtom
from theodolite.core.problem import Problem
from theodolite.losses import MaskedSquaredLoss, SquaredLoss
from theodolite.polar.arrangement import patterns

CASES = [
    *("relu-2-50", "relu-2-100", "relu-3-50", "relu-3-100"),
    *("nuclear-20", "nuclear-40", "completion-100", "completion-300", "completion-1000"),
]
TOL = 1e-6
Array = NDArray[np.float64]
Peer = Callable[[float], Callable[[], float]]


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

    return Problem(SquaredLoss(torch.from_numpy(y)[:, None]), ReLUAtom(X, 1), 1.0), lambda _: solve


def masked(
    n: int, rank: int, density: float, noise: float, lam: float
) -> tuple[Problem, Array, NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    L = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n)) / math.sqrt(rank)
    mask = rng.random((n, n)) < density
    Y = L + noise * rng.standard_normal((n, n))
    rows, cols = mask.nonzero()
    return Problem(MaskedSquaredLoss(rows, cols, Y[mask], (n, n)), MatrixAtom((n, n)), lam), Y, mask


def nuclear(n: int) -> tuple[Problem, Peer]:
    problem, Y, mask = masked(n, 3, 0.5, 0.1, 1.0)

    def solve() -> float:
        Z = cp.Variable((n, n))
        objective = 0.5 * cp.sum_squares(cp.multiply(mask, Z - Y)) + cp.normNuc(Z)
        program = cp.Problem(cp.Minimize(objective))
        program.solve(solver=cp.CLARABEL)
        return float(program.value)

    return problem, lambda _: solve


def completion(n: int) -> tuple[Problem, Peer]:
    lam = math.sqrt(0.2 * n)
    problem, Y, mask = masked(n, 5, 0.2, 0.5, lam)

    def peer(bound: float) -> Callable[[], float]:
        def solve() -> float:
            Z = M = np.zeros((n, n))
            t, value = 1.0, math.inf
            for _ in range(3000):
                U, s, V = np.linalg.svd(M - mask * (M - Y), full_matrices=False)
                s = np.maximum(s - lam, 0.0)
                new = (U * s) @ V
                last, value = value, 0.5 * float(np.square((new - Y)[mask]).sum()) + lam * float(s.sum())
                if value <= bound * (1 + TOL):
                    return value
                if value > last:  # restart the momentum
                    t = 1.0
                t_new = 0.5 * (1 + math.sqrt(1 + 4 * t * t))
                Z, M, t = new, new + (t - 1) / t_new * (new - Z), t_new
            return value

        return solve

    return problem, peer


def main() -> None:
    options = read_options(__doc__, CASES, CASES[0], runs=3)
    family, *numbers = options.case.split("-")
    problem, peer = {"relu": relu, "nuclear": nuclear, "completion": completion}[family](*map(int, numbers))
    certificate = problem.solve(tol=TOL).certificate
    solve = peer(certificate.dual_bound)
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

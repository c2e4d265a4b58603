"""Objectives and dual bounds against cvxpy's optimum, for every loss and gauge that cvxpy can express.

A parametrized cvxpy problem is compiled once for each pair of a loss and a gauge, and solved for several draws of
the targets and of lambda: 2 by default, more where the environment variable THEODOLITE_DRAWS says so.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from theodolite.atoms import MatrixAtom, SignMatrixAtom
from theodolite.core.atom import Atom
from theodolite.core.problem import Problem
from theodolite.losses import (
    CrossEntropyLoss,
    HuberLoss,
    LogisticLoss,
    Loss,
    MaskedLoss,
    MaskedSquaredLoss,
    PoissonLoss,
    SquaredLoss,
)

N, M = 6, 5
DELTA, BACKGROUND = 0.6, 0.5
DRAWS = int(os.environ.get("THEODOLITE_DRAWS", "2"))  # of each pair of a gauge and a loss
Array = np.ndarray


def weight(size: int, seed: int) -> Array:
    """Return a well-conditioned matrix."""
    return np.eye(size) + 0.3 * np.random.default_rng(seed).standard_normal((size, size)) / math.sqrt(size)


LEFT, RIGHT = weight(N, 1), np.random.default_rng(2).uniform(0.5, 2.0, M)


def signs(Z: cp.Expression) -> tuple[cp.Expression, list[cp.Constraint]]:
    """Return sum ||w_s||_2 and Z = sum w_s s^T over all sign vectors s, up to their sign."""
    S = np.array([[1.0, *s] for s in itertools.product((-1.0, 1.0), repeat=M - 1)])
    W = cp.Variable((len(S), N))
    return cp.sum(cp.norm(W, 2, axis=1)), [Z == W.T @ S]


def codes(Z: cp.Expression) -> tuple[cp.Expression, list[cp.Constraint]]:
    """Return sum of |weights| over all products of two sign vectors."""
    left = np.array([[1.0, *s] for s in itertools.product((-1.0, 1.0), repeat=N - 1)])
    right = np.array([[1.0, *s] for s in itertools.product((-1.0, 1.0), repeat=M - 1)])
    W = cp.Variable((len(left), len(right)))
    return cp.sum(cp.abs(W)), [left.T @ W @ right == Z]


def columns(norm: Any) -> Callable[[cp.Expression], tuple[cp.Expression, list[cp.Constraint]]]:
    return lambda Z: (cp.sum(cp.norm(Z, norm, axis=0)), [])


def rows(norm: Any) -> Callable[[cp.Expression], tuple[cp.Expression, list[cp.Constraint]]]:
    return lambda Z: (cp.sum(cp.norm(Z, norm, axis=1)), [])


def nuclear(Z: cp.Expression) -> tuple[cp.Expression, list[cp.Constraint]]:
    return cp.normNuc(Z), []


@dataclass(frozen=True)
class Gauge:
    """A family, and its gauge in cvxpy's terms."""

    atom: Atom
    expression: Callable[[cp.Expression], tuple[cp.Expression, list[cp.Constraint]]]


def matrix(norms: tuple[str, str], *weights: Array) -> MatrixAtom:
    pair = tuple(torch.from_numpy(w) for w in weights) or (None, None)
    return MatrixAtom((N, M), norms=norms, weights=pair)


GAUGES = {
    "l2 l2": Gauge(matrix(("l2", "l2")), nuclear),
    "l2 l1": Gauge(matrix(("l2", "l1")), columns(2)),
    "l1 l2": Gauge(matrix(("l1", "l2")), rows(2)),
    "l1 l1": Gauge(matrix(("l1", "l1")), columns(1)),
    "linf l1": Gauge(matrix(("linf", "l1")), columns("inf")),
    "l1 linf": Gauge(matrix(("l1", "linf")), rows("inf")),
    "weighted l2 l2": Gauge(matrix(("l2", "l2"), LEFT, RIGHT), lambda Z: nuclear(LEFT @ Z @ np.diag(RIGHT))),
    "weighted l2 l1": Gauge(
        matrix(("l2", "l1"), LEFT, RIGHT), lambda Z: columns(2)(LEFT @ Z @ np.diag(RIGHT))
    ),
    "l2 linf": Gauge(SignMatrixAtom((N, M)), signs),
    "linf linf": Gauge(SignMatrixAtom((N, M), ("linf", "linf")), codes),
}


@dataclass(frozen=True)
class Kind:
    """A loss of targets Y on a mask, and the same in cvxpy's terms; drawn targets."""

    ours: Callable[[Array, Array], Loss]
    expression: Callable[[cp.Expression, cp.Parameter, cp.Parameter], Terms]
    draw: Callable[[np.random.Generator], Array]
    masked: bool = False
    counts: bool = False  # nonnegative targets


def on_mask(loss: Callable[[Array], Loss]) -> Callable[[Array, Array], Loss]:
    def build(Y: Array, mask: Array) -> Loss:
        i, j = mask.nonzero()
        return MaskedLoss(loss(Y[i, j]), i, j, (N, M))

    return build


def real(rng: np.random.Generator) -> Array:
    return 2.0 * rng.standard_normal((N, M))


def sign(rng: np.random.Generator) -> Array:
    return np.sign(rng.standard_normal((N, M)))


def count(rng: np.random.Generator) -> Array:
    return rng.poisson(rng.uniform(0.2, 3.0, (N, M))).astype(float)


def one_hot(rng: np.random.Generator) -> Array:
    return np.eye(M)[rng.integers(0, M, N)]


Terms = tuple[cp.Expression, list[cp.Constraint]]


def huber_terms(Z: cp.Expression, Y: cp.Parameter, mask: cp.Parameter) -> Terms:
    E = cp.Variable((N, M))  # so that no two parameters are multiplied
    return 0.5 * cp.sum(cp.multiply(mask, cp.huber(E, DELTA))), [E == Z - Y]


def square_terms(Z: cp.Expression, Y: cp.Parameter, mask: cp.Parameter) -> Terms:
    E = cp.Variable((N, M))
    return 0.5 * cp.sum(cp.multiply(mask, cp.square(E))), [E == Z - Y]


def logistic_terms(Z: cp.Expression, Y: cp.Parameter, mask: cp.Parameter) -> Terms:
    # targets off the mask are zero, where the logistic function is ln 2
    return cp.sum(cp.logistic(-cp.multiply(Y, Z))) - math.log(2.0) * cp.sum(1.0 - mask), []


def poisson_terms(Z: cp.Expression, Y: cp.Parameter, mask: cp.Parameter) -> Terms:
    return cp.sum(cp.multiply(mask, cp.exp(Z))) - cp.sum(cp.multiply(Y, Z)), []


def identity_terms(Z: cp.Expression, Y: cp.Parameter, _: cp.Parameter) -> Terms:
    return cp.sum(Z + BACKGROUND) - cp.sum(cp.multiply(Y, cp.log(Z + BACKGROUND))), []


def cross_entropy_terms(Z: cp.Expression, Y: cp.Parameter, _: cp.Parameter) -> Terms:
    return cp.sum(cp.log_sum_exp(Z, axis=1)) - cp.sum(cp.multiply(Y, Z)), []


LOSSES = {
    "squared": Kind(lambda Y, _: SquaredLoss(Y), square_terms, real),
    "logistic": Kind(lambda Y, _: LogisticLoss(Y), logistic_terms, sign),
    "huber": Kind(lambda Y, _: HuberLoss(Y, DELTA), huber_terms, real),
    "poisson": Kind(lambda Y, _: PoissonLoss(Y), poisson_terms, count, counts=True),
    "poisson identity": Kind(
        lambda Y, _: PoissonLoss(Y, link="identity", offset=BACKGROUND),
        identity_terms,
        lambda rng: (
            count(rng) + 1.0
        ),  # at a count of zero the loss ends at a rate of zero, without a gradient
        counts=True,
    ),
    "cross-entropy": Kind(
        lambda Y, _: CrossEntropyLoss(Y.argmax(1), M),
        cross_entropy_terms,
        one_hot,
    ),
    "masked squared": Kind(
        lambda Y, mask: MaskedSquaredLoss(*mask.nonzero(), Y[mask.nonzero()], (N, M)),
        square_terms,
        real,
        masked=True,
    ),
    "one bit": Kind(on_mask(LogisticLoss), logistic_terms, sign, masked=True),
    "masked huber": Kind(on_mask(lambda Y: HuberLoss(Y, DELTA)), huber_terms, real, masked=True),
    "masked counts": Kind(on_mask(PoissonLoss), poisson_terms, count, masked=True, counts=True),
}


@cache
def compiled(gauge: str, loss: str) -> tuple[cp.Problem, cp.Parameter, cp.Parameter, cp.Parameter]:
    kind = LOSSES[loss]
    Z, lam = cp.Variable((N, M)), cp.Parameter(nonneg=True)
    Y, mask = cp.Parameter((N, M), nonneg=kind.counts), cp.Parameter((N, M), nonneg=True)
    size, constraints = GAUGES[gauge].expression(Z)
    terms, definitions = kind.expression(Z, Y, mask)
    problem = cp.Problem(cp.Minimize(terms + lam * size), constraints + definitions)
    assert problem.is_dcp(dpp=True)
    return problem, Y, mask, lam


def optimum(gauge: str, loss: str, targets: Array, observed: Array, strength: float) -> float:
    """Return cvxpy's optimum, to 1e-7 or better."""
    problem, Y, mask, lam = compiled(gauge, loss)
    Y.value, mask.value, lam.value = targets, observed, strength
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the looser tolerance, below, that was reached
        for tol, step in itertools.product((1e-10, 1e-9, 1e-8), (0.99, 0.9)):
            goals = {f"tol_{name}": tol for name in ("gap_abs", "gap_rel", "feas")}
            goals |= {f"reduced_{name}": 1e-7 for name in goals}
            with suppress(cp.SolverError):  # it gives up where its steps become too short
                problem.solve(solver=cp.CLARABEL, max_step_fraction=step, **goals)
                assert problem.status in ("optimal", "optimal_inaccurate")
                return float(problem.value)
    raise AssertionError("cvxpy reached no optimum")  # what the problem holds would be that of the last draw


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gauge", GAUGES)
def test_objective_and_bound_against_cvxpy(gauge, loss):
    kind, atom = LOSSES[loss], GAUGES[gauge].atom
    rng = np.random.default_rng([list(GAUGES).index(gauge), list(LOSSES).index(loss)])
    for _ in range(DRAWS):
        observed = np.ones((N, M))
        if kind.masked:
            observed = (rng.random((N, M)) < 0.6).astype(float)
        targets = kind.draw(rng) * observed
        ours = kind.ours(targets, observed)
        strength = float(rng.uniform(0.05, 0.7)) * Problem(ours, atom, 1.0).lambda_max().high
        best = optimum(gauge, loss, targets, observed, strength)
        certificate = Problem(ours, atom, strength).solve(tol=3e-7, budget=60).certificate
        slack = 2e-7 * max(1.0, abs(best))
        assert certificate.objective == pytest.approx(best, rel=1e-6, abs=1e-6)
        assert certificate.dual_bound <= best + slack
        assert certificate.dual_bound <= certificate.objective
        assert certificate.objective >= best - slack
        assert certificate.verdict == "closed"

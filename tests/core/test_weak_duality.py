"""Weak duality: nothing that is proved from outside exceeds anything that is attained, whatever the problem."""

from __future__ import annotations

import math

import pytest
import torch
from fixtures.loss_cases import NAMES, make_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from theodolite.atoms import GatedReLUAtom, LinearNetAtom, MatrixAtom, QuadraticAtom, ReLUAtom, SignMatrixAtom
from theodolite.core.atom import Atom
from theodolite.core.problem import Problem
from theodolite.losses import HuberLoss, Loss, MaskedLoss, PoissonLoss

PAIRS = [("l2", "l2"), ("l2", "l1"), ("l1", "l2"), ("l1", "l1"), ("linf", "l1"), ("l1", "linf")]
SIGNS = [("l2", "linf"), ("linf", "l2"), ("linf", "linf")]
MORE = ["masked huber", "masked counts", "masked identity"]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_loss(name: str, n: int, k: int, scale: float, seed: int) -> Loss:
    if name == "poisson identity":  # a count of zero ends at a rate of zero, where there is no gradient
        return PoissonLoss(1.0 + normal(n, k, seed=seed).abs().round(), scale, "identity", offset=0.75)
    if name not in MORE:
        return make_cases(n, k, scale, seed)[name].loss
    rows, cols = torch.arange(n), torch.arange(n) % k
    y = normal(n, 1, seed=seed)
    if name == "masked huber":
        return MaskedLoss(HuberLoss(y, 0.7, scale), rows, cols, (n, k))
    if name == "masked counts":
        return MaskedLoss(PoissonLoss(y.abs().round(), scale), rows, cols, (n, k))
    return MaskedLoss(PoissonLoss(1.0 + y.abs().round(), scale, "identity", offset=0.6), rows, cols, (n, k))


def make_atom(kind: int, n: int, k: int, seed: int) -> Atom:
    X = normal(n, 2, seed=seed + 7)
    if kind < len(PAIRS):
        return MatrixAtom((n, k), PAIRS[kind])
    kind -= len(PAIRS)
    if kind < len(SIGNS):
        return SignMatrixAtom((n, k), SIGNS[kind])
    weights = torch.eye(n, dtype=torch.float64) + 0.2 * normal(n, n, seed=seed), normal(k, seed=seed).exp()
    return [
        MatrixAtom((n, k), weights=weights),
        MatrixAtom((n, k), ("l2", "l1"), weights=weights),
        LinearNetAtom(X, k, depth=3),
        GatedReLUAtom(X, k, normal(3, 2, seed=seed)),
        QuadraticAtom(X, k),
        ReLUAtom(X, k),
    ][kind - len(SIGNS)]


KINDS = len(PAIRS) + len(SIGNS) + 6


@st.composite
def problems(draw: st.DrawFn) -> tuple[Problem, int]:
    n, k, seed = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(0, 2**20))
    scale = draw(st.sampled_from([1.0, 0.1, 30.0]))
    loss = make_loss(draw(st.sampled_from(NAMES + MORE)), n, k, scale, seed)
    atom = make_atom(draw(st.integers(0, KINDS - 1)), n, k, seed)
    strength = draw(st.floats(1e-3, 2.0)) * max(
        Problem(loss, atom, 1.0).lambda_max(budget=0).low, 1e-3 * scale
    )
    return Problem(loss, atom, strength), seed


def points(problem: Problem, seed: int) -> list[tuple[Tensor, ...]]:
    """Return random subnetworks in the loss's domain, none, and descended ones."""
    atom = problem.atom
    found = [atom.init(0)]
    for r, size in ((1, 0.1), (3, 0.3), (4, 1.0)):
        params = atom.scale(atom.init(r, seed=seed + r), size * normal(r, seed=seed + r).exp())
        if math.isfinite(problem.objective(params)):
            found.append(params)
    found.append(problem.solve(tol=1e-2, budget=0.1, max_rounds=2, seed=seed).params)
    return found


@settings(max_examples=40)
@given(problems())
def test_no_dual_bound_exceeds_an_objective(case):
    problem, seed = case
    several = points(problem, seed)
    certificates = [problem.certify(p, seed=seed, budget=budget) for p in several for budget in (0.0, 0.05)]
    least = min(c.objective for c in certificates)
    assert max(c.dual_bound for c in certificates) <= least
    for certificate in certificates:
        assert certificate.polar.low <= certificate.polar.high
        assert certificate.gap >= 0.0
    # the objective that a certificate states is that of its subnetworks, rounded up
    for i, p in enumerate(several):
        assert certificates[2 * i].objective == pytest.approx(problem.objective(p), rel=1e-9)
        assert certificates[2 * i].objective >= problem.objective(p)


@settings(max_examples=40)
@given(problems(), st.integers(0, 2**20), st.floats(0.0, 1.0))
def test_no_scaled_dual_point_exceeds_an_objective(case, other, mix):
    """Not residuals: any Q, scaled by lambda over the proved upper end of its polar."""
    problem, seed = case
    loss = problem.loss
    several = points(problem, seed)
    R = -loss.gradient(problem.predictions(several[-1]))
    noise = normal(*loss.prediction_shape, seed=other) * float(R.abs().mean())
    # a mixture with the residual, so that the domain of the dual is not always left at once
    Q = (1.0 - mix) * R + mix * noise * (R.sign() * noise >= 0.0)
    upper = problem.atom.polar(problem.matrix(Q), budget=0.05, seed=other).high
    limit = problem.lam / upper if upper > 0.0 else math.inf
    _, best = loss.best_t(Q, upper=min(limit, 1e6))
    least = min(problem.objective(p) for p in several)
    assert best <= least + 1e-12 * abs(least) + 1e-300
    for t in (0.0, 0.3, 1.0):
        assert loss.dual(t * min(limit, 1e6) * Q) <= least + 1e-12 * abs(least) + 1e-300


@settings(max_examples=40)
@given(problems(), st.integers(0, 2**20))
def test_fenchel_and_young_at_any_pair_of_points(case, other):
    problem, seed = case
    loss = problem.loss
    Z = problem.predictions(points(problem, seed)[-1])
    G = loss.gradient(Z)
    for Q in (-G, -0.4 * G, normal(*loss.prediction_shape, seed=other) * loss.scale):
        size = 1.0 + abs(loss.value(Z)) + float((Q * Z).abs().sum())
        assert loss.value(Z) >= loss.dual(Q) - float((Q * Z).sum()) - 1e-12 * size
    size = 1.0 + abs(loss.value(Z)) + float((G * Z).abs().sum())
    assert loss.value(Z) == pytest.approx(loss.dual(-G) + float((G * Z).sum()), abs=1e-10 * size)

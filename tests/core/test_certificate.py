"""Certificates: valid at every point, exact where the answer is known, honest in what they say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_atoms import Entry, soft_threshold

from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, PoissonLoss, SquaredLoss
from theodolite.value import Value


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entrywise(seed: int, lam: float) -> tuple[Problem, torch.Tensor, float]:
    """An l1 problem with its solution and optimal value."""
    Y = normal(5, 3, seed=seed)
    Z = soft_threshold(Y, lam)
    problem = Problem(SquaredLoss(Y), Entry((5, 3)), lam)
    return problem, Z, 0.5 * float((Y - Z).square().sum()) + lam * float(Z.abs().sum())


@given(seed=st.integers(0, 10**6), lam=st.floats(1e-3, 10.0), r=st.integers(0, 4), size=st.floats(0.0, 100.0))
def test_weak_duality_at_any_point(seed, lam, r, size):
    problem, Z, optimum = entrywise(seed, lam)
    params = Entry((5, 3)).init(r, seed=seed)
    c = problem.certify((size * params[0],))
    assert c.dual_bound <= optimum * (1 + 1e-14)
    assert c.objective >= optimum * (1 - 1e-14)
    assert c.gap >= 0.0
    total = size * params[0].sum(0) if r else torch.zeros(5, 3)
    assert 0.5 * float((total - Z).square().sum()) <= c.objective - c.dual_bound


def test_the_optimum_is_closed():
    problem, Z, optimum = entrywise(3, 0.5)
    c = problem.certify((Z[None],), tol=1e-12)
    assert c.verdict == "closed"
    assert c.kind == "bound"
    assert c.confidence == 1.0
    assert c.objective == pytest.approx(optimum, rel=1e-13)
    assert c.dual_bound == pytest.approx(optimum, rel=1e-13)
    assert abs(c.stationarity) < 1e-12
    assert c.polar_ratio == pytest.approx((1.0, 1.0))


def test_the_zero_model_is_closed_with_gap_0_from_lambda_max_on():
    Y = normal(5, 3)
    for loss in (SquaredLoss(Y), CrossEntropyLoss(torch.tensor([0, 1, 2, 2, 1]), 3, 0.2)):
        atom = Entry((5, 3))
        top = Problem(loss, atom, 1.0).lambda_max().high
        c = Problem(loss, atom, top * (1 + 1e-9)).certify(atom.init(0))
        assert (c.verdict, c.gap, c.units) == ("closed", 0.0, 0)
        assert c.dual_bound <= loss.value(loss.zeros()) <= c.objective
        assert Problem(loss, atom, 0.9 * top).certify(atom.init(0)).verdict == "improvable"


def test_improvable_means_that_the_witness_improves():
    problem, _, optimum = entrywise(1, 0.3)
    start = Entry((5, 3)).init(0)
    c = problem.certify(start)
    assert c.verdict == "improvable"
    best = min(problem.objective((s * c.polar.witness[0][:1],)) for s in torch.linspace(0, 3, 301))
    assert best < problem.objective(start)
    assert 0.0 < c.decrease <= problem.objective(start) - optimum
    # the predicted decrease of a smooth loss: at least (polar - lam)^2 / (2 beta c^2)
    assert c.decrease >= (c.polar.low - 0.3) ** 2 / 2 * (1 - 1e-9)
    assert "nothing of the present width" in str(c)


class NoWitness(Entry):
    """Its polar is known from above only."""

    def polar(self, Q, **options):
        return Value.bound(0.0, 1.5 * float(Q.abs().max()))


def test_without_a_witness_the_verdict_is_undecided():
    c = Problem(SquaredLoss(normal(5, 3)), NoWitness((5, 3)), 0.5).certify(Entry((5, 3)).init(0))
    assert (c.verdict, c.decrease) == ("undecided", 0.0)
    assert 0.0 < c.gap < math.inf


def test_budget_0_is_valid_and_loose():
    problem, Z, optimum = entrywise(2, 0.5)
    loose, tight = problem.certify((Z[None],), budget=0), problem.certify((Z[None],))
    assert loose.dual_bound < tight.dual_bound <= optimum * (1 + 1e-14)


class Randomized(Entry):
    def polar(self, Q, *, delta, **options):
        value = super().polar(Q)
        return Value.bound(value.lower, value.upper, confidence=1 - delta, witness=value.witness)


def test_failure_probability_is_passed_on():
    problem = Problem(SquaredLoss(normal(5, 3)), Randomized((5, 3)), 0.5)
    c = problem.certify(Entry((5, 3)).init(0), delta=0.01)
    assert c.confidence == pytest.approx(0.99)
    assert "with probability 0.99" in str(c)
    c = problem.solve(tol=1e-6, delta=0.01).certificate
    assert 0.99 <= c.confidence < 1.0 - 0.01 * 6 / math.pi**2


class WitnessOff(Entry):
    """Claims a lower end that its witness does not attain."""

    def polar(self, Q, **options):
        value = super().polar(Q)
        return Value.bound(value.lower, value.upper, witness=(-value.witness[0],))


def test_a_witness_that_does_not_help_makes_no_improvable():
    c = Problem(SquaredLoss(normal(5, 3)), WitnessOff((5, 3)), 0.5).certify(Entry((5, 3)).init(0))
    assert c.verdict == "undecided"


def test_text_fits_a_terminal():
    problem, Z, _ = entrywise(3, 0.5)
    lines = str(problem.certify((Z[None],))).splitlines()
    assert lines[0].startswith("closed: objective ")
    assert all(len(line) <= 100 for line in lines)


class PolarTooSmall(Entry):
    """Claims an upper end below what is attained."""

    def polar(self, Q, **options):
        top = 0.9 * float(Q.abs().max())
        return Value.bound(0.0, top)


def test_a_polar_that_is_refuted_by_an_attained_objective_raises():
    Y = normal(5, 3)
    Z = soft_threshold(Y, 0.5)
    problem = Problem(SquaredLoss(Y), PolarTooSmall((5, 3)), 0.5)
    with pytest.raises(ArithmeticError, match=r"atom: the upper end of its polar, .* refutes a bound of"):
        problem.certify((Z[None],))


def test_a_curvature_that_underflows_is_no_division_by_zero():
    loss = PoissonLoss([[1.0], [2.0]])  # e^-1000 is its curvature
    c = Problem(loss, Entry((2, 1)), 1e-3).certify((torch.full((1, 2, 1), -1000.0, dtype=torch.float64),))
    assert c.verdict == "improvable"
    assert 0.0 < c.decrease <= c.objective - c.dual_bound


class OwnBound(Entry):
    """Its polar is loose; it knows a lower bound from elsewhere."""

    def __init__(self, lower, confidence=1.0):
        super().__init__((5, 3))
        self.own, self.asked = Value.bound(lower=lower, confidence=confidence), []

    def polar(self, Q, **options):
        value = super().polar(Q)
        return Value.bound(value.lower, 1.5 * value.upper, witness=value.witness)

    def dual_bound(self, problem, params, **options):
        self.asked.append(options)
        return self.own


def own_bound(factor, confidence=1.0):
    problem, Z, optimum = entrywise(0, 0.5)
    return Problem(problem.loss, OwnBound(factor * optimum, confidence), 0.5), (Z[None],), optimum


def test_a_better_bound_of_the_family_closes():
    problem, params, optimum = own_bound(1.0 - 1e-6)
    alone = Problem(problem.loss, OwnBound(-math.inf), 0.5).certify(params)
    assert alone.verdict == "undecided"
    assert alone.gap > 0.01
    c = problem.certify(params, budget=2.0, seed=5, delta=1e-3)
    assert (c.verdict, c.dual_bound, c.confidence) == ("closed", optimum * (1.0 - 1e-6), 1.0)
    assert 0.0 < c.gap == pytest.approx(1e-6, rel=1e-3)
    assert problem.atom.asked == [{"tol": 1e-3, "budget": 0.2, "seed": 5, "delta": pytest.approx(1e-3)}]


def test_solve_and_its_log_have_the_better_bound():
    problem, _, optimum = own_bound(1.0 - 1e-6)
    solution = problem.solve(tol=1e-4)
    assert solution.certificate.verdict == "closed"
    assert solution.certificate.dual_bound == solution.history[-1].dual_bound == optimum * (1.0 - 1e-6)
    assert solution.history[0].dual_bound == optimum * (1.0 - 1e-6)


def test_a_worse_bound_of_the_family_changes_nothing():
    problem, params, optimum = own_bound(0.1)
    c, alone = problem.certify(params), Problem(problem.loss, OwnBound(-math.inf), 0.5).certify(params)
    assert 0.1 * optimum < c.dual_bound == alone.dual_bound
    assert (c.gap, c.verdict) == (alone.gap, alone.verdict)


def test_the_familys_bound_is_not_asked_for_where_the_polar_closes():
    problem, params, _ = own_bound(2.0)  # a lie that nobody asks for
    assert problem.certify(params, tol=10.0).verdict == "closed"
    assert problem.atom.asked == []


@pytest.mark.parametrize("way", ["certify", "solve"])
def test_a_bound_of_the_family_that_is_too_high_raises(way):
    problem, params, _ = own_bound(1.01)
    with pytest.raises(ArithmeticError, match=r"or its dual bound, is wrong: .* refutes a bound of"):
        problem.certify(params) if way == "certify" else problem.solve(tol=1e-4)


def test_a_randomized_bound_of_the_family_passes_its_confidence_on():
    problem, params, _ = own_bound(1.0 - 1e-6, confidence=0.99)
    c = problem.certify(params)
    assert (c.verdict, c.confidence) == ("closed", pytest.approx(0.99))

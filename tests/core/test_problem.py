"""What a problem accepts, and the one sentence with which it refuses the rest."""

from __future__ import annotations

import math

import pytest
import torch
from toy_atoms import Entry

import theodolite as td
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, SquaredLoss

Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def problem(lam: float = 0.5, atom: Entry | None = None) -> Problem:
    return Problem(SquaredLoss(Y), atom or Entry((6, 4)), lam)


def test_problem_is_public():
    assert td.Problem is Problem


@pytest.mark.parametrize("lam", [0, -1.0, math.inf, math.nan, "one", None])
def test_lambda_must_be_positive(lam):
    with pytest.raises(ValueError, match="lam: expected a finite number > 0, got"):
        problem(lam)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"loss, atom: .*\(6, 4\) for the loss and \(4, 6\) for the atom"):
        problem(atom=Entry((4, 6)))


def test_types_are_checked():
    with pytest.raises(TypeError, match=r"loss: expected a theodolite.losses.Loss, got Tensor"):
        Problem(Y, Entry((6, 4)), 1.0)
    with pytest.raises(TypeError, match=r"atom: expected a theodolite.atoms.Atom, got str"):
        Problem(SquaredLoss(Y), "l1", 1.0)


class FirstColumnFree(Entry):
    """theta does not see the first column: phi may be anything there at no cost."""

    def theta(self, params):
        return params[0][:, :, 1:].abs().sum((1, 2))


class Unbounded(Entry):
    def row_bounds(self, support=None):
        return torch.full((6,), math.inf, dtype=torch.float64)


class TooSmallDegree(Entry):
    """phi grows faster than theta in its one tensor."""

    def phi(self, params, X=None):
        return params[0].pow(3).sum(0)


@pytest.mark.parametrize(
    ("atom", "why"),
    [
        (FirstColumnFree, r"phi exceeds theta \* row_bounds"),
        (Unbounded, "its row_bounds are not finite"),
        (TooSmallDegree, r"phi exceeds theta \* row_bounds as tensor 0 grows"),
    ],
)
def test_a_theta_that_vanishes_where_phi_does_not_is_refused(atom, why):
    with pytest.raises(ValueError, match=f"atom: expected a theta that vanishes only where phi does.*{why}"):
        problem(atom=atom((6, 4)))


@pytest.mark.parametrize(
    ("params", "got"),
    [
        (torch.zeros(2, 6, 4), "Tensor"),
        ((torch.zeros(2, 4, 6),), r"\[\(2, 4, 6\)\]"),
        ((torch.zeros(2, 6, 4), torch.zeros(2)), r"\[\(2, 6, 4\), \(2,\)\]"),
        ([[1.0]], "list"),
    ],
)
def test_params_of_other_shapes_are_refused(params, got):
    for action in (problem().certify, lambda p: problem().solve(init=p)):
        with pytest.raises(
            ValueError, match=rf"params: expected tensors of shapes \[\('r', 6, 4\)\], got {got}"
        ):
            action(params)


def test_ranges_are_checked():
    with pytest.raises(ValueError, match="tol: expected a number >= 0, got -1"):
        problem().solve(tol=-1)
    with pytest.raises(ValueError, match="tol: expected a number >= 0, got nan"):
        problem().certify(Entry((6, 4)).init(1), tol=math.nan)
    for action in (problem().lambda_max, lambda b: problem().solve(budget=b)):
        with pytest.raises(ValueError, match="budget: expected seconds >= 0 or None, got -2"):
            action(-2)


def test_params_that_are_not_finite_are_refused():
    W = torch.full((1, 6, 4), math.nan, dtype=torch.float64)
    with pytest.raises(ValueError, match="params: expected finite predictions"):
        problem().certify((W,))


def test_objective_is_the_sum_of_its_parts():
    params = Entry((6, 4)).init(3, seed=1)
    Z = params[0].sum(0)
    expected = 0.5 * float((Y - Z).square().sum()) + 0.5 * float(params[0].abs().sum())
    assert problem(0.5).objective(params) == pytest.approx(expected, rel=1e-14)
    assert problem().objective(Entry((6, 4)).init(0)) == pytest.approx(0.5 * float(Y.square().sum()))


def test_lambda_max_is_the_polar_at_zero():
    value = problem().lambda_max()
    assert value.low == value.high == float(Y.abs().max())
    assert problem().lambda_max(budget=0).high == pytest.approx(float(Y.abs().sum()))


def test_matrix_of_a_support_is_sparse():
    loss = CrossEntropyLoss(torch.tensor([0, 1]), 3)
    dense = Problem(loss, Entry((2, 3)), 0.1).matrix(loss.zeros())
    assert dense.layout == torch.strided


def test_data_can_move_between_devices():
    there = problem().to("cpu")
    assert there.loss is not problem().loss
    assert there.solve(tol=1e-6).certificate.verdict == "closed"

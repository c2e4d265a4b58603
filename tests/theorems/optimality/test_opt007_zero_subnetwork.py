"""OPT007: what is refuted, and that nothing is ever certified by it alone."""

from __future__ import annotations

import math

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.atoms import ReLUAtom
from theodolite.core.descend import descend
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.zero_subnetwork import ZeroSubnetwork
from theodolite.theorems.subject import Subject


def finding(subject: Subject) -> Finding:
    result = evaluate(ZeroSubnetwork(), subject)
    assert result.status != "failed", result.traceback
    return result


def task() -> tuple[Tensor, Tensor, float]:
    """30 points in the plane, one output, and a decay of a fifth of the largest useful one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, dtype=torch.float64, generator=generator)
    y = torch.relu(x @ torch.tensor([[1.0], [2.0]], dtype=torch.float64)) - 0.5 * x[:, :1]
    problem = problem_of(x, y, 1.0)
    return x, y, 0.2 * problem.lambda_max().high


def problem_of(x: Tensor, y: Tensor, decay: float) -> Problem:
    return Problem(SquaredLoss(y, scale=2.0 / len(y)), ReLUAtom(x, 1), decay)


def net(W: Tensor, U: Tensor, spare: int = 1) -> nn.Module:
    """The network of some units and spare ones that are zero."""
    model = nn.Sequential(
        nn.Linear(2, len(W) + spare, bias=False), nn.ReLU(), nn.Linear(len(W) + spare, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.zero_()[: len(W)] = W
        model[2].weight.zero_()[:, : len(W)] = U.T
    return model


def test_a_global_minimum_with_a_spare_unit_passes_and_is_not_certified():
    x, y, decay = task()
    solution = problem_of(x, y, decay).solve(tol=1e-6)
    result = finding(Subject(net(*solution.params), x, y, weight_decay=decay))
    assert result.status == "conditional"
    assert result.values["zero_subnetworks"].value == 1.0
    assert result.values["euler_residual"].value < 1e-4
    assert result.values["polar_ratio"].low == pytest.approx(1.0, abs=1e-3)
    assert "quote no optimality" in result.advice


def test_a_spurious_minimum_of_a_narrow_net_is_refuted_once_there_is_a_free_place():
    """Descent with one unit ends in a minimum; in a spare unit's place a direction lowers the objective."""
    x, y, decay = task()
    problem = problem_of(x, y, decay)
    narrow = problem.atom.init(1, seed=3)
    with torch.no_grad():
        end = descend(problem, narrow, tol=1e-9, deadline=math.inf, progress=lambda _: None)
    assert float(problem.atom.theta(end).sum()) > 0.0
    result = finding(Subject(net(*end), x, y, weight_decay=decay))
    assert result.status == "conditional"
    assert "a zero subnetwork can grow" in result.advice
    ratio = result.values["polar_ratio"].low
    exact = problem.atom.polar(-problem.loss.gradient(problem.atom.phi(end))).high / decay
    assert 1.0 < ratio <= exact * (1 + 1e-9)
    assert ratio == pytest.approx(exact, rel=0.05)


def test_a_point_that_is_not_stationary_is_refuted():
    x, y, decay = task()
    model = net(torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    result = finding(Subject(model, x, y, weight_decay=decay))
    assert result.values["euler_residual"].value > 0.02
    assert "not stationary" in result.advice


@pytest.mark.parametrize("factor", [1.01, 0.9])
def test_the_zero_network_is_a_minimum_from_lambda_max_on(factor):
    x, y, _ = task()
    top = problem_of(x, y, 1.0).lambda_max().high
    empty = net(torch.zeros(0, 2), torch.zeros(0, 1), spare=3)
    result = finding(Subject(empty, x, y, weight_decay=factor * top))
    assert result.status == "conditional"
    assert result.values["zero_subnetworks"].value == 3.0
    assert result.values["polar_ratio"].low == pytest.approx(1.0 / factor, rel=1e-3)
    assert ("quote no optimality" in result.advice) is (factor > 1.0)


def test_branches_are_subnetworks_too():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = builders.mlp(3, 4, 2, seed=1), builders.mlp(3, 4, 2, seed=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)

    model = Sum()
    with torch.no_grad():
        for p in model.two.parameters():
            p.zero_()
    values = finding(Subject(model, torch.randn(9, 3), torch.randn(9, 2), weight_decay=1e-4)).values
    assert values["zero_subnetworks"].value == 4.0  # the units of the second branch
    assert values["polar_ratio"].low > 1.0


def test_without_a_zero_subnetwork_it_says_so():
    x, y, decay = task()
    solution = problem_of(x, y, decay).solve(tol=1e-6)
    result = finding(Subject(net(*solution.params, spare=0), x, y, weight_decay=decay))
    assert set(result.values) == {"euler_residual", "zero_subnetworks"}
    assert "add a subnetwork of zeros" in result.advice


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.subject, "weight decay was not given"),
        (lambda: builders.subject(weight_decay=0.1), "degree 3"),
        (
            lambda: builders.regression_subject(weight_decay=0.1, loss=F.huber_loss),
            "the dual of the loss",
        ),
    ],
)
def test_where_it_does_not_apply(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert reason in result.reason

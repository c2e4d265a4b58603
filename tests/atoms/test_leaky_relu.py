"""Leaky units against the ReLU's polar with twice as many rows, brute force, and networks of torch."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from theodolite.atoms import LeakyReLUAtom, ReLUAtom
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss
from theodolite.polar.leaky import leaky_rows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(m: int) -> Tensor:
    angle = torch.arange(m, dtype=torch.float64) * (2 * math.pi / m)
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("slope", [-1.0, -0.3, 0.0, 0.01, 0.5, 1.0])
def test_two_relus_make_the_leaky_one(slope):
    X, Q, w = normal(9, 3), normal(9, 2, seed=1), normal(3, seed=2)
    rows, weights = leaky_rows(X, Q, slope)
    assert len(rows) == (9 if slope == 0.0 else 18)
    assert torch.allclose(weights.T @ torch.relu(rows @ w), Q.T @ leaky_relu(X @ w, slope))


@pytest.mark.parametrize("slope", [-1.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_polar_is_the_largest_value_on_the_circle(slope, outputs):
    X = normal(8, 2)
    atom, W = LeakyReLUAtom(X, outputs, slope), circle(200_000)
    kinks = nn.functional.normalize(X.flip(1) * torch.tensor([1.0, -1.0]))
    W = torch.cat([W, kinks, -kinks])
    for seed in range(3):
        Q = normal(8, outputs, seed=seed)
        truth = float((leaky_relu(W @ X.T, slope) @ Q).norm(dim=1).max())
        value = atom.polar(Q)
        assert value.low <= truth * (1 + 1e-8)
        assert truth <= value.high * (1 + 1e-12)
        assert value.high <= truth * (1 + 1e-4)


def test_the_ends_of_the_range_are_known():
    """Slope 0 is the ReLU; slope 1 the identity, whose polar is the largest singular value of X' Q."""
    X, Q = normal(8, 3), normal(8, 2, seed=1)
    zero, relu = LeakyReLUAtom(X, 2, 0.0).polar(Q), ReLUAtom(X, 2).polar(Q)
    assert (zero.low, zero.high) == (relu.low, pytest.approx(relu.high, rel=1e-14))
    linear = LeakyReLUAtom(X, 2, 1.0).polar(Q)
    truth = float(torch.linalg.matrix_norm(X.T @ Q, ord=2))
    assert linear.low == pytest.approx(truth, rel=1e-6)
    assert truth <= linear.high <= truth * (1 + 1e-5)


@pytest.mark.parametrize("slope", [0.1, -1.0])
def test_a_leaky_network_is_certified(slope):
    X = normal(30, 2)
    Y = leaky_relu(X @ normal(2, 3, seed=1), slope) @ normal(3, 1, seed=2) + 0.1 * normal(30, 1, seed=3)
    loss, atom = SquaredLoss(Y), LeakyReLUAtom(X, 1, slope)
    problem = Problem(loss, atom, 0.1 * Problem(loss, atom, 1.0).lambda_max().high)
    solution = problem.solve(tol=1e-3, budget=30)
    assert solution.certificate.verdict == "closed"
    W, U = solution.params
    net = nn.Sequential(
        nn.Linear(2, len(W), bias=False), nn.LeakyReLU(slope), nn.Linear(len(W), 1, bias=False)
    )
    with torch.no_grad():
        net.double()[0].weight.copy_(W)
        net[2].weight.copy_(U.T)
        assert torch.allclose(net(X), atom.phi(solution.params))
    for seed in range(10):  # an independent optimizer from random starts
        start = atom.scale(atom.init(12, seed), torch.full((12,), 0.5, dtype=torch.float64))
        leaves = [p.clone().requires_grad_() for p in start]
        optimizer = torch.optim.LBFGS(leaves, max_iter=200, line_search_fn="strong_wolfe")

        def closure(leaves=leaves, optimizer=optimizer):
            optimizer.zero_grad()
            value = 0.5 * (atom.phi(leaves) - Y).square().sum() + problem.lam * atom.penalty(leaves).sum()
            value.backward()
            return value

        optimizer.step(closure)
        reached = problem.objective(tuple(p.detach() for p in leaves))
        assert reached >= solution.certificate.dual_bound


def test_a_slope_out_of_range_is_refused():
    for slope in (1.1, -2.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="negative_slope: expected a number in"):
            LeakyReLUAtom(normal(4, 2), 1, slope)


def test_the_table_of_patterns_has_both_signs_of_each_row():
    atom = LeakyReLUAtom(normal(6, 2), 1, 0.1)
    table, plain = atom.patterns(), ReLUAtom(normal(6, 2), 1).patterns()
    assert table.shape == (len(plain), 12)
    assert torch.equal(table[:, 6:], ~table[:, :6])

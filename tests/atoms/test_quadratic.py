"""Quadratic activations: eigenvalues, trust-region problems, unfoldings, against a dense grid."""

import math

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from theodolite.atoms.quadratic import QuadraticAtom
from theodolite.core.params import count, join
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss

ACTIVATIONS = [(1, 0, 0), (1, 0.5, 0.2), (0.3, -1, 0), (0, 1, 0), (1, 0, -2), (0, 0, 1), (-1, 3, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid_polar(atom: QuadraticAtom, Q: Tensor, m: int = 50_000) -> float:
    """The polar in two dimensions, written from the definition."""
    angle = torch.arange(m, dtype=torch.float64) * (2 * math.pi / m)
    t = atom.X @ torch.stack([angle.cos(), angle.sin()])
    alpha, beta, constant = atom.activation
    return float((Q.T @ (alpha * t**2 + beta * t + constant)).norm(dim=0).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_polar_against_a_dense_grid(activation, outputs):
    for seed in range(4):
        atom = QuadraticAtom(normal(7, 2, seed=seed), outputs, activation)
        Q = normal(7, outputs, seed=10 + seed)
        value, truth = atom.polar(Q, seed=seed), grid_polar(atom, Q)
        assert value.low == pytest.approx(truth, rel=1e-7)
        assert truth <= value.high * (1 + 1e-12)
        if outputs == 1:
            assert value.high <= value.low * (1 + 1e-8)
        else:
            assert value.high <= 1.3 * value.low
        assert atom.polar(Q, budget=0.0).high >= value.high


def test_hard_case_of_the_trust_region_problem():
    # b is orthogonal to the top eigenvector: the dual attains its minimum at the edge of its domain
    X = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    atom = QuadraticAtom(X, 1, (1.0, 0.1, 0.0))
    Q = torch.tensor([[0.0], [1.0], [0.5]]).double() + torch.tensor([[1.0], [0.0], [0.0]])
    for q in (Q, torch.tensor([[1.0], [1.0], [-1.0]]).double()):
        value, truth = atom.polar(q), grid_polar(atom, q)
        assert truth <= value.high <= truth * (1 + 1e-7)
        assert value.low == pytest.approx(truth, rel=1e-7)


def test_polar_of_one_output_is_an_eigenvalue_in_any_dimension():
    X, q = normal(30, 9), normal(30, 1, seed=1)
    value = QuadraticAtom(X).polar(q)
    top = float(torch.linalg.eigvalsh((X.T * q[:, 0]) @ X).abs().max())
    assert value.low <= top <= value.high
    assert value.high <= value.low * (1 + 1e-9)


def test_two_outputs_beat_the_crude_bound():
    X, Q = normal(30, 6), normal(30, 2, seed=1)
    atom = QuadraticAtom(X, 2, (1.0, 0.3, 0.1))
    value = atom.polar(Q)
    W = torch.nn.functional.normalize(normal(20_000, 6, seed=2))
    t = X @ W.T
    assert float((Q.T @ (t**2 + 0.3 * t + 0.1)).norm(dim=0).max()) <= value.low <= value.high
    assert value.high < 0.7 * atom.polar(Q, budget=0.0).high


@pytest.mark.parametrize("seed", range(3))
def test_optimum_is_that_of_the_nuclear_norm(seed):
    X, y = normal(14, 3, seed=seed), normal(14, 1, seed=10 + seed)
    M = cp.Variable((3, 3), symmetric=True)
    Z = cp.hstack([x @ M @ x for x in X.numpy()])
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(Z - y[:, 0].numpy()) + 0.5 * cp.normNuc(M)))
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    found = Problem(SquaredLoss(y), QuadraticAtom(X), 0.5).solve(tol=1e-7).certificate
    assert found.verdict == "closed"
    assert found.objective == pytest.approx(float(program.value), rel=1e-6)


def test_a_shifted_activation_closes():
    X, y = normal(14, 3), normal(14, 1, seed=1)
    found = Problem(SquaredLoss(y), QuadraticAtom(X, 1, (1.0, 1.0, 0.5)), 0.5).solve(tol=1e-5).certificate
    assert found.verdict == "closed"


def test_merging():
    X = normal(8, 3)
    atom = QuadraticAtom(X)
    params = atom.init(10)
    merged = atom.merge(params)
    assert count(merged) <= 3
    torch.testing.assert_close(atom.phi(merged), atom.phi(params))
    assert float(atom.theta(merged).sum()) < float(atom.theta(params).sum())
    for activation, left in (((1.0, 0.0, 2.0), 2), ((1.0, 1.0, 0.0), 4)):
        atom = QuadraticAtom(X, 2, activation)
        W, V = atom.init(2)
        params = join((W, V), (-W, 2 * V))  # the same unit if the activation is even
        merged = atom.merge(params)
        assert count(merged) == left
        torch.testing.assert_close(atom.phi(merged), atom.phi(params))


@pytest.mark.parametrize("activation", [(0, 0, 0), (1, 2), (1, math.inf, 0)])
def test_bad_activations(activation):
    with pytest.raises(ValueError, match="activation: expected three finite numbers"):
        QuadraticAtom(normal(4, 2), 1, activation)

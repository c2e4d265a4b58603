"""ReLU networks: closed gaps against the exact convex program, the polar against brute force."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.atoms.relu import ReLUAtom
from theodolite.core.params import count
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, LogisticLoss, MaskedSquaredLoss, SquaredLoss
from theodolite.losses.base import Support
from theodolite.polar.arrangement import patterns


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_layer_data(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    rng = np.random.default_rng(seed)
    X, A = rng.standard_normal((n, d)), rng.standard_normal((d, 4))
    y = np.maximum(X @ A, 0) @ np.array([1.0, -1.0, 1.0, -1.0]) + 0.1 * rng.standard_normal(n)
    return X, torch.tensor(y)[:, None]


def convex_optimum(X: np.ndarray, y: Tensor, lam: float) -> float:
    """The exact convex program over all patterns (Pilanci and Ergen, 2020)."""
    D = patterns(torch.tensor(X)).numpy().T.astype(float)
    parts = [cp.Variable((X.shape[1], D.shape[1])) for _ in range(2)]
    Z = sum(sign * cp.sum(cp.multiply(D, X @ V), axis=1) for sign, V in zip((1, -1), parts, strict=True))
    size = sum(cp.sum(cp.norm(V, 2, axis=0)) for V in parts)
    cones = [cp.multiply(2 * D - 1, X @ V) >= 0 for V in parts]
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(Z - y[:, 0].numpy()) + lam * size), cones)
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    return float(program.value)


def circle(m: int) -> Tensor:
    angle = torch.arange(m, dtype=torch.float64) * (2 * math.pi / m)
    return torch.stack([angle.cos(), angle.sin()], 1)


# optima of the exact convex program, stated to seven digits
@pytest.mark.parametrize(
    ("d", "n", "optimum"), [(2, 50, 4.154844), (2, 100, 4.870515), (3, 50, 3.730785), (3, 100, 5.728490)]
)
def test_known_optima_are_certified(d, n, optimum):
    X, y = two_layer_data(n, d)
    found = Problem(SquaredLoss(y), ReLUAtom(X, 1), 1.0).solve(tol=1e-6).certificate
    assert found.verdict == "closed"
    assert found.gap <= 1e-6
    assert found.objective == pytest.approx(optimum, rel=1e-5)
    assert found.dual_bound == pytest.approx(optimum, rel=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_random_problems_contain_the_optimum_of_the_convex_program(seed):
    X, y = two_layer_data(30, 2, seed=100 + seed)
    lam = (1.0, 0.1)[seed % 2]
    found = Problem(SquaredLoss(y), ReLUAtom(X, 1), lam).solve(tol=1e-3).certificate
    optimum = convex_optimum(X, y, lam)
    assert found.verdict == "closed"
    assert found.gap <= 1e-3
    assert found.dual_bound <= optimum * (1 + 1e-7)
    assert optimum * (1 - 1e-7) <= found.objective


@pytest.mark.parametrize(
    "loss",
    [
        LogisticLoss(torch.where(normal(25, 1, seed=8) > 0, 1.0, -1.0)),
        CrossEntropyLoss(torch.arange(25) % 3, 3),
        SquaredLoss(normal(25, 2, seed=9)),
    ],
    ids=["logistic", "cross-entropy", "two outputs"],
)
def test_other_losses_and_outputs_close(loss):
    problem = Problem(loss, ReLUAtom(normal(25, 2), loss.shape[1], bias=False), 0.7)
    found = problem.solve(tol=1e-3, budget=30).certificate
    assert found.verdict == "closed"


def test_a_loss_on_a_support_and_one_without_second_derivatives_descend():
    n = 12
    rows = torch.arange(n)
    masked = MaskedSquaredLoss(rows, rows % 2, normal(n, seed=3), (n, 2))
    atom = ReLUAtom(normal(n, 2), 2)
    found = Problem(masked, atom, 0.3).solve(tol=1e-2, budget=10, max_rounds=20).certificate
    assert found.dual_bound <= found.objective < masked.value(masked.zeros())


def test_the_zero_network_is_optimal_at_lambda_max():
    X, y = two_layer_data(20, 2)
    atom = ReLUAtom(X, 1)
    top = Problem(SquaredLoss(y), atom, 1.0).lambda_max()
    found = Problem(SquaredLoss(y), atom, 1.0001 * top.high).solve()
    assert found.certificate.gap == 0.0
    assert count(found.params) == 0


def test_polar_of_the_hand_example():
    X, q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1.0], [-1.0], [2.0]]).double()
    value = ReLUAtom(X, 1).polar(q)  # sqrt(5) for q, 0 for -q
    assert value.low == pytest.approx(math.sqrt(5), rel=1e-9)
    assert value.high == pytest.approx(math.sqrt(5), rel=1e-8)


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_polar_against_a_dense_grid(outputs, bias):
    X, Q = normal(8, 1 if bias else 2, seed=outputs), normal(8, outputs, seed=5)
    atom = ReLUAtom(X, outputs, bias=bias)
    W = circle(20_000)
    kinks = atom.X.flip(1) * torch.tensor([1.0, -1.0]) / atom.X.norm(dim=1, keepdim=True)
    W = torch.cat([W, kinks, -kinks])
    grid = (Q.T @ torch.relu(atom.X @ W.T)).norm(dim=0).max()
    for value in (atom.polar(Q), atom.polar(Q, budget=0.0), atom.polar(Q, target=0.9 * float(grid))):
        assert grid <= value.high * (1 + 1e-12)
        assert value.low <= grid * (1 + 1e-7)
    assert atom.polar(Q).low >= grid * (1 - 1e-7)
    if outputs == 1:
        assert atom.polar(Q).high <= grid * (1 + 1e-6)


def test_many_patterns_give_an_interval_that_ascent_does_not_leave():
    X, Q = normal(60, 12), normal(60, 2, seed=1)
    atom = ReLUAtom(X, 2)
    assert atom.patterns() is None
    value = atom.polar(Q, starts=atom.init(4, seed=3), budget=4.0)
    W = torch.nn.functional.normalize(normal(5000, 12, seed=2))
    assert (Q.T @ torch.relu(X @ W.T)).norm(dim=0).max() <= value.low < value.high
    assert value.high < 0.5 * atom.polar(Q, budget=0.0).high


def test_polar_values_that_are_zero():
    X = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    atom = ReLUAtom(X, 1)
    value = atom.polar(torch.tensor([[2.0], [-1.0]]).double())  # the two rows cancel in every direction
    assert value.low == 0.0
    assert value.high < 1e-9
    assert float(atom.theta(value.witness)[0]) == 1.0


def test_merging_same_directions_and_same_cells():
    X = normal(10, 2)
    atom = ReLUAtom(X, 2)
    W = torch.tensor([[1.0, 0.25], [3.0, 0.75], [1.0, 0.2501]])
    U = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 2.0]])
    params = W.double(), U.double()
    merged = atom.merge(params)
    torch.testing.assert_close(atom.phi(merged), atom.phi(params))
    assert count(merged) == 2  # the third has another direction of u
    same_cell = W.double()[1:], torch.tensor([[0.5, 3.0], [1.0, 6.0]]).double()
    merged = atom.merge(same_cell)
    assert count(merged) == 1
    torch.testing.assert_close(atom.phi(merged), atom.phi(same_cell))
    assert float(atom.theta(merged).sum()) <= float(atom.theta(same_cell).sum()) * (1 + 1e-12)


def test_predictions_at_other_inputs_and_on_a_support():
    X = normal(7, 3)
    atom = ReLUAtom(X, 2, bias=True)
    params = atom.init(4)
    torch.testing.assert_close(atom.phi(params, X[2:4]), atom.phi(params)[2:4])
    rows, cols = torch.tensor([0, 3, 6]), torch.tensor([1, 0, 1])
    torch.testing.assert_close(
        atom.predict(params, Support(rows, cols, (7, 2))), atom.phi(params)[rows, cols]
    )
    with pytest.raises(ValueError, match=r"X: expected .*\(n, 3\)"):
        atom.phi(params, normal(4, 4))


@pytest.mark.parametrize(
    ("X", "outputs", "message"),
    [
        (torch.zeros(0, 2), 1, "nonempty"),
        (torch.zeros(3, 0), 1, "nonempty"),
        (torch.zeros(3), 1, "matrix"),
        ([[1.0, math.nan]], 1, "1 that are NaN"),
        ([["a"]], 1, "real numbers"),
        ([[1.0]], 0, "n_outputs"),
        ([[1.0]], 1.5, "n_outputs"),
        (torch.ones(2, 2, dtype=torch.complex64), 1, "real matrix"),
    ],
)
def test_bad_input(X, outputs, message):
    with pytest.raises(ValueError, match=message):
        ReLUAtom(X, outputs)


def test_bad_dual_points():
    atom = ReLUAtom(normal(4, 2), 1)
    with pytest.raises(ValueError, match=r"Q: expected shape \(4, 1\), got \(4, 2\)"):
        atom.polar(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="Q: expected finite"):
        atom.polar(torch.full((4, 1), math.inf))

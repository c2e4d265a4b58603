"""Gated ReLU networks: the polar in closed form, and the convex problem against a convex solver."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.atoms.gated import GatedReLUAtom
from theodolite.core.params import count, join
from theodolite.core.problem import Problem
from theodolite.losses import LogisticLoss, SquaredLoss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convex_optimum(atom: GatedReLUAtom, Y: Tensor, lam: float) -> float:
    X, gates = atom.X.numpy(), atom.gates.numpy()
    parts = [cp.Variable((X.shape[1], Y.shape[1])) for _ in gates.T]
    Z = sum((gate[:, None] * X) @ M for gate, M in zip(gates.T, parts, strict=True))
    size = sum(cp.normNuc(M) for M in parts)
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(Z - Y.numpy()) + lam * size))
    program.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert program.status == "optimal"
    return float(program.value)


@pytest.mark.parametrize(("n", "d", "K", "G"), [(10, 3, 2, 4), (12, 2, 3, 5), (15, 4, 1, 6), (8, 5, 5, 2)])
def test_optimum_is_that_of_the_sum_of_nuclear_norms(n, d, K, G):
    atom = GatedReLUAtom(normal(n, d), K, normal(G, d, seed=1))
    Y = normal(n, K, seed=2)
    found = Problem(SquaredLoss(Y), atom, 0.5).solve(tol=1e-7)
    optimum = convex_optimum(atom, Y, 0.5)
    assert found.certificate.verdict == "closed"
    assert found.certificate.gap <= 1e-7
    assert found.certificate.objective == pytest.approx(optimum, rel=1e-6)
    assert found.certificate.dual_bound <= optimum * (1 + 1e-7)


def test_logistic_loss_closes():
    atom = GatedReLUAtom(normal(40, 3), 1, normal(8, 3, seed=1))
    y = torch.where(normal(40, 1, seed=2) > 0, 1.0, -1.0)
    assert Problem(LogisticLoss(y), atom, 0.5).solve(tol=1e-6).certificate.verdict == "closed"


@pytest.mark.parametrize("seed", range(5))
def test_polar_is_the_largest_singular_value_of_any_gate(seed):
    X, Q = normal(9, 3, seed=seed), normal(9, 2, seed=10 + seed)
    atom = GatedReLUAtom(X, 2, normal(4, 3, seed=20 + seed))
    norms = [float(torch.linalg.matrix_norm(X.T @ (gate[:, None] * Q), 2)) for gate in atom.gates.T]
    value = atom.polar(Q)
    assert value.low == pytest.approx(max(norms), rel=1e-10)
    assert value.low <= max(norms) <= value.high <= max(norms) * (1 + 1e-8)
    assert int(value.witness[0][0]) == int(np.argmax(norms))
    values = atom.each(value.witness) @ Q.flatten()
    assert (values.diff() <= 1e-12).all()  # best first
    assert atom.polar(Q, budget=0.0).high >= value.high


def test_merge_leaves_one_singular_triplet_a_gate_and_rank():
    atom = GatedReLUAtom(normal(9, 3), 2, normal(4, 3, seed=1))
    params = join(atom.init(20, seed=1), atom.init(5, seed=2))
    merged = atom.merge(params)
    assert count(merged) <= 4 * 2
    torch.testing.assert_close(atom.phi(merged), atom.phi(params))
    assert float(atom.theta(merged).sum()) < float(atom.theta(params).sum())


def test_gates_from_vectors_predict_elsewhere_and_fixed_ones_do_not():
    X, vectors = normal(9, 3), normal(4, 3, seed=1)
    atom = GatedReLUAtom(X, 2, vectors)
    fixed = GatedReLUAtom(X, 2, X @ vectors.T > 0)
    params = atom.init(5)
    torch.testing.assert_close(fixed.phi(params), atom.phi(params))
    torch.testing.assert_close(atom.phi(params, X[:3]), atom.phi(params)[:3])
    with pytest.raises(ValueError, match="X: expected None"):
        fixed.phi(params, X[:3])


def test_scaling_leaves_the_gates():
    atom = GatedReLUAtom(normal(9, 3), 2, normal(4, 3, seed=1))
    params = atom.init(3)
    scaled = atom.scale(params, torch.tensor([0.0, 1.0, 9.0]).double())
    assert torch.equal(scaled[0], params[0])
    torch.testing.assert_close(atom.theta(scaled), torch.tensor([0.0, 1.0, 9.0]).double())


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (torch.ones(9), "matrix"),
        (torch.ones(0, 3), "nonempty"),
        (torch.full((2, 3), float("nan")), "finite"),
        (torch.ones(5, 4), r"zeros and ones of shape \(9, G\) or gate vectors of shape \(G, 3\)"),
    ],
)
def test_bad_gates(gates, message):
    with pytest.raises(ValueError, match=message):
        GatedReLUAtom(normal(9, 3), 1, gates)

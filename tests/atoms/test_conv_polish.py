"""The best output weights: against a general convex solver, and what optimality means."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.atoms import conv_polish
from theodolite.atoms.conv_polish import best_outputs
from theodolite.losses import CrossEntropyLoss, LogisticLoss, SquaredLoss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


H = torch.relu(normal(40, 6, 2))
Y = normal(40, 3, seed=1)


def pulls(loss, U: Tensor) -> Tensor:
    """Norms of what the residual asks of each unit."""
    R = -loss.gradient(torch.einsum("nrc,rck->nk", H, U))
    return torch.einsum("nrc,nk->rck", H, R).flatten(1).norm(dim=1)


@pytest.mark.parametrize("lam", [0.02, 0.3, 1.5, 100.0])
def test_it_solves_the_convex_problem(lam):
    loss = SquaredLoss(Y, scale=0.1)
    U = best_outputs(loss, H, lam, torch.zeros(6, 2, 3, dtype=torch.float64))
    V = [cp.Variable((2, 3)) for _ in range(6)]
    Z = sum(H[:, j].numpy() @ V[j] for j in range(6))
    program = cp.Problem(
        cp.Minimize(0.05 * cp.sum_squares(Z - Y.numpy()) + lam * sum(cp.norm(v, "fro") for v in V))
    )
    program.solve(solver="CLARABEL")
    Z = torch.einsum("nrc,rck->nk", H, U)
    theta = U.flatten(1).norm(dim=1)
    assert loss.value(Z) + lam * float(theta.sum()) == pytest.approx(program.value, rel=1e-7)
    # optimality, far more exactly than the solver's
    pull = pulls(loss, U)
    assert bool((pull[theta == 0.0] <= lam * (1.0 + 1e-12)).all())
    assert pull[theta > 0.0].numpy() == pytest.approx(lam, rel=1e-11)
    assert float((-loss.gradient(Z) * Z).sum()) == pytest.approx(
        lam * float(theta.sum()), rel=1e-11, abs=1e-300
    )
    assert (lam < 100.0) == bool((theta > 0.0).any())


def test_tiny_regularization():
    loss = SquaredLoss(Y, scale=0.1)
    least = torch.linalg.lstsq(H.flatten(1), Y).solution
    for lam in (1e-8, 1e-15, 1e-25):
        U = best_outputs(loss, torch.cat([H, H], 1), lam, torch.zeros(12, 2, 3, dtype=torch.float64))
        Z = torch.einsum("nrc,rck->nk", torch.cat([H, H], 1), U)
        assert loss.value(Z) == pytest.approx(loss.value(H.flatten(1) @ least), rel=1e-5)


def test_repeated_and_nearly_repeated_units():
    many = torch.cat([H, H[:, :2], H[:, :3] * (1.0 + 1e-9)], 1)
    loss = SquaredLoss(Y, scale=0.1)
    zeros = torch.zeros(11, 2, 3, dtype=torch.float64)
    values = []
    for units in (H, many):
        U = best_outputs(loss, units, 0.1, zeros[: units.shape[1]])
        Z = torch.einsum("nrc,rck->nk", units, U)
        values.append(loss.value(Z) + 0.1 * float(U.flatten(1).norm(dim=1).sum()))
    assert values[1] == pytest.approx(values[0], rel=1e-8)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(torch.arange(40) % 3, 3, scale=1 / 40),
        LogisticLoss(torch.where(Y > 0, 1.0, -1.0), scale=1 / 40),
    ],
    ids=["cross-entropy", "logistic"],
)
def test_other_losses(loss):
    lam = 0.01
    U = best_outputs(loss, H, lam, torch.zeros(6, 2, 3, dtype=torch.float64), tol=1e-12, most=2000)
    theta, pull = U.flatten(1).norm(dim=1), pulls(loss, U)
    assert pull[theta > 0.0].numpy() == pytest.approx(lam, rel=1e-4)
    assert float(pull.max()) <= lam * (1.0 + 1e-4)
    V = cp.Variable((12, 3))
    Z = H.flatten(1).numpy() @ V
    size = sum(cp.norm(V[2 * j : 2 * j + 2], "fro") for j in range(6))
    if isinstance(loss, CrossEntropyLoss):
        label = np.eye(3)[np.arange(40) % 3]
        value = cp.sum(cp.log_sum_exp(Z, axis=1)) - cp.sum(cp.multiply(label, Z))
    else:
        value = cp.sum(cp.logistic(-cp.multiply(np.where(Y > 0, 1.0, -1.0), Z)))
    program = cp.Problem(cp.Minimize(value / 40 + lam * size))
    program.solve(solver="CLARABEL")
    reached = loss.value(torch.einsum("nrc,rck->nk", H, U)) + lam * float(theta.sum())
    assert reached == pytest.approx(program.value, rel=1e-7)


def test_it_never_makes_things_worse(monkeypatch):
    loss, start = SquaredLoss(Y), 0.1 * normal(6, 2, 3, seed=3)

    def objective(U: Tensor) -> float:
        return loss.value(torch.einsum("nrc,rck->nk", H, U)) + 0.5 * float(U.flatten(1).norm(dim=1).sum())

    best = best_outputs(loss, H, 0.5, start)
    assert objective(best) < objective(start)
    again = best_outputs(loss, H, 0.5, best)
    assert objective(again) <= objective(best) * (1.0 + 1e-15)
    assert best_outputs(loss, H[:, :0], 0.5, start[:0]).shape == (0, 2, 3)
    monkeypatch.setattr(conv_polish, "MOST", 5)  # too large for Newton steps
    assert best_outputs(loss, H, 0.5, start) is start

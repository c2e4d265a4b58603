"""The convex polish of ReLU networks: derivatives, kinks that first-order descent does not leave, deadlines."""

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.atoms.relu import ReLUAtom
from theodolite.atoms.relu_polish import Barrier, fresh_units, polish
from theodolite.core.atom import Atom
from theodolite.core.problem import Problem
from theodolite.losses import HuberLoss, MaskedSquaredLoss, SquaredLoss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_layer_data(n: int, d: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    X, A = rng.standard_normal((n, d)), rng.standard_normal((d, 4))
    y = np.maximum(X @ A, 0) @ np.array([1.0, -1.0, 1.0, -1.0]) + 0.1 * rng.standard_normal(n)
    return torch.tensor(X), torch.tensor(y)[:, None]


def test_polish_leaves_a_kink_that_lbfgs_does_not_leave():
    X, y = two_layer_data(50, 2)
    problem = Problem(SquaredLoss(y), ReLUAtom(X, 1), 1.0)
    stalled = problem.atom.init(10, seed=0)
    stalled = Atom.descend(
        problem.atom, problem, stalled, tol=1e-9, deadline=math.inf, progress=lambda params: None
    )
    assert problem.objective(stalled) > 4.154844 * (1 + 1e-4)
    better = polish(problem.loss, problem.atom.X, 1.0, *stalled)
    assert problem.objective(better) == pytest.approx(4.154844, rel=1e-6)


def test_polish_never_harms():
    X, y = two_layer_data(15, 2)
    loss = SquaredLoss(y)
    W, U = normal(5, 2), normal(5, 1, seed=1)
    assert polish(loss, X, 1.0, W, U, deadline=time.monotonic())[0] is W
    empty = polish(loss, X, 1e6, W[:0], U[:0])
    assert len(empty[0]) == 0
    objective = Problem(loss, ReLUAtom(X, 1), 1.0).objective
    for deadline in (0.02, 0.1):
        assert objective(polish(loss, X, 1.0, W, U, deadline=time.monotonic() + deadline)) <= objective(
            (W, U)
        )


def test_derivatives_of_the_barrier():
    loss = HuberLoss(normal(6, 2))
    columns, cones = normal(3, 2, 6, 2, seed=1), torch.nn.functional.normalize(normal(3, 4, 2, seed=2), dim=2)
    z = normal(3, 2, seed=3)
    cones = cones * torch.einsum("jcm,jm->jc", cones, z).sign()[..., None]  # z inside
    barrier, mu, step = Barrier(loss, 0.7, columns, cones), 0.3, 1e-6
    gradient, hessian, drift = barrier.derivatives(z, mu)
    for i, e in enumerate(torch.eye(6, dtype=torch.float64).view(6, 3, 2)):
        difference = (barrier.value(z + step * e, mu) - barrier.value(z - step * e, mu)) / (2 * step)
        assert gradient[i] == pytest.approx(difference, abs=1e-6)
        ahead, behind = (barrier.derivatives(z + s * step * e, mu)[0] for s in (1, -1))
        torch.testing.assert_close(hessian[:, i], (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)
    ahead, behind = (barrier.derivatives(z, mu + s * step)[0] for s in (1, -1))
    torch.testing.assert_close(drift, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)


def test_polish_leaves_alone_what_it_cannot_treat():
    X, W, U = normal(6, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    rows = torch.arange(6)
    masked = MaskedSquaredLoss(rows, rows % 2, normal(6, seed=3), (6, 2))
    assert polish(masked, X, 0.3, W, U)[0] is W
    many = normal(4000, 6), normal(4000, 2)  # Newton steps of 24,000 unknowns
    assert polish(SquaredLoss(normal(8, 2)), normal(8, 6), 1e6, *many)[0].equal(many[0])


def test_fresh_units_each_lower_the_objective():
    X, y = two_layer_data(30, 3)
    loss = SquaredLoss(y)
    objective = Problem(loss, ReLUAtom(X, 1), 1.0).objective
    none = normal(0, 3), normal(0, 1)
    W, U = fresh_units(loss, X, 1.0, *none, most=5, seed=0)
    assert 1 < len(W) <= 5
    for i in range(len(W)):
        assert objective((W[i : i + 1], U[i : i + 1])) < loss.value(loss.zeros())
    assert len(fresh_units(loss, X, 1e6, *none, most=5, seed=0)[0]) == 0

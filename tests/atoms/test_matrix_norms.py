"""Proximal maps of sums of norms over groups, against a convex solver."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from theodolite.atoms.matrix_norms import Groups, balanced_factors, shrink_singular_values, spectral_norm

ORDERS = {"l1": 1, "l2": 2, "linf": "inf"}


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_prox_minimizes(norm: str) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        size, count = 15, 4
        index, x = rng.integers(0, count, size), rng.normal(size=size)
        steps = rng.exponential(size=count)[index] if norm != "l1" else rng.exponential(size=size)
        groups = Groups(torch.from_numpy(index), count + 1)  # the last is empty
        got, total = groups.prox(torch.from_numpy(x), torch.from_numpy(steps), norm)
        z = cp.Variable(size)
        gauge = sum(cp.norm(z[index == g], ORDERS[norm]) for g in range(count) if (index == g).any())
        program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(cp.multiply(steps**-0.5, z - x)) + gauge))
        optimum = program.solve(solver=cp.CLARABEL)
        value = 0.5 * float(np.square(got.numpy() - x) @ (1.0 / steps)) + total
        assert value == pytest.approx(optimum, rel=1e-7)
        assert np.allclose(got.numpy(), z.value, atol=1e-4)
        assert total == pytest.approx(float(groups.norms(got, norm).sum()))
        assert bool((groups.metric(torch.from_numpy(steps), norm) >= torch.from_numpy(steps)).all())


def test_group_norms_neither_overflow_nor_vanish() -> None:
    groups = Groups(torch.tensor([0, 0, 1]), 3)
    for size in (1e-200, 1.0, 1e200):
        x = size * torch.tensor([3.0, 4.0, -2.0]).double()
        assert (groups.norms(x, "l2") / size).tolist() == pytest.approx([5.0, 2.0, 0.0])
        assert (groups.norms(x, "l1") / size).tolist() == pytest.approx([7.0, 2.0, 0.0])
        assert (groups.norms(x, "linf") / size).tolist() == pytest.approx([4.0, 2.0, 0.0])


def test_singular_values() -> None:
    Z = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(Z)
    X, size = shrink_singular_values(Z, torch.tensor(1.0).double())
    assert torch.allclose(torch.linalg.svdvals(X), (s - 1.0).clamp(min=0.0), atol=1e-13)
    assert size == pytest.approx(float((s - 1.0).clamp(min=0.0).sum()))
    U, V = balanced_factors(Z)
    assert torch.allclose(U.T @ V, Z)
    assert float((U.norm(dim=1) * V.norm(dim=1)).sum()) == pytest.approx(float(s.sum()))
    assert spectral_norm(Z) == pytest.approx(float(s[0]))
    assert len(balanced_factors(torch.zeros(3, 2).double())[0]) == 0

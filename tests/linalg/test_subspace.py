"""Leading singular triplets: accurate where there is a gap, and never above the truth."""

import pytest
import torch

from theodolite.linalg.subspace import largest_singular_value, leading_triplets, nearly_orthonormal


@pytest.mark.parametrize(("n", "m"), [(40, 25), (25, 40), (6, 50), (50, 6), (1, 5), (5, 1)])
def test_triplets(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, m, dtype=torch.float64, generator=generator)
    A = A + 20.0 * A[:, :1] @ A[:1]  # one value far above the others
    start = torch.randn(m, 4, dtype=torch.float64, generator=generator)
    truth = torch.linalg.svdvals(A)
    U, s, V = leading_triplets(lambda X: A @ X, lambda Y: A.T @ Y, start)
    q = len(s)
    assert q <= min(12, n)
    for B in (U, V):
        assert torch.allclose(B.T @ B, torch.eye(q).double(), atol=1e-12)
    shared = min(q, len(truth))
    assert bool((s[:shared] <= truth[:shared] * (1 + 1e-12)).all())
    assert float(s[0]) == pytest.approx(float(truth[0]), rel=1e-10)
    assert torch.allclose(A.T @ U, V * s, atol=1e-10 * float(truth[0]))


def test_a_warm_start_is_exact_at_once() -> None:
    A = torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, s, Vh = torch.linalg.svd(A)
    _, found, _ = leading_triplets(lambda X: A @ X, lambda Y: A.T @ Y, Vh[:5].T, passes=1)
    assert torch.allclose(found, s[:5], rtol=1e-13)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_a_cheaper_basis_of_the_same_space(scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    Q = torch.linalg.qr(torch.randn(50, 8, dtype=torch.float64, generator=generator)).Q
    X = (Q + scale * torch.randn(50, 8, dtype=torch.float64, generator=generator)) * torch.logspace(-9, 9, 8)
    basis = nearly_orthonormal(X)
    assert torch.allclose(basis.T @ basis, torch.eye(8).double(), atol=1e-12)
    assert torch.allclose(basis @ (basis.T @ X) / X.norm(dim=0), X / X.norm(dim=0), atol=1e-12)


def test_dependent_columns_still_get_an_orthonormal_basis() -> None:
    X = torch.ones(20, 3).double()
    basis = nearly_orthonormal(X)
    assert torch.allclose(basis.T @ basis, torch.eye(3).double(), atol=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "b"), [(300, 200, 20), (40, 300, 20), (30, 25, 25), (20, 300, 20), (200, 100, 3)]
)
def test_the_largest_value_alone(n: int, m: int, b: int) -> None:
    generator = torch.Generator().manual_seed(n)
    A = torch.randn(n, m, dtype=torch.float64, generator=generator)
    _, s, Vh = torch.linalg.svd(A, full_matrices=False)
    start = Vh[:b].T + 0.02 * torch.randn(m, b, dtype=torch.float64, generator=generator) / m**0.5
    found = largest_singular_value(lambda X: A @ X, lambda Y: A.T @ Y, start)
    assert found <= float(s[0]) * (1.0 + 1e-12)
    assert found >= float(s[0]) * (1.0 - 1e-5)


def test_a_second_pass_finds_what_the_start_lacks() -> None:
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(200, 150, dtype=torch.float64, generator=generator)
    start = torch.linalg.qr(torch.randn(150, 20, dtype=torch.float64, generator=generator)).Q
    once = float(torch.linalg.svdvals(A.T @ torch.linalg.qr(A @ start).Q)[0])
    twice = largest_singular_value(lambda X: A @ X, lambda Y: A.T @ Y, start)
    assert once * 1.02 < twice <= float(torch.linalg.svdvals(A)[0]) * (1.0 + 1e-12)
    assert largest_singular_value(lambda X: 0.0 * (A @ X), lambda Y: 0.0 * (A.T @ Y), start) == 0.0

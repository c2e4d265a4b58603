"""The largest eigenvalue of a symmetric matrix: proved from above, never below the truth."""

from __future__ import annotations

import math

import pytest
import torch

from theodolite.linalg.symmetric import leading_eigenpairs, proved_eigenvalue


@pytest.mark.parametrize("n", [1, 2, 5, 60, 300])
@pytest.mark.parametrize("kind", ["normal", "cluster", "negative", "rank one", "diagonal"])
def test_bound_is_above_and_close(n: int, kind: str) -> None:
    g = torch.Generator().manual_seed(n)
    V = torch.linalg.qr(torch.randn(n, n, generator=g).double()).Q
    values = torch.randn(n, generator=g).double()
    if kind == "cluster":
        values = 1.0 - 1e-9 * values.abs()
    elif kind == "negative":
        values = -values.abs() - 0.1
    elif kind == "rank one":
        values = torch.zeros(n).double()
        values[0] = 3.0
    H = torch.diag(values) if kind == "diagonal" else (V * values) @ V.T
    H = 0.5 * (H + H.T)
    top = float(values.max())
    found = proved_eigenvalue(H)
    backward = 1e-15 * n * float(values.abs().max())  # H is not exactly V diag(values) V'
    assert top - backward <= found <= top + 1e-8 * float(values.abs().max()) + 100.0 * backward


def test_a_threshold_below_the_eigenvalue_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate that is too small is raised until the factorization completes, or gives up."""
    g = torch.Generator().manual_seed(0)
    H = torch.randn(30, 30, generator=g).double()
    H = H + H.T
    top = float(torch.linalg.eigvalsh(H)[-1])
    for wrong in (0.5 * top, 0.0, -5.0):
        answer = torch.tensor([wrong]).double(), torch.ones(30, 1).double()
        monkeypatch.setattr(
            "theodolite.linalg.symmetric.leading_eigenpairs", lambda *_, answer=answer, **__: answer
        )
        assert proved_eigenvalue(H) >= top
    assert proved_eigenvalue(torch.zeros(3, 3).double()) >= 0.0
    assert proved_eigenvalue(torch.zeros(0, 0).double()) == -math.inf


def test_few_pairs_of_a_large_matrix() -> None:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(1000, 30, generator=g).double()
    H = A @ A.T
    values, vectors = leading_eigenpairs(H, 5)
    assert values.shape == (5,)
    exact = torch.linalg.eigvalsh(A.T @ A)[-5:]
    torch.testing.assert_close(values, exact, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(H @ vectors, vectors * values, rtol=0.0, atol=1e-3 * float(values[-1]))
    assert float(exact[-1]) <= proved_eigenvalue(H) <= float(exact[-1]) * (1 + 1e-8)

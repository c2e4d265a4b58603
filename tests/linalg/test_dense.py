"""Gram matrices by symmetry, and finiteness without a mask."""

from __future__ import annotations

import pytest
import torch

from theodolite.linalg import dense


@pytest.mark.parametrize("shape", [(5, 3), (40, 500), (700, 400), (2, 300, 200)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gram_is_the_product(shape, dtype, monkeypatch):
    monkeypatch.setattr(dense, "_LARGE", 0)
    A = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(-1.0, 2.0, shape[-2], dtype=torch.float64)[:, None]
    for B, H in ((A, dense.gram(A)), (weights * A, dense.gram(A, weights * A))):
        assert torch.allclose(H, A.mH @ B, rtol=1e-12, atol=1e-10)
        assert torch.allclose(H, H.mH, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_all_finite(bad):
    A = torch.full((3, 4), 1e308, dtype=torch.float64)
    assert dense.all_finite(A)
    assert dense.all_finite(A[:0])
    assert dense.largest(A) == dense.largest(-A) == 1e308
    assert dense.largest(A[:0]) == 0.0
    A[1, 2] = bad
    assert not dense.all_finite(A)

"""Products on some entries of a matrix, against the dense ones."""

import numpy as np
import pytest
import torch

from theodolite.linalg.pattern import Pattern


@pytest.mark.parametrize("density", [0.0, 0.002, 0.6, 1.0])
@pytest.mark.parametrize("ordered", [False, True])
def test_products_are_those_of_the_dense_matrix(density: float, ordered: bool) -> None:
    n, m, r = 90, 70, 4
    rng = np.random.default_rng(0)
    place = torch.from_numpy(rng.permutation(n * m)[: int(density * n * m)])
    place = place.sort().values if ordered else place
    rows, cols = place // m, place % m
    pattern = Pattern(rows, cols, (n, m))
    U, V = (torch.from_numpy(rng.normal(size=(size, r))).requires_grad_() for size in (n, m))
    dense = (U @ V.T)[rows, cols]
    values = pattern.outer(U, V)
    assert torch.allclose(values, dense, atol=1e-14)
    if len(place):
        got, wanted = (torch.autograd.grad(z.square().sum(), (U, V)) for z in (values, dense))
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted, strict=True))
    whole = torch.zeros(n, m).double()
    whole[rows, cols] = values.detach()
    forward, adjoint = pattern.products(values.detach())
    assert torch.equal(forward(torch.eye(m).double()), whole)
    assert torch.equal(adjoint(torch.eye(n).double()), whole.T)


@pytest.mark.parametrize("density", [0.002, 0.05, 0.6])
@pytest.mark.parametrize("r", [1, 3, 8, 40])
def test_single_precision_and_no_gradient_take_other_ways_to_the_same_numbers(density: float, r: int) -> None:
    n, m = 90, 70
    rng = np.random.default_rng(0)
    place = torch.from_numpy(rng.permutation(n * m)[: int(density * n * m)])
    pattern = Pattern(place // m, place % m, (n, m))
    U, V = (torch.from_numpy(rng.normal(size=(size, r))) for size in (n, m))
    wanted = (U @ V.T)[place // m, place % m]
    assert torch.allclose(pattern.outer(U, V), wanted, atol=1e-13)
    single = pattern.outer(U.float(), V.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), wanted, atol=1e-5)
    whole = torch.zeros(n, m)
    whole[place // m, place % m] = single
    forward, adjoint = pattern.products(single)
    assert torch.allclose(forward(V.float()), whole @ V.float(), atol=1e-4)
    assert torch.allclose(adjoint(U.float()), whole.T @ U.float(), atol=1e-4)


def test_products_without_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Pattern(torch.tensor([2, 0]), torch.tensor([1, 3]), (3, 4))
    values = torch.tensor([5.0, 7.0]).double()
    with_it = [f(torch.eye(k).double()) for f, k in zip(pattern.products(values), (4, 3), strict=True)]
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    without = [f(torch.eye(k).double()) for f, k in zip(pattern.products(values), (4, 3), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))

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

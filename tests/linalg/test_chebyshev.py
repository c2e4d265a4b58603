"""Bounds of the largest singular value by Chebyshev polynomials of a random block."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import chi2

from theodolite.linalg.chebyshev import WIDTH, largest_singular_value, least_length, steps_needed
from theodolite.linalg.lanczos import start_generator
from theodolite.linalg.spectral import sigma_max


def bound(A, mu, *, steps=40, delta=1e-9, seed=0, ceiling=None, error=1e-13, forward=None, enough=0.0):
    """The bound of a dense matrix from an estimate mu."""
    return largest_singular_value(
        forward or (lambda X: A @ X),
        lambda Y: A.T @ Y,
        A.shape[1],
        mu=mu,
        ceiling=float(A.norm()) if ceiling is None else ceiling,
        enough=enough,
        steps=steps,
        delta=delta,
        generator=start_generator(seed),
        product_error=error,
    )


def with_singular_values(values, m, seed):
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    U = torch.linalg.qr(torch.randn(m, n, dtype=torch.float64, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    return (U * torch.as_tensor(values, dtype=torch.float64)) @ V.T, V


@pytest.mark.parametrize("delta", [0.5, 1e-3, 1e-9, 1e-30])
@pytest.mark.parametrize("width", [1, 2, 8])
def test_least_length_is_a_quantile_from_below(width, delta):
    exact = math.sqrt(chi2.ppf(delta, width))
    found = least_length(width, delta)
    assert found <= exact * (1 + 1e-12)
    assert found >= 0.6 * exact  # the bound of the density loses next to nothing for small delta
    if delta <= 1e-9:
        assert found >= 0.99 * exact


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0.0, 1.0, 60),
        np.ones(60),
        np.r_[np.zeros(59), 1.0],
        np.r_[np.full(59, 0.999), 1.0],
        1.0 / np.arange(1, 61) ** 3,
    ],
    ids=["even", "equal", "one", "cluster", "decay"],
)
@pytest.mark.parametrize("mu", [0.5, 0.99, 1.0, 1.5])
def test_it_bounds_whatever_the_estimate(values, mu):
    A, _ = with_singular_values(values, 80, 1)
    found = [bound(A, mu, steps=steps) for steps in (1, 2, 10, 50, 200)]
    assert all(high >= 1.0 for high in found)
    if mu >= 0.99:  # far below the top the iterates grow, and soon their rounding is all there is to see
        assert found[-1] <= mu * 1.02
    assert all(later <= sooner * (1 + 1e-9) for sooner, later in pairwise(found))


def test_steps_needed_are_those_needed():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(900, 700, dtype=torch.float64, generator=generator)
    top = float(torch.linalg.svdvals(A)[0])
    for ratio in (1.1, 1.02, 1.005):
        steps = steps_needed(700, ratio, 1e-9)
        assert (
            bound(A, top, steps=math.ceil(1.2 * steps)) <= ratio * top < bound(A, top, steps=int(0.6 * steps))
        )


def test_it_fails_no_more_often_than_announced_and_can_fail():
    # A hidden direction a little above the estimate: the proof must miss it in at most a share delta of the
    # draws.  With delta near 1 it does miss it, so that the statement is not void.
    values = np.r_[np.full(39, 0.5), 1.0]
    A, _ = with_singular_values(values, 50, 2)
    for delta, least in ((0.9, 0.05), (0.5, 0.01), (0.05, 0.0)):
        missed = np.mean([bound(A, 0.5, steps=12, delta=delta, seed=s) < 1.0 for s in range(400)])
        assert least <= missed <= delta


def test_products_that_err_as_much_as_they_may():
    # Every product is bent against the leading direction: the bound must make up for it or say nothing.
    values = np.r_[np.linspace(0.0, 0.99, 39), 1.0]
    A, V = with_singular_values(values, 50, 3)
    v = V[:, -1:]
    for error in (1e-12, 1e-8, 1e-5, 1e-3, 0.1):

        def forward(X, error=error):
            return A @ X - error * (A @ v) @ (v.T @ X)

        for mu in (0.9, 0.99, 1.0):
            assert bound(A, mu, steps=100, error=error, forward=forward) >= 1.0
    assert bound(A, 0.99, steps=100, error=1e-12) < 1.02
    assert bound(A, 0.99, steps=100, error=0.1) == float(A.norm())


def test_it_stops_once_it_knows_enough_and_before_numbers_overflow():
    A, _ = with_singular_values(np.r_[np.full(30, 0.1), 1.0], 40, 4)
    calls = []

    def forward(X):
        calls.append(X.shape[1])
        return A @ X

    assert 1.0 <= bound(A, 1.0, steps=400, enough=1.2, forward=forward) <= 1.2
    assert len(calls) < 40
    assert set(calls) == {WIDTH}
    assert 1.0 <= bound(A, 1e-3, steps=10_000) <= 1.5


def power_law(seed):
    rng = np.random.default_rng(seed)
    n, m = 3000, 1200
    rows = (n * rng.random(40_000) ** 3).astype(int)
    cols = (m * rng.random(40_000) ** 3).astype(int)
    A = sp.coo_array((rng.standard_normal(40_000), (rows, cols)), shape=(n, m)).tocsr()
    A.sum_duplicates()
    return A


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("turned", [False, True])
def test_sigma_max_of_a_sparse_matrix_with_heavy_rows(turned, scale):
    A = power_law(5)
    A = A.T.tocsr() if turned else A
    U, s, Vh = np.linalg.svd(A.toarray(), full_matrices=False)
    basis = torch.from_numpy(U[:, :3].copy()), torch.from_numpy(Vh[:3].T.copy())
    value = sigma_max(A * scale, method="chebyshev", basis=basis, tol=1e-3, max_steps=400)
    assert value.lower <= s[0] * scale * (1 + 1e-12)
    assert value.upper >= s[0] * scale * (1 - 1e-12)
    assert value.upper <= 1.001 * value.lower
    assert value.confidence == 1.0 - 1e-9
    assert "Chebyshev" in value.note


def test_a_poor_basis_costs_sharpness_only():
    A = power_law(6)
    top = float(np.linalg.svd(A.toarray(), compute_uv=False)[0])
    generator = torch.Generator().manual_seed(0)
    basis = tuple(torch.randn(k, 1, dtype=torch.float64, generator=generator) for k in A.shape)
    value = sigma_max(A, method="chebyshev", basis=basis, max_steps=60)
    assert value.lower <= top <= value.upper <= 1.5 * top


def test_what_it_refuses():
    A = torch.eye(3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match="basis: expected a pair of tensors for method 'chebyshev', got None"
    ):
        sigma_max(A, method="chebyshev")
    operator = sp.linalg.aslinearoperator(A.numpy())
    basis = A[:, :1], A[:, :1]
    with pytest.raises(
        ValueError, match="method: expected 'random' or 'split' for an operator, got 'chebyshev'"
    ):
        sigma_max(operator, method="chebyshev", basis=basis)
    assert sigma_max(torch.zeros(3, 2), method="chebyshev", basis=basis).upper == 0.0

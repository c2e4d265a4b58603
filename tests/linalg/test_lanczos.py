import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from theodolite.linalg.lanczos import (
    FailureLedger,
    lanczos,
    largest_eigenvalue,
    random_start_inflation,
    spend,
    start_generator,
    start_overlap,
)
from theodolite.reference import spectral as reference


def symmetric(eigenvalues, seed=0):
    """Return a symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(
        torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
    ).Q
    return vectors @ torch.diag(values) @ vectors.T, vectors


def run(A, steps, seed=1, **options):
    return lanczos(A.mv, len(A), steps=steps, generator=torch.Generator().manual_seed(seed), **options)


def test_all_steps_give_the_whole_spectrum():
    A, _ = symmetric(torch.linspace(-3, 5, 40))
    result = run(A, 60)
    assert len(result.ritz_values) == 40
    assert result.breakdown
    torch.testing.assert_close(result.ritz_values, torch.linalg.eigvalsh(A), rtol=0, atol=1e-12)
    vectors = result.ritz_vectors()
    torch.testing.assert_close(A @ vectors, vectors * result.ritz_values, rtol=0, atol=1e-11)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_ritz_values_lie_inside_the_spectrum(eigenvalues, steps, seed):
    A, _ = symmetric(eigenvalues, seed)
    result = run(A, steps)
    rounding = 1e-12 * max(map(abs, eigenvalues)) + 1e-300
    assert min(eigenvalues) - rounding <= result.ritz_values[0]
    assert result.ritz_values[-1] <= max(eigenvalues) + rounding


def test_equals_the_projection_on_the_krylov_space():
    A, _ = symmetric(torch.linspace(0, 1, 30) ** 3)
    b = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in (1, 2, 5, 9):
        expected = reference.ritz_value(A.numpy(), b.numpy(), k)
        assert float(run(A, k).ritz_values[-1]) == pytest.approx(expected, rel=1e-13)


def test_residual_norms_are_those_of_the_ritz_vectors():
    A, _ = symmetric(torch.linspace(-1, 1, 50) ** 3)
    result = run(A, 12)
    vectors = result.ritz_vectors()
    actual = torch.linalg.vector_norm(A @ vectors - vectors * result.ritz_values, dim=0)
    torch.testing.assert_close(result.residual_norms, actual, rtol=1e-6, atol=1e-13)
    assert result.ritz_vectors([-1, 0]).shape == (50, 2)
    torch.testing.assert_close(result.ritz_vectors([-1])[:, 0], vectors[:, -1])


def test_basis_stays_orthonormal_where_plain_lanczos_loses_it():
    A, _ = symmetric([1e6, 1e5, *torch.linspace(0, 1, 198).tolist()])
    result = run(A, 100)
    gram = result.basis @ result.basis.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-13)


def test_float32_basis_is_allocated_once_and_coefficients_are_float64():
    A, _ = symmetric(torch.linspace(-3, 5, 300))
    result = run(A.float(), 20, dtype=torch.float32)
    assert result.basis.dtype == torch.float32
    assert result.basis.untyped_storage().nbytes() == 20 * 300 * 4
    assert result.alpha.dtype == result.ritz_values.dtype == torch.float64
    double = lanczos(A.mv, 300, steps=20, start=result.basis[0].double())
    torch.testing.assert_close(result.ritz_values[[0, -1]], double.ritz_values[[0, -1]], rtol=1e-5, atol=0)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_breakdown_on_a_low_rank_operator(rank):
    A = torch.diag(torch.tensor([*range(1, rank + 1), *[0] * (40 - rank)], dtype=torch.float64))
    result = run(A, 30)
    assert result.breakdown
    assert len(result.ritz_values) == (rank + 1 if rank else 1)
    assert float(result.ritz_values[-1]) == pytest.approx(rank, abs=1e-13)


def test_a_matvec_that_returns_its_argument_does_no_harm():
    result = lanczos(lambda x: x, 5, steps=5)
    assert result.breakdown
    assert result.ritz_values.tolist() == pytest.approx([1.0])
    assert float(result.basis.norm()) == pytest.approx(1.0)


def test_deflation_compresses_the_operator():
    A, vectors = symmetric([10.0, 9.0, 5.0, *torch.linspace(0, 1, 27).tolist()])
    result = run(A, 28, deflate=vectors[:, :2].T.contiguous())
    assert float(result.ritz_values[-1]) == pytest.approx(5.0, rel=1e-12)
    assert float((result.basis @ vectors[:, :2]).abs().max()) < 1e-14


@pytest.mark.parametrize(("which", "end"), [("largest", -1), ("smallest", 0)])
def test_tolerance_stops_early(which, end):
    A, _ = symmetric([-4.0, *torch.linspace(-1, 1, 198).tolist(), 5.0])
    result = run(A, 100, tol=1e-6, which=which)
    assert len(result.ritz_values) < 40
    assert float(result.residual_norms[end]) <= 1e-6 * 5.0
    assert float(result.ritz_values[end]) == pytest.approx({-1: 5.0, 0: -4.0}[end], rel=1e-10)


def test_callback_sees_every_step_and_may_stop():
    A, _ = symmetric(torch.linspace(0, 1, 50))
    tops = []

    def callback(step, values, residuals):
        assert len(values) == len(residuals) == step
        tops.append(float(values[-1]))
        return step == 7

    assert len(run(A, 20, callback=callback).ritz_values) == 7
    assert tops == sorted(tops)
    assert len(tops) == 7


def test_matvec_may_use_autograd():
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((w**4).sum() / 12, w, create_graph=True)
    result = lanczos(
        lambda v: torch.autograd.grad(gradient, w, v, retain_graph=True, create_graph=True)[0], 3, steps=3
    )
    assert result.ritz_values.tolist() == pytest.approx([1.0, 4.0, 9.0])
    assert not result.basis.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n, steps"),
        ({"steps": 0}, "n, steps"),
        ({"start": torch.ones(4)}, "start: expected shape"),
        ({"start": torch.zeros(3)}, "start: expected a finite nonzero"),
        ({"start": torch.tensor([1.0, math.nan, 0.0])}, "start: expected a finite nonzero"),
        ({"deflate": torch.ones(3)}, "deflate: expected shape"),
        ({"matvec": lambda x: x * math.nan}, "matvec: expected finite"),
    ],
)
def test_bad_input(options, message):
    arguments = {"matvec": lambda x: x, "n": 3, "steps": 3} | options
    with pytest.raises(ValueError, match=message):
        lanczos(**arguments)


# Random starts


@given(st.integers(2, 10**6), st.floats(1e-12, 0.9))
@settings(max_examples=100, deadline=None)
def test_start_overlap_is_valid_and_nearly_tight(n, delta):
    probability = reference.overlap_probability(n, start_overlap(n, delta))
    assert probability <= delta * (1 + 1e-9)
    assert probability >= 0.5 * delta


@pytest.mark.parametrize(("k", "inflation"), [(10, 1.120), (20, 1.025), (40, 1.0059)])
def test_inflation_against_the_published_one(k, inflation):
    published = reference.kuczynski_wozniakowski_inflation(1000, k, 0.01)
    assert published == pytest.approx(inflation, abs=6e-4 if k == 10 else 6e-5 if k == 40 else 6e-4)
    assert 1.0 + 0.85 * (published - 1.0) < random_start_inflation(1000, k, 0.01) < published


@given(st.integers(2, 10**6), st.integers(1, 200), st.floats(1e-12, 0.5))
def test_inflation_implies_the_published_one(n, k, delta):
    assert random_start_inflation(n, k, delta) <= reference.kuczynski_wozniakowski_inflation(n, k, delta)


@given(
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=10),
    st.integers(1, 6),
    st.floats(1e-3, 0.9),
    st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
def test_overlap_bounds_the_eigenvalue(others, k, overlap, seed):
    # The statement behind the probability, for every start: no luck is involved.
    b = np.random.default_rng(seed).standard_normal(len(others) + 1)
    b[0] = 0.0
    b *= math.sqrt(1 - overlap**2) / np.linalg.norm(b)
    b[0] = overlap
    theta = reference.ritz_value(np.diag([1.0, *others]), b, k)
    assert theta * math.cosh(math.acosh(1 / overlap) / (2 * k - 1)) ** 2 * (1 + 1e-9) >= 1.0


def test_overlap_bound_is_attained():
    t = 0.1
    assert reference.ritz_value(np.diag([1.0, 0.0]), [t, math.sqrt(1 - t * t)], 1) == pytest.approx(t * t)
    # k = 2: the extremal spectrum is {1, 3a/4, 0}, where T_3(s) = +-1 for x = a (1 - s^2).
    a = math.cosh(math.acosh(1 / t) / 3) ** -2
    weights = np.linspace(0.01, 0.99, 400)
    starts = [[t, math.sqrt(w * (1 - t * t)), math.sqrt((1 - w) * (1 - t * t))] for w in weights]
    worst = min(reference.ritz_value(np.diag([1.0, 0.75 * a, 0.0]), b, 2) for b in starts)
    assert a * (1 - 1e-9) <= worst <= 1.001 * a


def test_misses_are_as_rare_as_stated_but_not_absent():
    # One product with a rank-one matrix misses exactly where |b_1| <= t.
    b = torch.randn(4000, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ritz = (b[:, 0] / torch.linalg.vector_norm(b, dim=1)) ** 2
    misses = (ritz * random_start_inflation(50, 1, 0.3) ** 2 < 1).double().mean()
    assert 0.25 < misses < 0.3 + 3 * math.sqrt(0.21 / 4000)


@pytest.mark.parametrize(
    "spectrum",
    [torch.linspace(0, 1, 100), torch.linspace(0, 1, 100) ** 8, torch.tensor([1.0, *[0.9] * 9, *[0.0] * 90])],
)
def test_no_miss_in_many_trials(spectrum):
    A = torch.diag(spectrum.double())
    widths = []
    for seed in range(60):
        low, high = largest_eigenvalue(A.mv, 100, steps=10, delta=0.01, generator=start_generator(seed))
        assert low <= 1.0 <= high
        widths.append(high / low)
    assert max(widths) < 1.6


def test_rounding_is_enclosed_for_a_tiny_failure_probability():
    # With one start the overlap to exclude, 1e-12, would drown in the error of the products.
    A = torch.diag(torch.linspace(0, 1, 400, dtype=torch.float64))
    options = {"steps": 120, "delta": 1e-12, "generator": start_generator(0)}
    low, high = largest_eigenvalue(A.mv, 400, product_error=1e-12, **options)
    assert low <= 1.0 <= high < 1.03


def test_products_that_hide_the_top_are_not_believed():
    # The operator drops the top eigenvector wherever that is within the error that it admits.
    A = torch.diag(torch.tensor([1.0, *[0.1] * 99], dtype=torch.float64))

    def hiding(x):
        y = A @ x
        return torch.cat([0.1 * x[:1], y[1:]]) if x[0].abs() < 0.4 * x.norm() else y

    options = {"steps": 20, "delta": 0.01, "generator": start_generator(0)}
    assert largest_eigenvalue(hiding, 100, product_error=0.4, **options)[1] >= 1.0
    assert largest_eigenvalue(hiding, 100, **options)[1] < 1.0


def test_products_that_are_not_symmetric_are_noticed():
    A = torch.diag(torch.tensor([1.0, *[0.5] * 49], dtype=torch.float64))
    upper = torch.triu(torch.full((50, 50), 0.02, dtype=torch.float64), 1)
    skewed = A + upper - upper.T
    options = {"steps": 20, "delta": 0.01, "generator": start_generator(0)}
    assert largest_eigenvalue(A.mv, 50, **options)[1] < 1.2
    assert largest_eigenvalue(skewed.mv, 50, **options)[1] == math.inf


def test_floor_bounds_what_is_negligible():
    # Products with errors of 1e-9 say nothing about eigenvalues of 1e-10, but 1e-4 is still certain.
    A = 1e-10 * torch.diag(torch.linspace(0, 1, 50, dtype=torch.float64))
    noise = torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise *= 1e-9 / torch.linalg.matrix_norm(noise, 2)
    options = {"steps": 20, "delta": 1e-3, "generator": start_generator(0)}
    _, high = largest_eigenvalue(lambda x: A @ x + noise @ x, 50, product_error=1e-5, floor=1e-4, **options)
    assert 1e-10 <= high <= 1e-4


def test_invariant_krylov_space_and_zero_operator():
    A = torch.diag(torch.tensor([2.0, 1.0, *[0.0] * 98], dtype=torch.float64))
    low, high = largest_eigenvalue(A.mv, 100, steps=60, delta=1e-6, generator=start_generator(0))
    assert low <= 2.0 <= high < 2.0 * (1 + 1e-4)
    assert largest_eigenvalue(lambda x: 0 * x, 9, steps=6, delta=1e-6, generator=start_generator(0)) == (0, 0)


def test_ledger_never_overspends():
    ledger = FailureLedger(1e-3, seed=5)
    shares, seeds = zip(*(ledger.next() for _ in range(1000)), strict=True)
    assert shares[0] == pytest.approx(6e-3 / math.pi**2)
    assert seeds == tuple(range(5, 1005))
    assert shares[9] == spend(1e-3, 10) == pytest.approx(shares[0] / 100)
    assert sum(shares) == pytest.approx(ledger.spent)
    assert 0.999e-3 < ledger.spent < 1e-3
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            FailureLedger(bad)
    with pytest.raises(ValueError, match="j: "):
        spend(0.1, 0)


def test_starts_differ_from_what_the_same_seed_draws_elsewhere():
    mine = torch.randn(8, generator=start_generator(0))
    assert not torch.equal(mine, torch.randn(8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(mine, torch.randn(8, generator=start_generator(0)))
    assert not torch.equal(mine, torch.randn(8, generator=start_generator(1)))

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from theodolite.linalg import inertia, scaled_matrix, spectral
from theodolite.linalg.inertia import Grams
from theodolite.linalg.spectral import batched_sigma_max, proves_at_most, sigma_max
from theodolite.reference import spectral as reference

PROOFS = ["auto", "inertia", "random", "svd", "norms"]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_spectrum(m, n, singular_values, seed=0):
    """Return an m x n matrix with these singular values, and its singular vectors as columns."""
    k = len(singular_values)
    U, V = torch.linalg.qr(normal(m, k, seed=seed)).Q, torch.linalg.qr(normal(n, k, seed=seed + 1)).Q
    return U @ torch.diag(torch.as_tensor(singular_values, dtype=torch.float64)) @ V.T, U, V


def encloses(value, truth, width=math.inf):
    assert value.kind == "bound"
    assert value.lower <= truth <= value.upper
    assert value.upper <= value.lower * (1 + width)
    return True


class Operator:
    """The smallest operator that sigma_max takes."""

    def __init__(self, A, adjoint=None):
        self.shape, self.matvec = tuple(A.shape), lambda x: A @ x
        self.rmatvec = adjoint or (lambda y: A.T @ y)


# Known answers


def test_inertia_on_the_example_of_the_theory():
    A = normal(300, 200)
    sigma = reference.sigma_max(A.numpy())
    margin = float(Grams(A[None]).margin(sigma, [0])[0])
    assert 4e-12 < margin / sigma**2 < 6e-12
    assert proves_at_most(A, sigma * (1 + 1e-10))
    assert not proves_at_most(A, sigma * (1 - 1e-10))
    assert proves_at_most(A, sigma * (1 + 1e-11))
    assert not proves_at_most(A, sigma)  # true, but within the rounding


@pytest.mark.parametrize("method", PROOFS)
def test_small_closed_forms(method):
    assert encloses(sigma_max(torch.tensor([[-3.0]]), method=method), 3.0, 1e-9)
    assert encloses(sigma_max(torch.diag(torch.tensor([1.0, -2.0, 0.5])), method=method), 2.0, 1.1)
    assert encloses(sigma_max(torch.tensor([[3.0, 4.0]]), method=method), 5.0, 0.3)
    assert encloses(sigma_max(torch.ones(4, 9), method=method), 6.0, 2.1)
    assert encloses(sigma_max(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), method=method), (1 + 5**0.5) / 2, 0.6)


def test_methods_say_what_they_proved():
    A = normal(40, 30)
    values = {method: sigma_max(A, method=method, delta=1e-6) for method in PROOFS}
    assert {method: value.confidence for method, value in values.items()} == {
        "auto": 1.0,
        "inertia": 1.0,
        "random": 1 - 1e-6,
        "svd": 1.0,
        "norms": 1.0,
    }
    assert len({value.note for value in values.values()}) == 4
    assert values["auto"] == values["inertia"]
    assert all(value.witness is None and value.value is None for value in values.values())
    widths = {method: value.upper / value.lower - 1 for method, value in values.items()}
    assert widths["svd"] < widths["inertia"] < 1.1e-10 < widths["random"] < widths["norms"] < 1


# Validity, decided exactly


entries = st.one_of(
    st.just(0.0),
    st.sampled_from([1.0, -1.0]),
    st.floats(-1e3, 1e3),
    st.floats(width=64, min_value=-1e300, max_value=1e300),
)
matrices = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(entries, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@pytest.mark.parametrize("method", ["inertia", "random", "svd", "norms"])
@given(A=matrices, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_both_ends_are_right_in_exact_arithmetic(method, A, seed):
    value = sigma_max(np.array(A), method=method, seed=seed)
    assert reference.compare_sigma_max(A, value.lower) >= 0
    assert reference.compare_sigma_max(A, value.upper) <= 0
    largest = max(abs(x) for row in A for x in row)
    if method in ("inertia", "svd") and largest > 1e-300:
        assert value.upper <= value.lower * (1 + 1e-9)


@given(A=matrices, nudge=st.integers(-40, 40))
@settings(max_examples=60, deadline=None)
def test_proves_at_most_never_proves_a_falsehood(A, nudge):
    tau = float(np.linalg.norm(np.array(A) / 2.0**600, 2)) * 2.0**600
    tau = tau * (1 + nudge * 2.0**-52)
    if math.isfinite(tau) and proves_at_most(A := np.array(A), tau):
        assert reference.compare_sigma_max(A, tau) <= 0


def test_reference_comparison_is_exact():
    assert reference.compare_sigma_max([[3.0, 4.0]], 5.0) == 0
    assert reference.compare_sigma_max([[3.0, 4.0]], math.nextafter(5.0, 0)) == 1
    assert reference.compare_sigma_max([[3.0, 4.0]], math.nextafter(5.0, 9)) == -1
    assert reference.compare_sigma_max([[0.0, 2.0], [1.0, 0.0]], 1.5) == 1
    assert reference.compare_sigma_max([[0.0]], 0.0) == 0


@pytest.mark.parametrize("exponent", [-1074, -700, -300, 0, 300, 700, 1020])
@pytest.mark.parametrize("method", PROOFS)
def test_every_scale(method, exponent):
    A = np.ldexp(np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0]]), exponent)
    value = sigma_max(A, method=method)
    assert value.lower <= math.ldexp(5.0, exponent) <= value.upper
    if exponent > -1000:
        assert value.upper < value.lower * 1.9


@pytest.mark.parametrize("method", PROOFS)
def test_ends_are_rounded_outward_among_the_smallest_floats(method):
    tiny = 5e-324  # times sqrt(2) and sqrt(5): neither is a float
    for A in ([[tiny, tiny]], [[tiny], [2 * tiny]]):
        value = sigma_max(np.array(A), method=method)
        assert reference.compare_sigma_max(A, value.lower) >= 0 >= reference.compare_sigma_max(A, value.upper)


def test_norms_beyond_the_largest_float_are_infinite():
    value = sigma_max(np.full((3, 3), 1.7e308))
    assert value.lower == math.nextafter(math.inf, 0)
    assert value.upper == math.inf


# Spectra


@pytest.mark.parametrize("method", PROOFS)
def test_clustered_top(method):
    A, _, _ = with_spectrum(90, 70, [1.0] * 20 + [1 - 1e-7] * 20 + [0.5] * 30)
    assert encloses(sigma_max(A, method=method), 1.0, {"norms": 2.0, "random": 1e-2}.get(method, 3e-10))


@pytest.mark.parametrize("method", PROOFS)
def test_rank_deficient(method):
    A, _, _ = with_spectrum(60, 300, [2.0, 1.0, 0.25])
    assert encloses(sigma_max(A, method=method), 2.0, {"norms": 2.0, "random": 1e-3}.get(method, 3e-10))


@pytest.mark.parametrize(("small", "width"), [(1024, 3e-10), (100, 0.5)])
def test_lanczos_that_has_not_converged(monkeypatch, small, width):
    # Evenly spaced singular values, two steps: the full spectrum is looked at where it is affordable,
    # elsewhere tau grows until the proof holds.
    monkeypatch.setattr(inertia, "SMALL", small)
    A, _, _ = with_spectrum(300, 300, torch.linspace(0, 1, 300))
    assert encloses(sigma_max(A, method="inertia", max_steps=2), 1.0, width)


@pytest.mark.parametrize("method", PROOFS)
def test_zero_and_empty(method):
    for A in (
        torch.zeros(3, 2),
        torch.zeros(0, 4),
        torch.zeros(4, 0),
        sp.csr_array((3, 5)),
        np.zeros((0, 0)),
    ):
        value = sigma_max(A, method=method)
        assert (value.lower, value.upper, value.confidence) == (0.0, 0.0, 1.0)


# Kinds of input


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_low_precision_is_converted_exactly(dtype):
    A = (4 * normal(20, 30)).to(dtype)
    assert encloses(sigma_max(A), reference.sigma_max(A.double().numpy()), 2e-10)
    assert sigma_max(A) == sigma_max(A.double()) == sigma_max(A.double().numpy()) == sigma_max(A.T.double())


@pytest.mark.parametrize("method", PROOFS)
def test_sparse(method):
    A = sp.random_array(
        (150, 220), density=0.1, rng=np.random.default_rng(0), data_sampler=np.random.standard_normal
    )
    truth = reference.sigma_max(A.toarray())
    duplicated = sp.coo_array((np.tile(A.data / 2, 2), np.tile(A.coords, 2)), shape=A.shape)
    tensor = torch.sparse_coo_tensor(np.array(A.coords), A.data, A.shape, check_invariants=True)
    for sparse in (A, A.tocsc(), sp.csr_matrix(A), duplicated, tensor):
        assert encloses(
            sigma_max(sparse, method=method), truth, {"norms": 2.0, "random": 2e-2}.get(method, 2e-10)
        )


def test_operators():
    A = normal(120, 80)
    truth = reference.sigma_max(A.numpy())
    operators = [
        Operator(A),
        Operator(1e200 * A),
        aslinearoperator(A.numpy()),
        LinearOperator(A.shape, matvec=A.numpy().__matmul__, rmatvec=A.T.numpy().__matmul__, dtype=float),
    ]
    for scale, operator in zip([1, 1e200, 1, 1], operators, strict=True):
        value = sigma_max(operator, delta=1e-6)
        assert encloses(value, truth * scale, 2e-2)
        assert value.confidence == 1 - 1e-6
        assert "if products are accurate to 1e-13" in value.note
    single = sigma_max(FloatOperator(A))
    assert encloses(single, truth, 0.5)  # float32 products cost accuracy, not validity
    assert "accurate to 6e-05" in single.note


class FloatOperator(Operator):
    """Computes in float32."""

    def __init__(self, A):
        super().__init__(A)
        self.matvec, self.rmatvec = (lambda x: A.float() @ x.float()), (lambda y: A.T.float() @ y.float())


def test_a_free_bound_that_is_tighter_is_certain():
    value = sigma_max(torch.ones(30, 50), method="random", max_steps=2)
    assert encloses(value, math.sqrt(1500), 1e-9)
    assert value.confidence == 1.0
    assert value.note == sigma_max(torch.ones(30, 50), method="norms").note


def test_random_on_a_matrix_agrees_with_its_operator():
    A = normal(100, 60)
    assert sigma_max(A, method="random", seed=3).lower == pytest.approx(
        sigma_max(Operator(A), seed=3).lower, rel=1e-2
    )
    one, same, other = (sigma_max(A, method="random", max_steps=20, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


# Repeated randomized calls


def test_random_start_never_misses_and_its_inflation_is_as_announced():
    misses = 0
    for seed in range(100):
        A = torch.diag(torch.linspace(0.1, 1, 60, dtype=torch.float64) ** (1 + seed % 4))
        value = sigma_max(A, method="random", max_steps=12, delta=0.01, seed=seed)
        misses += not value.lower <= 1.0 <= value.upper
        assert value.upper <= value.lower * 1.6
    assert misses == 0


# Block split


def residual(r=12, noise=0.0):
    """Return a matrix with r singular values 1 on known bases and the rest at most 0.8, with the bases."""
    A, U, V = with_spectrum(260, 200, [1.0] * r + torch.linspace(0, 0.8, 200 - r).tolist())
    return A, (U[:, :r] + noise * normal(260, r, seed=5), V[:, :r] + noise * normal(200, r, seed=6))


@pytest.mark.parametrize(("noise", "width"), [(0.0, 1e-7), (1e-6, 1e-4), (1e-2, 0.5)])
def test_split_with_good_and_poor_bases(noise, width):
    A, basis = residual(noise=noise)
    value = sigma_max(A, method="split", basis=basis, delta=1e-6)
    assert encloses(value, 1.0, width)
    assert value.confidence == 1 - 1e-6


@pytest.mark.parametrize("kind", [lambda A: A, lambda A: sp.csr_array(A.numpy()), Operator])
def test_split_on_every_kind_of_input(kind):
    A, (U, V) = residual()
    mixing = torch.triu(normal(12, 12, seed=8)) + 3 * torch.eye(12)
    scaled = (1e-5 * U @ mixing, V.float())  # factors are neither orthonormal nor float64
    assert encloses(sigma_max(kind(A), method="split", basis=scaled), 1.0, 1e-4)


def test_split_encloses_the_error_of_an_operators_products():
    # The products are those of a matrix whose norm is smaller, by just what the operator admits.
    A, U, V = with_spectrum(60, 50, [1.0] * 2 + [0.05] * 10)
    options = {"method": "split", "basis": (U[:, :2], V[:, :2]), "delta": 0.01}
    value = sigma_max(Operator((1 - 1e-4) * A), product_error=1.0001e-4, **options)
    assert encloses(value, 1.0, 1e-2)
    assert sigma_max(Operator((1 - 1e-4) * A), product_error=1e-9, **options).upper < 1.0
    # An error of 1e-4 may hide whatever a start overlaps with by less: no certainty of 1e-30 is claimed.
    assert sigma_max(Operator(A), product_error=1e-4, **options | {"delta": 1e-30}).upper == math.inf


def test_split_with_useless_bases_is_loose_but_valid():
    A, (U, V) = residual()
    for basis in (
        (torch.eye(260)[:, :3], torch.eye(200)[:, :2]),
        (torch.zeros(260, 2), torch.zeros(200, 2)),
        (torch.cat([U, U], 1), V),
        (U[:, :1], torch.linalg.qr(V, mode="complete").Q[:, 12:13]),
        (torch.eye(260), torch.eye(200)),
    ):
        value = sigma_max(A, method="split", basis=basis)
        assert value.lower <= 1.0 <= value.upper <= 2.1


def test_split_beats_a_random_start_of_equal_cost():
    A, basis = residual()
    split = sigma_max(A, method="split", basis=basis, max_steps=40)
    random = sigma_max(A, method="random", max_steps=40)
    assert split.upper - 1 < 1e-3 * (random.upper - 1)


def test_auto_takes_the_split_only_where_it_pays(monkeypatch):
    A, basis = residual()
    assert sigma_max(A, basis=basis).note == sigma_max(A, method="inertia").note
    monkeypatch.setattr(spectral, "SMALL", 100)
    assert sigma_max(A, basis=basis).note == sigma_max(A, method="split", basis=basis).note
    monkeypatch.setattr(scaled_matrix, "GRAM_SIDE", 100)
    assert sigma_max(A).note == sigma_max(A, method="random").note


# Batches


@pytest.mark.parametrize("shape", [(7, 5, 5), (30, 9, 4), (30, 4, 9), (1, 1, 1), (3, 1, 6), (2, 300, 270)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32, torch.complex64])
def test_batch(shape, dtype):
    mats = normal(*shape, dtype=dtype)
    exact = mats.to(torch.complex128)
    truth = float(torch.linalg.svdvals(exact).max())
    lower, upper = batched_sigma_max(mats)
    assert truth * (1 - 2e-6) <= lower <= truth * (1 + 1e-14)
    assert truth * (1 - 1e-14) <= upper <= truth * (1 + 2e-6)
    assert batched_sigma_max(mats.mH) == pytest.approx((lower, upper), rel=2e-6)


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 2**28])
def test_batch_in_chunks_with_many_equal_and_zero_blocks(chunk_bytes):
    A, _, _ = with_spectrum(12, 8, [3.0, 3.0, *[1.0] * 6])
    mats = torch.stack([A, 0 * A, A[:, range(7, -1, -1)], 0.999 * A, -A, 1e-200 * A] * 5)
    lower, upper = batched_sigma_max(mats, tol=1e-9, chunk_bytes=chunk_bytes)
    assert 3 * (1 - 1e-9) < lower <= 3.0 * (1 + 1e-15)
    assert 3.0 * (1 - 1e-15) <= upper < 3 * (1 + 1e-9)


def test_batch_where_the_ranking_is_misled():
    # A few power steps rank the blocks by what most of their spectrum does: the largest norm comes last.
    spectra = [[1.0] * 200, [1.02] + [0.95] * 199, [1.05] + [0.9] * 199]
    mats = torch.diag_embed(torch.tensor(spectra, dtype=torch.float64))
    lower, upper = batched_sigma_max(mats)
    assert lower <= 1.05 <= upper < lower * (1 + 2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_lanczos_finds_the_top_of_a_block(dtype):
    grams = Grams(normal(1, 90, 80, dtype=dtype))
    assert grams.rayleigh(0, 60, 1e-10) == pytest.approx(grams.rayleigh(0, 0, 1e-10), rel=1e-8)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_batch_at_every_scale(scale):
    lower, upper = batched_sigma_max(
        torch.tensor([[[3.0, 4.0j]], [[1.0, 0.0]]], dtype=torch.complex128) * scale
    )
    assert lower <= 5 * scale * (1 + 1e-15)
    assert 5 * scale * (1 - 1e-15) <= upper < lower * (1 + 2e-6)


def test_batch_of_nothing():
    for shape in [(0, 3, 3), (2, 0, 3), (2, 3, 0)]:
        assert batched_sigma_max(torch.zeros(shape)) == (0.0, 0.0)
    assert batched_sigma_max(torch.zeros(2, 3, 3)) == (0.0, 0.0)


def test_unconverged_lanczos_in_a_batch_stays_valid():
    mats = torch.diag_embed(torch.linspace(0, 1, 300, dtype=torch.complex128)).expand(2, 300, 300)
    lower, upper = batched_sigma_max(mats, max_steps=2)
    assert lower <= 1.0 <= upper < 1.0 + 2e-6


# Bad input


nan, inf = math.nan, math.inf
good = torch.eye(3)


@pytest.mark.parametrize(
    ("A", "options", "message"),
    [
        (torch.tensor([[1.0, nan]]), {}, r"A: expected finite entries, got nan at index \[0, 1\]"),
        (np.array([[1.0], [-inf]]), {}, r"A: expected finite entries, got -inf at index \[1, 0\]"),
        (sp.csr_array(np.array([[0.0, nan]])), {}, "A: expected finite entries, got nan"),
        (torch.eye(3).to_sparse() * nan, {}, "A: expected finite entries, got nan"),
        (torch.ones(3), {}, r"A: expected a matrix or an operator, got Tensor of shape \(3,\)"),
        ([[1.0, 2.0]], {}, "A: expected a matrix or an operator, got list"),
        (
            torch.eye(2, dtype=torch.complex64),
            {},
            "A: expected real entries of at most 64 bits, got torch.complex64",
        ),
        (torch.eye(2, dtype=torch.complex64).to_sparse(), {}, "A: expected real entries"),
        (np.eye(2, dtype=complex), {}, "A: expected real entries of at most 64 bits, got complex128"),
        (np.eye(2, dtype=np.longdouble), {}, "A: expected real entries of at most 64 bits"),
        (np.array([["a"]]), {}, "A: expected real entries"),
        (good, {"method": "lanczos"}, "method: expected auto, .*, got 'lanczos'"),
        (good, {"delta": 0.0}, "delta"),
        (good, {"delta": 1.0}, "delta"),
        (good, {"tol": nan}, "tol"),
        (good, {"max_steps": 1}, "max_steps"),
        (good, {"product_error": 1e-9}, "product_error: expected None"),
        (good, {"method": "split"}, "basis: expected a pair"),
        (
            good,
            {"method": "split", "basis": (torch.ones(2, 1), torch.ones(3, 1))},
            r"basis: expected U of shape \(3, r\)",
        ),
        (
            good,
            {"method": "split", "basis": (torch.ones(3, 1), torch.ones(3))},
            r"basis: expected V of shape \(3, r\)",
        ),
        (
            good,
            {"method": "split", "basis": (torch.ones(3, 1) * nan, torch.ones(3, 1))},
            "basis: expected finite",
        ),
        (
            Operator(good.double()),
            {"method": "inertia"},
            "method: expected 'random' or 'split' for an operator",
        ),
        (Operator(good.double(), lambda y: -y), {}, "A.rmatvec: expected the adjoint"),
        (
            Operator(good.double(), lambda y: y[:2]),
            {},
            r"A.rmatvec: expected a finite real vector, got .* \(2,\)",
        ),
        (Operator(good.double() * nan), {}, "A.matvec: expected a finite real vector"),
    ],
)
def test_bad_matrices_and_options(A, options, message):
    with pytest.raises(ValueError, match=message):
        sigma_max(A, **options)


@pytest.mark.parametrize(
    ("mats", "message"),
    [
        (torch.eye(3), r"mats: expected a tensor of shape \(b, m, n\), got \(3, 3\)"),
        (np.zeros((2, 2, 2)), "mats: expected a tensor of shape .* got ndarray"),
        (torch.full((1, 2, 2), complex(0, nan)), "mats: expected finite entries, got nan"),
        (torch.tensor([[[0.0, inf]]]), r"mats: expected finite entries, got inf at index \[0, 0, 1\]"),
    ],
)
def test_bad_batches(mats, message):
    with pytest.raises(ValueError, match=message):
        batched_sigma_max(mats)


def test_bad_thresholds():
    for tau in (-1.0, nan):
        with pytest.raises(ValueError, match="tau: expected a nonnegative number"):
            proves_at_most(good, tau)
    with pytest.raises(ValueError, match="A: expected a matrix with entries"):
        proves_at_most(Operator(good.double()), 2.0)
    assert proves_at_most(good, inf)
    assert proves_at_most(good, 1.0 + 1e-12)
    assert not proves_at_most(good, 0.0)
    assert proves_at_most(torch.zeros(2, 2), 0.0)

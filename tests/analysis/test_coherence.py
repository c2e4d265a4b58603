"""Coherence against whole dictionaries atom by atom, and the known answers."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from theodolite.analysis import coherence as module
from theodolite.analysis.coherence import coherence_flops, filter_coherence, mutual_coherence
from theodolite.reference.coherence import convolution_dictionary, dictionary_coherence


def hadamard_pair(n):
    hadamard = torch.tensor(scipy.linalg.hadamard(n), dtype=torch.float64)
    return torch.cat([torch.eye(n, dtype=torch.float64), hadamard / math.sqrt(n)], 1)


def test_spikes_and_hadamard():
    """n = 256: mu = 1/16, uniqueness below 8.5 nonzeros, Welch 0.04424."""
    found = mutual_coherence(hadamard_pair(256))
    assert found.mu == pytest.approx(1 / 16, rel=1e-12)
    assert found.tolerated_sparsity == pytest.approx(8.5)
    assert found.welch == pytest.approx(0.04424, abs=5e-6)
    assert (found.atoms, found.zeros, found.lag) == (512, 0, ())
    spike, wave = sorted(found.pair)
    assert spike < 256 <= wave


def test_welch_of_64_by_128():
    assert mutual_coherence(torch.randn(64, 128)).welch == pytest.approx(0.08874, abs=5e-6)


@pytest.mark.parametrize("m", [1, 2, 3, 7])
def test_simplex_frames_attain_the_welch_bound(m):
    """m + 1 atoms in R^m at equal angles: mu = 1/m."""
    centered = torch.eye(m + 1, dtype=torch.float64) - 1 / (m + 1)
    basis = torch.linalg.svd(centered)[0][:, :m]
    found = mutual_coherence(basis.T @ centered)
    assert found.mu == pytest.approx(1 / m, rel=1e-10)
    assert found.welch == pytest.approx(1 / m, rel=1e-10)


def test_orthonormal_duplicated_and_single_atoms():
    orthonormal = mutual_coherence(torch.eye(5, dtype=torch.float64))
    assert orthonormal.mu == orthonormal.welch == 0.0
    assert orthonormal.tolerated_sparsity == math.inf
    twin = mutual_coherence(torch.tensor([[1.0, 3.0, -2.0], [0.0, 1.0, 0.0]]))
    assert (twin.mu, twin.pair, twin.tolerated_sparsity) == (1.0, (0, 2), 1.0)
    assert mutual_coherence(torch.ones(4, 1)) is None
    assert mutual_coherence(torch.zeros(4, 3)) is None
    assert filter_coherence(torch.randn(1, 2, 1, 1)) is None


def test_one_filter_meets_its_own_shifts():
    found = filter_coherence(torch.tensor([[[1.0, 1.0]]]))
    assert found.mu == pytest.approx(0.5)
    assert (found.pair, found.lag) == ((0, 0), (1,))
    assert filter_coherence(torch.tensor([[[1.0, 1.0]]]), stride=(2,)) is None


def test_zero_filters_are_left_out_and_keep_the_numbers():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    found = filter_coherence(weight)
    assert (found.pair, found.atoms, found.zeros) == ((1, 3), 2, 2)
    assert found.mu == pytest.approx(math.sqrt(0.5))


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9))
def test_matrices(seed, m, n):
    torch.manual_seed(seed)
    dictionary = torch.randn(m, n, dtype=torch.float64)
    found = mutual_coherence(dictionary)
    assert found.mu == pytest.approx(dictionary_coherence(dictionary), rel=1e-12)
    assert found.welch <= found.mu + 1e-12
    scaled = mutual_coherence(dictionary * torch.exp(3 * torch.randn(n)) * torch.randn(n).sign())
    assert scaled.mu == pytest.approx(found.mu, rel=1e-9)


SHAPES = [  # weight, stride, dilation, groups
    ((3, 2, 4), (1,), (1,), 1),
    ((3, 2, 5), (2,), (1,), 1),
    ((2, 1, 4), (2,), (3,), 1),
    ((2, 1, 5), (4,), (2,), 1),
    ((3, 2, 3, 3), (1, 1), (1, 1), 1),
    ((4, 1, 3, 2), (2, 1), (1, 2), 1),
    ((4, 1, 3, 3), (2, 2), (1, 1), 2),
    ((6, 1, 2, 2), (1, 1), (2, 1), 3),
    ((2, 2, 2, 2, 2), (1, 2, 1), (1, 1, 2), 1),
    ((5, 1, 1, 1), (1, 1), (1, 1), 1),
]


@pytest.mark.parametrize(("shape", "stride", "dilation", "groups"), SHAPES)
def test_convolutions_against_the_dense_dictionary(shape, stride, dilation, groups):
    for seed in range(3):
        torch.manual_seed(seed)
        weight = torch.randn(shape)
        found = filter_coherence(weight, stride=stride, dilation=dilation, groups=groups)
        dense = convolution_dictionary(weight, stride, dilation, groups)
        assert found.mu == pytest.approx(dictionary_coherence(dense), rel=1e-10)
        assert found.welch <= found.mu + 1e-12


@pytest.mark.parametrize(("shape", "stride", "dilation", "groups"), SHAPES)
def test_pair_and_lag_attain_it(shape, stride, dilation, groups):
    torch.manual_seed(3)
    weight = torch.randn(shape, dtype=torch.float64)
    found = filter_coherence(weight, stride=stride, dilation=dilation, groups=groups)
    sizes = [3 * (d * (k - 1) + 1) for d, k in zip(dilation, shape[2:], strict=True)]
    images = []
    for filter_number, shift in ((found.pair[0], [0] * len(sizes)), (found.pair[1], found.lag)):
        image = torch.zeros(shape[1], *sizes, dtype=torch.float64)
        spread = weight[filter_number]
        image[(slice(None), *(slice(0, d * k, d) for d, k in zip(dilation, shape[2:], strict=True)))] = spread
        images.append(torch.roll(image, list(shift), list(range(1, image.ndim))) / spread.norm())
    assert abs(float((images[0] * images[1]).sum())) == pytest.approx(found.mu, rel=1e-10)
    assert all(step % s == 0 for step, s in zip(found.lag, stride, strict=True))


def test_welch_bound_of_convolutions_is_not_beaten_by_descent():
    """Filters that are optimized for low coherence come close to the bound, never below it."""
    torch.manual_seed(0)
    weight = torch.randn(4, 1, 3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(150):
        unit = weight / weight.flatten(1).norm(dim=1)[:, None, None]
        products = torch.nn.functional.conv1d(unit, unit, padding=2)
        loss = (products**8).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = filter_coherence(weight)
    assert found.welch <= found.mu <= 3 * found.welch


def test_blocks_give_the_same(monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(20, 2, 3, 3)
    whole = filter_coherence(weight)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * 18 * 7)
    blocked = filter_coherence(weight)
    assert blocked.mu == pytest.approx(whole.mu, rel=1e-12)
    assert (blocked.pair, blocked.lag, blocked.atoms) == (whole.pair, whole.lag, whole.atoms)


def test_extreme_scales():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    assert filter_coherence(1e-20 * weight).mu == pytest.approx(filter_coherence(weight).mu, rel=1e-5)
    half = filter_coherence(weight.half())
    assert half.mu == pytest.approx(filter_coherence(weight.half().double()).mu, rel=1e-12)


def test_cost_grows_with_filters_squared():
    small, large = torch.empty(8, 4, 3, 3), torch.empty(16, 4, 3, 3)
    assert coherence_flops(large) == pytest.approx(4 * coherence_flops(small))
    assert coherence_flops(small, stride=(2, 2)) < coherence_flops(small)

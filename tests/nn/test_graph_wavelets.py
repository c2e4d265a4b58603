"""Banks on graphs against dense matrices written down from their definitions, and what is refused."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from theodolite.nn import graph_wavelets
from theodolite.nn.adjacency import read_adjacency
from theodolite.nn.graph_distance import bank_distance
from theodolite.nn.graph_wavelets import BANKS, graph_bank


def graph(n: int, density: float = 0.2, seed: int = 0, alone: tuple[int, ...] = ()) -> np.ndarray:
    """Random weights; the nodes in `alone` have no edges."""
    rng = np.random.default_rng(seed)
    W = np.triu(rng.random((n, n)) * (rng.random((n, n)) < density), 1)
    for v in alone:
        W[v] = W[:, v] = 0.0
    return W + W.T


def signals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filters(W: np.ndarray, J: int, name: str, laplacian: str = "normalized", norm: str = "B1") -> np.ndarray:
    """All filters as matrices (J + 1, n, n), from their definitions."""
    n, power = len(W), np.linalg.matrix_power
    W = W + np.diag([float(not row.any()) for row in W])
    d = W.sum(1)
    if name in ("diffusion", "geometric"):
        scaled = W / np.sqrt(np.outer(d, d)) if name == "diffusion" else W / d
        T = 0.5 * (np.eye(n) + scaled)
        bands = [np.eye(n) - T, *(power(T, 2 ** (j - 1)) - power(T, 2**j) for j in range(1, J))]
        return np.stack([power(T, 2 ** (J - 1)), *bands])
    L = np.eye(n) - W / np.sqrt(np.outer(d, d)) if laplacian == "normalized" else np.diag(d) - W
    values, vectors = np.linalg.eigh(L)
    top = 2.0 if laplacian == "normalized" else values[-1] or 1.0
    kernels = np.array(
        [hann(v, J, top) if name == "hann" else cubic(v, J, top, norm) for v in values.clip(1e-12)]
    )
    return np.einsum("ik,kj,lk->jil", vectors, kernels, vectors)


def hann(frequency: float, J: int, top: float) -> list[float]:
    def window(j: int) -> float:
        v = math.log2(top / frequency) - (j - 0.5)
        return 8 / 9 * (0.5 + 0.5 * math.cos(2 * math.pi * v / 3)) ** 2 if abs(v) < 1.5 else 0.0

    first = sum(window(j) for j in range(-60, 1))
    last = sum(window(j) for j in range(J, 120))
    return [math.sqrt(s) for s in (last, first, *(window(j) for j in range(1, J)))]


def cubic(frequency: float, J: int, top: float, norm: str) -> list[float]:
    def g(x: float) -> float:
        return x**2 if x < 1 else -5 + 11 * x - 6 * x**2 + x**3 if x <= 2 else 4 / x**2

    def all_of(f: float) -> list[float]:
        ratio = (40.0) ** (1 / (J - 1)) if J > 1 else 1.0
        low = g(2 - 3**-0.5) * math.exp(-((f / (0.03 * top)) ** 4))
        return [low, *(g(ratio**j * f / top) for j in range(J))]

    return [v * (cubic_scale(J) if norm == "B1" else 1.0) for v in all_of(frequency)]


@cache
def cubic_scale(J: int) -> float:
    energies = [sum(v**2 for v in cubic(10 ** (k / 150 - 3.0), J, 1.0, "reference")) for k in range(600)]
    return 1.0 / math.sqrt(max(energies))


CASES = [
    ("diffusion", "normalized", "B1"),
    ("geometric", "normalized", "B1"),
    ("hann", "normalized", "B1"),
    ("hann", "combinatorial", "B1"),
    ("cubic", "normalized", "reference"),
    ("cubic", "combinatorial", "reference"),
    ("cubic", "normalized", "B1"),
]


@pytest.mark.parametrize(("name", "laplacian", "norm"), CASES)
@pytest.mark.parametrize(
    ("n", "J", "alone"), [(17, 4, ()), (12, 1, (3, 7)), (2, 3, ()), (1, 2, ()), (9, 6, (0,))]
)
def test_filters_are_those_of_the_definitions(name, laplacian, norm, n, J, alone):
    W = graph(n, 0.4, alone=alone)
    bank = graph_bank(W, J, name, laplacian=laplacian, norm=norm)
    x = signals(3, n)
    tol = 1e-4 if (name, norm) == ("cubic", "B1") else 1e-6 if name == "cubic" else 1e-11
    expected = np.einsum("kij,bj->bki", filters(W, J, name, laplacian, norm), x.numpy())
    assert np.abs(bank(x).numpy() - expected).max() < tol * max(1.0, np.abs(expected).max())
    assert torch.allclose(bank.lowpass(x), bank(x)[:, 0], rtol=1e-13, atol=1e-15)
    assert torch.allclose(bank(x.float()).double(), bank(x), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("name", ["diffusion", "geometric"])
@pytest.mark.parametrize("J", [1, 2, 5])
def test_sparse_products_and_eigenvectors_agree(name, J, monkeypatch):
    W = graph(30, alone=(4,))
    dense = graph_bank(W, J, name)
    monkeypatch.setattr(graph_wavelets, "_EIGENVECTORS", 0)
    sparse = graph_bank(sp.csr_array(W), J, name)
    assert sparse.vectors is None
    x, y = signals(2, 30), signals(J + 1, 30, seed=1)
    assert torch.allclose(sparse(x), dense(x), rtol=0.0, atol=1e-13)
    assert torch.allclose(sparse.lowpass(x), dense.lowpass(x), rtol=0.0, atol=1e-13)
    for bank in (sparse, dense):
        assert float((bank.symmetric(x[0]) * y).sum()) == pytest.approx(
            float(bank.symmetric_adjoint(y) @ x[0]), rel=1e-11
        )
    assert sparse.frame_bounds().lower.value == pytest.approx(dense.frame_bounds().lower.value, rel=1e-12)


@pytest.mark.parametrize(("name", "laplacian", "norm"), CASES)
def test_frame_bounds_are_the_extremes_of_the_stack(name, laplacian, norm):
    for n, alone in ((20, ()), (13, (2,)), (2, ())):
        W = graph(n, 0.5, alone=alone)
        found = graph_bank(W, 4, name, laplacian=laplacian, norm=norm).frame_bounds()
        stack = filters(W, 4, name, laplacian, norm)
        if name == "geometric":
            root = np.sqrt(np.where(W.any(1), W.sum(1), 1.0))
            stack = stack * root / root[:, None]
        values = np.linalg.svd(stack.reshape(-1, n))[1] ** 2
        tol = 2e-4 if (name, norm) == ("cubic", "B1") else 1e-6
        assert (found.lower.kind, found.upper.kind) == ("exact", "exact")
        assert (found.lower.value, found.upper.value) == pytest.approx((values[-1], values[0]), rel=tol)
        if norm == "B1":
            assert found.upper.value <= 1.0
        if name == "hann":
            assert (found.lower.value, found.upper.value) == (1.0, 1.0)


def test_known_bounds_of_diffusion(monkeypatch):
    for seed in range(5):
        found = graph_bank(graph(25, 0.3, seed), 4).frame_bounds()
        assert 0.2 <= found.lower.value <= found.upper.value == 1.0
    monkeypatch.setattr(graph_wavelets, "_EIGENVECTORS", 0)
    monkeypatch.setattr(graph_wavelets, "_EIGENVALUES", 0)
    found = graph_bank(graph(25), 4).frame_bounds()
    assert (found.lower.kind, found.lower.lower, found.upper.value) == ("bound", 0.2, 1.0)


@pytest.mark.parametrize("top", [1.0, 2.0, 7.3])
def test_squares_of_the_kernels_sum_to_at_most_one_at_every_frequency(top):
    frequencies = torch.cat(
        [
            torch.zeros(1, dtype=torch.float64),
            torch.logspace(-9, 3, 20_001, dtype=torch.float64),
            torch.tensor([1e300], dtype=torch.float64),
        ]
    )
    bank = graph_bank(graph(5), 5, "hann", top=top)
    energy = bank.kernels(frequencies).square().sum(0)
    assert float((energy - 1.0).abs().max()) < 1e-14
    assert float(graph_bank(graph(5), 5, "cubic", top=top).kernels(frequencies).square().sum(0).max()) <= 1.0
    # octaves: the second wavelet is the first but one at twice the frequency
    one, two = bank.kernels(frequencies)[3], bank.kernels(2.0 * frequencies)[2]
    assert torch.allclose(one, two, rtol=0.0, atol=1e-12)


def test_low_passes_keep_what_is_constant_on_components_however_many_octaves():
    W = np.zeros((8, 8))
    for i, j in ((0, 1), (1, 2), (3, 4), (5, 6)):
        W[i, j] = W[j, i] = 1.0
    kept = torch.from_numpy(np.sqrt(np.where(W.any(1), W.sum(1), 1.0)))
    for J in (4, 60):
        for name in ("diffusion", "hann"):
            assert torch.allclose(graph_bank(W, J, name).lowpass(kept), kept, rtol=0.0, atol=1e-12)


def distance(W: np.ndarray, V: np.ndarray, name: str, J: int) -> tuple[float, float]:
    one, two = filters(W, J, name), filters(V, J, name)
    if name == "geometric":
        root = np.sqrt(np.where(W.any(1), W.sum(1), 1.0))
        one, two = (stack * root / root[:, None] for stack in (one, two))
    return tuple(np.linalg.norm((one - two)[: J + 1 if k else 1].reshape(-1, len(W)), 2) for k in (1, 0))


@pytest.mark.parametrize("name", ["diffusion", "geometric", "hann"])
def test_distances_of_banks_are_norms_of_dense_matrices(name):
    W, V = graph(18, 0.4, alone=(5,)), graph(18, 0.4, seed=1)
    found = bank_distance(graph_bank(W, 3, name), graph_bank(V, 3, name))
    assert [value.high for value in found] == pytest.approx(distance(W, V, name, 3), rel=1e-7)
    assert all(v.high >= d * (1 - 1e-12) for v, d in zip(found, distance(W, V, name, 3), strict=True))
    assert [value.high for value in bank_distance(graph_bank(W, 3, name), graph_bank(W, 3, name))] == [
        0.0,
        0.0,
    ]


@pytest.mark.parametrize("name", ["diffusion", "geometric"])
@pytest.mark.parametrize("change", [0.3, 1e-2, 1e-9, 0.0])
def test_distances_of_large_graphs_are_bounded_by_products_alone(name, change, monkeypatch):
    W = graph(40)
    V = W * (1.0 + change * graph(40, 1.0, seed=2))
    exact = distance(W, V, name, 3)
    monkeypatch.setattr(graph_wavelets, "_EIGENVECTORS", 0)
    whole, low = bank_distance(graph_bank(W, 3, name), graph_bank(V, 3, name))
    assert whole == low
    assert (whole.confidence < 1.0) == (change > 0.0)
    assert exact[0] * (1 - 1e-6) <= whole.high <= 1.3 * exact[0] + 1e-6


class TestAdjacency:
    def test_every_way_to_give_a_graph_is_the_same_one(self):
        W = graph(12)
        for given in (
            torch.from_numpy(W),
            torch.from_numpy(W).to_sparse(),
            torch.from_numpy(W).to_sparse_csr(),
            sp.coo_array(W),
            sp.csc_matrix(W),
            torch.from_numpy(W).requires_grad_(),
        ):
            assert np.array_equal(read_adjacency(given).toarray(), W)
        assert read_adjacency(W > 0).toarray().tolist() == (W > 0).astype(float).tolist()
        assert read_adjacency(np.eye(3, dtype=np.int64)).toarray().tolist() == np.eye(3).tolist()

    def test_rounding_is_no_direction(self):
        W = graph(12)
        rounded = W * (1.0 + 1e-7 * np.random.default_rng(0).random((12, 12)))
        read = read_adjacency(rounded).toarray()
        assert np.array_equal(read, read.T)
        assert np.allclose(read, W, rtol=1e-6)

    def test_the_input_is_left_alone(self):
        W = sp.csr_array(graph(12))
        before = W.copy()
        graph_bank(W, 2)
        assert (before != W).nnz == 0

    @pytest.mark.parametrize(
        ("W", "error", "message"),
        [
            ([[0, 1], [1, 0]], TypeError, "W: expected a tensor, an array or a sparse matrix, got list"),
            (
                np.zeros((2, 3)),
                ValueError,
                r"W: expected a square matrix with a row for each node, got shape \(2, 3\)",
            ),
            (np.zeros((0, 0)), ValueError, "W: expected a square matrix"),
            (np.zeros(4), ValueError, "W: expected a square matrix"),
            (np.array([[0, 1j], [1j, 0]]), TypeError, "W: expected real weights, got complex128"),
            (
                torch.zeros(2, 2, dtype=torch.complex64),
                TypeError,
                "W: expected real weights, got torch.complex64",
            ),
            (np.array([["a"]]), TypeError, "W: expected real weights, got <U1"),
            (np.array([[0, math.nan], [math.nan, 0]]), ValueError, "W: expected finite weights"),
            (np.array([[0, math.inf], [math.inf, 0]]), ValueError, "W: expected finite weights"),
            (np.array([[0, -1.0], [-1.0, 0]]), ValueError, "W: expected non-negative weights, got -1"),
            (
                np.full((3, 3), 1e308),
                ValueError,
                "W: expected weights whose sums are numbers, got one of 1e\\+308",
            ),
            (
                np.array([[0, 1.0], [2.0, 0]]),
                ValueError,
                r"W: expected a symmetric matrix \(an undirected graph\), got 1 at \(0, 1\) and 2 at \(1, 0\)",
            ),
        ],
    )
    def test_what_is_refused(self, W, error, message):
        with pytest.raises(error, match=message):
            graph_bank(W, 2)


@pytest.mark.parametrize("weight", [1e-300, 1e-10, 1e300])
def test_the_unit_of_the_weights_does_not_matter(weight):
    W, x = graph(10, 0.5), signals(10)
    for name in BANKS:
        assert torch.allclose(
            graph_bank(W * weight, 3, name)(x), graph_bank(W, 3, name)(x), rtol=0.0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": "morlet"}, "bank: expected one of 'diffusion', 'geometric', 'hann', 'cubic', got 'morlet'"),
        ({"laplacian": "random"}, "laplacian: expected one of 'normalized', 'combinatorial', got 'random'"),
        ({"norm": "tight"}, "norm: expected one of 'B1', 'reference', got 'tight'"),
        ({"J": 0}, "J: expected an integer >= 1, got 0"),
        ({"J": True}, "J: expected an integer >= 1, got True"),
        ({"top": 0.0}, "top: expected a positive number, got 0.0"),
        ({"top": math.nan}, "top: expected a positive number, got nan"),
    ],
)
def test_arguments_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        graph_bank(**({"W": graph(5), "J": 2} | change))


def test_graphs_that_are_too_large_are_refused_before_the_work():
    large = sp.eye_array(20_000, format="csr")
    with pytest.raises(
        ValueError, match="bank: expected 'diffusion' or 'geometric' for more than 10,000 nodes, got 'hann'"
    ):
        graph_bank(large, 2, "hann")
    with pytest.raises(ValueError, match="J: expected at most 16 for more than 1,024 nodes"):
        graph_bank(large, 40)

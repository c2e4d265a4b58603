"""Scattering on graphs against paths taken one by one, and against what is proved of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.nn import GraphScattering, graph_scattering, graph_wavelets
from theodolite.nn.graph_wavelets import BANKS


def graph(n: int, density: float = 0.3, seed: int = 0, alone: tuple[int, ...] = ()) -> np.ndarray:
    rng = np.random.default_rng(seed)
    W = np.triu(rng.random((n, n)) * (rng.random((n, n)) < density), 1)
    for v in alone:
        W[v] = W[:, v] = 0.0
    return W + W.T


def moved(W: np.ndarray, change: float, seed: int = 1) -> np.ndarray:
    """Every weight changed by a random share."""
    shares = np.triu(np.random.default_rng(seed).uniform(-change, change, W.shape), 1)
    return W * (1.0 + shares + shares.T)


def signals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scaled(S: GraphScattering, x: Tensor) -> Tensor:
    """Signals in the coordinates in which the bank's norm is the Euclidean one."""
    return x / S.bank.weights.sqrt()


def slowly(S: GraphScattering, x: Tensor) -> Tensor:
    """Every path by itself, with matrices."""
    low, *high = S.bank(torch.eye(S.bank.n, dtype=torch.float64)).transpose(0, 1).transpose(1, 2)
    found = []
    for path in S.paths():
        U = x
        for j in path:
            U = (U @ high[j].T).abs()
        if S.out == "nodes":
            found.append(U @ low.T)
        elif S.out == "mean":
            found.append(U.sum(-1) / S.bank.n)
        else:
            found.append(torch.stack([(U**q).sum(-1) for q in S.moments], -1))
    return torch.stack(found, x.ndim - 1)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("out", ["nodes", "mean", "moments"])
@pytest.mark.parametrize("increasing", [False, True])
def test_it_is_what_the_slow_version_computes(bank, order, out, increasing, monkeypatch):
    S = GraphScattering(graph(14, alone=(3,)), 3, order, bank, increasing=increasing, out=out)
    counts = (1, 3, 3, 1) if increasing else (1, 3, 9, 27)
    assert len(S) == sum(counts[: order + 1])
    x = signals(2, 5, 14)
    whole = S(x)
    assert torch.allclose(whole, slowly(S, x), rtol=1e-12, atol=1e-12)
    assert whole.shape == (2, 5, len(S), *{"nodes": (14,), "mean": (), "moments": (4,)}[out])
    monkeypatch.setattr(graph_scattering, "_CHUNK", 1)
    assert torch.allclose(S(x), whole, rtol=1e-12, atol=1e-13)
    assert torch.allclose(S(x[1, 2]), whole[1, 2], rtol=1e-12, atol=1e-13)
    assert S(x[:0]).shape == (0, *whole.shape[1:])
    assert S(x.float()).dtype == torch.float32
    assert float((S(x.float()) - whole).norm()) < 1e-4 * float(whole.norm())


@pytest.mark.parametrize("bank", ["diffusion", "geometric"])
def test_sparse_products_give_the_same(bank, monkeypatch):
    W, x = graph(40, 0.1), signals(3, 40)
    expected = GraphScattering(W, 4, bank=bank)(x)
    monkeypatch.setattr(graph_wavelets, "_EIGENVECTORS", 0)
    assert torch.allclose(GraphScattering(W, 4, bank=bank)(x), expected, rtol=0.0, atol=1e-12)


def test_paths_are_those_of_the_table():
    S = GraphScattering(graph(6), 3, increasing=True)
    assert S.paths() == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    meta = S.meta()
    assert meta["order"].tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert [[int(j) for j in row if not math.isnan(j)] for row in meta["j"]] == [list(p) for p in S.paths()]
    assert GraphScattering(graph(6), 2, 0).meta()["j"].shape == (1, 1)
    # no path of three increasing wavelets where there are two
    assert GraphScattering(graph(6), 2, 3, increasing=True)(signals(6)).shape == (4, 6)


@pytest.mark.parametrize("bank", BANKS)
def test_renumbering_the_nodes_renumbers_the_output_and_leaves_sums_alone(bank):
    W, x = graph(20, alone=(7,)), signals(4, 20)
    order = np.random.default_rng(3).permutation(20)
    for out in ("nodes", "mean", "moments"):
        one = GraphScattering(W, 4, bank=bank, out=out)
        two = GraphScattering(W[order][:, order], 4, bank=bank, out=out)
        expected = one(x)[..., order] if out == "nodes" else one(x)
        assert torch.allclose(two(x[:, order]), expected, rtol=1e-10, atol=1e-10)
    S = GraphScattering(W, 4, bank=bank)
    back = np.argsort(order)
    assert S.stability_bound(W[order][:, order], permutation=back).high < 1e-12
    assert S.stability_bound(W[order][:, order]).high > 0.1


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_tight_bank_and_all_paths_keep_the_energy(order):
    x = signals(24)
    for laplacian in ("normalized", "combinatorial"):
        S = GraphScattering(graph(24), 4, order, "hann", laplacian=laplacian)
        _, *high = S.bank(torch.eye(24, dtype=torch.float64)).unbind(1)
        rest = x.unsqueeze(0)
        for _ in range(order + 1):
            rest = torch.cat([(rest @ h).abs() for h in high])
        assert float(S(x).square().sum() + rest.square().sum()) == pytest.approx(
            float(x.square().sum()), rel=1e-13
        )


def ascend(ratio, *inputs: Tensor, steps: int = 40) -> float:
    """The largest value met on the way up."""
    inputs, best = [x.detach().clone().requires_grad_() for x in inputs], 0.0
    for step in range(steps):
        value = ratio(*inputs)
        best = max(best, float(value.detach()))
        slopes = torch.autograd.grad(value, inputs)
        size = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        with torch.no_grad():
            for x, slope in zip(inputs, slopes, strict=True):
                x += 0.4 / (1 + step) ** 0.5 * slope / max(size, 1e-30)
    return best


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("out", ["nodes", "mean", "sum"])
def test_nothing_found_by_ascent_exceeds_the_lipschitz_constant(bank, out):
    options = {"out": "moments", "moments": (1,)} if out == "sum" else {"out": out}
    for norm in ("B1", "reference") if bank == "cubic" else ("B1",):
        S = GraphScattering(graph(12), 3, bank=bank, norm=norm, **options)
        bound = S.lipschitz().high

        def ratio(x: Tensor, y: Tensor, S: GraphScattering = S) -> Tensor:
            difference = S(x) - S(y)
            difference = scaled(S, difference) if S.out == "nodes" else difference
            return difference.norm() / scaled(S, x - y).norm()

        best = ascend(ratio, signals(12), signals(12, seed=1))
        assert (0.8 if norm == "B1" and out == "nodes" else 0.2) * bound < best <= bound * (1 + 1e-12)
        if out == "nodes":
            assert (bound <= 1.0) == (norm == "B1")


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("change", [0.05, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"increasing": True}, {"out": "mean"}, {"order": 1}, {"norm": "reference"}]
)
def test_nothing_found_by_ascent_exceeds_the_stability_bound(bank, change, options):
    W = graph(12, 0.5)
    V = moved(W, change) if change < 1.0 else graph(12, seed=9)
    S, T = (GraphScattering(A, 3, bank=bank, **options) for A in (W, V))

    def apart(x: Tensor) -> Tensor:
        difference = S(x) - T(x)
        return (scaled(S, difference) if S.out == "nodes" else difference).norm()

    x = signals(12)
    bound = S.stability_bound(V)
    assert (bound.kind, bound.confidence) == ("bound", 1.0)
    best = ascend(lambda x: apart(x) / scaled(S, x).norm(), x, steps=20)
    assert 0.02 * bound.high < best <= bound.high
    x = x.detach()
    assert (
        float(apart(x))
        <= S.stability_bound(V, x).high
        <= bound.high * float(scaled(S, x).norm()) * (1 + 1e-9)
    )
    many = signals(3, 12)
    assert float(apart(many)) <= S.stability_bound(V, many).high


@pytest.mark.parametrize("bank", ["diffusion", "hann", "cubic"])
def test_without_wavelets_the_bound_is_attained(bank):
    W, V = graph(12), graph(12, seed=1)
    S, T = (GraphScattering(A, 3, 0, bank) for A in (W, V))
    eye = torch.eye(12, dtype=torch.float64)
    difference = (S(eye) - T(eye))[:, 0]
    x = torch.linalg.svd(difference)[0][:, 0]
    assert float((S(x) - T(x)).norm()) == pytest.approx(S.stability_bound(V).high, rel=1e-6)
    assert S.stability_bound(V).high <= GraphScattering(W, 3, 2, bank).stability_bound(V).high


def test_it_is_the_banks_distance_that_counts_not_that_of_the_adjacencies():
    W = np.zeros((6, 6))
    for i in range(3):
        W[i, i + 1] = W[i + 1, i] = 1.0
    V = W.copy()
    V[4, 5] = V[5, 4] = 1e-6  # all that these nodes have
    S, T = GraphScattering(W, 3), GraphScattering(V, 3)
    x = torch.eye(6, dtype=torch.float64)[5]
    apart = float((S(x) - T(x)).norm())
    assert apart > 1e5 * 3 * np.linalg.norm(W - V, 2)
    assert apart <= S.stability_bound(V).high
    assert GraphScattering(W, 3).stability_bound(100.0 * W).high < 1e-12


def test_large_graphs_have_a_bound_with_its_confidence(monkeypatch):
    W = graph(50, 0.1)
    V = moved(W, 0.2)
    exact = GraphScattering(W, 3).stability_bound(V).high
    monkeypatch.setattr(graph_wavelets, "_EIGENVECTORS", 0)
    found = GraphScattering(W, 3).stability_bound(V)
    assert 0.999999 < found.confidence < 1.0
    assert exact * (1 - 1e-6) <= found.high <= 1.5 * exact


def test_moments_above_the_first_have_no_constant():
    S = GraphScattering(graph(8), 2, out="moments")
    for value in (S.lipschitz(), S.stability_bound(graph(8, seed=1))):
        assert (value.value, value.witness) == (None, {"moment": 4})


class TestGradients:
    @pytest.mark.parametrize("bank", BANKS)
    @pytest.mark.parametrize("out", ["nodes", "moments"])
    def test_first_and_second_derivatives(self, bank, out):
        S = GraphScattering(graph(4, 0.7), 2, bank=bank, out=out, moments=(1, 3))
        x = signals(4).requires_grad_()
        assert torch.autograd.gradcheck(S, x)
        assert torch.autograd.gradgradcheck(S, x)

    def test_through_sparse_products(self, monkeypatch):
        monkeypatch.setattr(graph_wavelets, "_EIGENVECTORS", 0)
        S = GraphScattering(graph(5, 0.6), 2)
        assert torch.autograd.gradcheck(S, signals(2, 5).requires_grad_())

    @pytest.mark.parametrize("out", ["nodes", "mean", "moments"])
    def test_they_are_finite_where_the_modulus_vanishes(self, out):
        for W in (graph(8), np.zeros((3, 3)), np.ones((1, 1))):
            for bank in BANKS:
                S = GraphScattering(W, 3, 3, bank, out=out)
                for value in (0.0, 1.0):
                    x = torch.full((len(W),), value, dtype=torch.float64, requires_grad=True)
                    S(x).sum().backward()
                    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_of_numbers(dtype):
    S, x = GraphScattering(graph(9), 3), signals(9, dtype=dtype)
    info = torch.finfo(dtype)
    for size in (info.max / 2.0**8, info.tiny * 2.0**30):
        power = 2.0 ** math.floor(math.log2(size))
        assert torch.allclose(S(x * power) / power, S(x), rtol=1e-4, atol=1e-6)
    assert float(S(torch.zeros(9, dtype=dtype)).abs().max()) == 0.0


def test_the_state_is_empty_and_a_copy_is_the_same():
    import copy

    S, x = GraphScattering(graph(9), 3), signals(9)
    assert S.state_dict() == {}
    assert torch.equal(copy.deepcopy(S)(x), S(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 4}, "order: expected 0, 1, 2 or 3, got 4"),
        ({"order": True}, "order: expected 0, 1, 2 or 3, got True"),
        ({"out": "sum"}, "out: expected one of 'nodes', 'mean', 'moments', got 'sum'"),
        ({"moments": ()}, r"moments: expected integers >= 1, got \(\)"),
        ({"moments": (1, 0.5)}, "moments: expected integers >= 1"),
        ({"J": 0}, "J: expected an integer >= 1, got 0"),
        ({"bank": "haar"}, "bank: expected one of 'diffusion', 'geometric', 'hann', 'cubic', got 'haar'"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GraphScattering(**({"W": graph(5), "J": 2} | change))


def test_inputs_that_are_refused():
    S = GraphScattering(graph(5), 2)
    with pytest.raises(
        ValueError, match=r"x: expected shape \(..., 5\), a number for each node last, got \(5, 2\)"
    ):
        S(signals(5, 2))
    with pytest.raises(ValueError, match="x: expected finite entries"):
        S(torch.full((5,), math.nan))
    for x in (torch.ones(5, dtype=torch.int64), torch.ones(5, dtype=torch.complex64), [1.0] * 5):
        with pytest.raises(TypeError, match="x: expected a tensor of float32 or float64, got"):
            S(x)
    with pytest.raises(ValueError, match="W_other: expected a graph of 5 nodes, got 6"):
        S.stability_bound(graph(6))
    with pytest.raises(ValueError, match="W_other: expected non-negative weights"):
        S.stability_bound(-graph(5, 0.9))
    for permutation in ([0, 1, 2, 3, 3], [0, 1, 2], [1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match=r"permutation: expected each of 0, \.\.\., 4 once"):
            S.stability_bound(graph(5), permutation=permutation)

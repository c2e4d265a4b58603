"""The polar over all patterns, against pieces, dense sampling and ascent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theodolite.polar.arrangement import arrangement_polar, patterns, proved_top
from theodolite.polar.ascent import relu_ascent, relu_values
from theodolite.reference.arrangements import relu_polar_by_pieces, relu_polar_by_sampling


def data(n: int, d: int, K: int, seed: int, kind: str = "normal") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Q = torch.randn(n, K, generator=generator, dtype=torch.float64)
    if kind == "integers":
        X = X.round()
    elif kind == "heavy":
        Q = Q / torch.rand(n, 1, generator=generator, dtype=torch.float64) ** 2
    elif kind == "repeated":
        X, Q = X[torch.arange(n) % max(1, n // 2)], Q * (torch.rand(n, 1, generator=generator) < 0.7)
    return X, Q


KINDS = ["normal", "integers", "heavy", "repeated"]


def test_known_answer() -> None:
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)
    value = arrangement_polar(X, q)
    assert value.kind == "bound"
    assert value.confidence == 1.0
    assert value.lower == pytest.approx(5.0**0.5, rel=1e-12)
    assert value.upper == pytest.approx(5.0**0.5, rel=2e-9)
    one_signed = (torch.nn.functional.normalize(torch.randn(4000, 2).double(), dim=1) @ X.T).relu() @ q
    assert float(one_signed.min()) > -1e-12  # the best for -q is 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_one_output_is_exact_in_the_plane(kind: str, seed: int) -> None:
    X, q = data(15, 2, 1, seed, kind)
    truth = relu_polar_by_pieces(X, q)
    value = arrangement_polar(X, q)
    assert value.lower <= truth * (1 + 1e-14) + 1e-14
    assert value.upper >= truth * (1 - 1e-14)
    assert value.upper - value.lower <= 2e-9 * truth + 1e-9 * value.upper


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_several_outputs_enclose_the_truth_in_the_plane(kind: str, seed: int) -> None:
    X, Q = data(15, 2, 3, seed, kind)
    truth = relu_polar_by_pieces(X, Q)
    value = arrangement_polar(X, Q)
    assert value.lower <= truth * (1 + 1e-14)
    assert value.lower >= truth * (1 - 1e-6)
    assert value.upper >= truth * (1 - 1e-14)
    assert value.upper <= truth * (1 + 1e-4)


@pytest.mark.parametrize(("d", "n", "K"), [(3, 12, 1), (3, 40, 1), (4, 16, 1), (5, 9, 1), (3, 20, 2)])
def test_dense_sampling_in_space_agrees(d: int, n: int, K: int) -> None:
    for kind in KINDS:
        X, Q = data(n, d, K, d + n, kind)
        truth = relu_polar_by_sampling(X, Q, polish=6)
        value = arrangement_polar(X, Q, limit=200_000)
        assert truth <= value.upper
        assert value.lower >= truth * (1 - 1e-6)
        assert value.upper <= value.lower * (1 + (3e-9 if K == 1 else 1e-4))


def test_ascent_never_beats_the_upper_end() -> None:
    for seed in range(40):
        d, K = 1 + seed % 4, 1 + seed % 3
        X, Q = data(6 + seed % 9, d, K, seed, KINDS[seed % 4])
        value = arrangement_polar(X, Q)
        _, values = relu_ascent(X, Q, n_starts=60, seed=seed)
        assert float(values.max()) <= value.upper
        assert value.upper >= value.lower


def test_witness_is_unit_distinct_and_attains_the_lower_end() -> None:
    X, Q = data(60, 3, 1, 3)
    value = arrangement_polar(X, Q, k_best=5)
    W = value.witness
    assert 1 <= len(W) <= 5
    torch.testing.assert_close(W.norm(dim=1), torch.ones(len(W), dtype=W.dtype))
    values = relu_values(X, Q, W)
    assert float(values[0]) == pytest.approx(value.lower, rel=1e-12)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    assert float((W[1:] - W[:1]).norm(dim=1).min()) > 1e-5


@pytest.mark.parametrize("K", [1, 3])
def test_target_and_budget_only_loosen(K: int) -> None:
    X, Q = data(50, 3, K, 7)
    P = patterns(X)
    full = arrangement_polar(X, Q, patterns=P)
    above = arrangement_polar(X, Q, patterns=P, target=1.1 * full.upper)
    assert full.lower <= above.upper <= 1.1 * full.upper
    below = arrangement_polar(X, Q, patterns=P, target=0.5 * full.lower)
    assert below.lower > 0.5 * full.lower
    assert below.upper >= full.lower
    hurried = arrangement_polar(X, Q, patterns=P, budget=0.0)
    assert hurried.upper >= full.lower
    assert hurried.lower <= full.upper


def test_scales_and_degenerate_inputs() -> None:
    X, Q = data(20, 3, 2, 9)
    one, scaled = arrangement_polar(X, Q), arrangement_polar(X * 1e5, Q * 1e-9)
    assert scaled.upper == pytest.approx(1e-4 * one.upper, rel=1e-6)
    zero = arrangement_polar(X, torch.zeros_like(Q))
    assert (zero.lower, zero.upper) == (0.0, 0.0)
    padded = arrangement_polar(
        torch.cat([X, torch.zeros(3, 3).double()]), torch.cat([Q, torch.ones(3, 2).double()])
    )
    assert padded.upper == pytest.approx(one.upper, rel=1e-6)
    line = arrangement_polar(
        torch.tensor([[1.0], [-2.0], [3.0]]).double(), torch.tensor([[1.0], [1.0], [-1.0]]).double()
    )
    assert line.upper == pytest.approx(2.0, rel=1e-8)
    with pytest.raises(ValueError, match="Q: expected 20 rows"):
        arrangement_polar(X, Q[:3])
    with pytest.raises(ValueError, match="X: expected a finite float64 matrix"):
        arrangement_polar(X.float(), Q)
    with pytest.raises(ValueError, match="patterns: expected shape"):
        arrangement_polar(X, Q, patterns=torch.ones(2, 3, dtype=torch.bool))


def test_proved_eigenvalue_is_above_and_tight() -> None:
    A = torch.randn(200, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = A @ A.mT
    H[0] = 0.0
    H[1] = torch.eye(4)
    top, _, _ = proved_top(H, torch.zeros(200, dtype=torch.float64))
    truth = torch.linalg.eigvalsh(H)[:, -1]
    assert bool((top >= truth).all())
    assert bool((top <= truth * (1 + 1e-12)).all())


@pytest.mark.parametrize(("n", "d", "outputs"), [(1, 1, 2), (1, 3, 2), (4, 1, 2), (3, 1, 1)])
def test_hardly_any_cells(n: int, d: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(n + d)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Q = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    value = arrangement_polar(X, Q)
    assert value.high - value.low <= 1e-6 * value.high
    rays = torch.cat([X, -X]) / torch.cat([X, X]).norm(dim=1, keepdim=True)
    assert value.high >= float(relu_values(X, Q, rays).max())

"""Search: monotone, scale-free, and as good as brute force on small cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theodolite.polar import ascent
from theodolite.polar.ascent import ascend, distinct, relu_ascent, relu_values, rounding_margin
from theodolite.reference.arrangements import relu_polar_by_pieces, relu_polar_by_sampling


def data(n: int, d: int, K: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return X, torch.randn(n, K, generator=generator, dtype=torch.float64)


def test_values_and_their_margin() -> None:
    X, Q = data(40, 3, 2, 0)
    W = torch.nn.functional.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1)
    values = relu_values(X, Q, W)
    exact = torch.stack([(Q.T.double() @ (X @ w).clamp(min=0)).norm() for w in W])
    assert bool(((values - exact).abs() <= rounding_margin(X, Q)).all())
    single = relu_values(X.float(), Q.float(), W.float()).double()
    assert bool(((values - single).abs() <= rounding_margin(X, Q) * 2.0**29).all())
    assert relu_values(X, Q, W[:0]).shape == (0,)


@pytest.mark.parametrize("many", [False, True])
def test_cells_are_blocks_of_columns(many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if many:  # a sample of the rows first
        monkeypatch.setattr(ascent, "_MANY", 20)
        monkeypatch.setattr(ascent, "_SAMPLE", 15)
    X, Q = data(40, 3, 2, 1)
    X[7] = 0.0
    cells = torch.tensor([0] * 10 + [2] * 5 + [5] * 25)
    blocks = Q.new_zeros(40, 6, 2)
    blocks[torch.arange(40), cells] = Q
    blocks = blocks.flatten(1)
    W = torch.nn.functional.normalize(data(30, 3, 1, 2)[0])
    expected = relu_values(X, blocks, W)
    values = relu_values(X, Q, W, cells)
    assert bool(((values - expected).abs() <= rounding_margin(X, Q, cells)).all())
    starts = W[:2]
    found, best = relu_ascent(X, Q, starts, cells=cells, seed=3)
    assert bool((best[:-1] >= best[1:]).all())
    assert float(best[0]) >= float(relu_values(X, Q, starts, cells).max())
    torch.testing.assert_close(relu_values(X, blocks, found), best)
    assert float(best[0]) == pytest.approx(float(relu_ascent(X, blocks, starts, seed=3)[1][0]), rel=1e-6)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_finds_the_maximum_in_the_plane_and_in_space(K: int, seed: int) -> None:
    X, Q = data(20, 2, K, seed)
    W, values = relu_ascent(X, Q)
    truth = relu_polar_by_pieces(X, Q)
    assert truth * (1 - 1e-6) <= float(values[0]) <= truth * (1 + 1e-14)
    X, Q = data(20, 3, K, seed)
    W, values = relu_ascent(X, Q)
    truth = relu_polar_by_sampling(X, Q, polish=4)
    assert float(values[0]) >= truth * (1 - 1e-5)
    torch.testing.assert_close(W.norm(dim=1), torch.ones(len(W), dtype=W.dtype))
    torch.testing.assert_close(values, relu_values(X, Q, W))
    assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_is_monotone_from_every_start() -> None:
    X, Q = data(200, 6, 2, 3)
    starts = torch.nn.functional.normalize(torch.randn(30, 6, dtype=torch.float64), dim=1)
    before = relu_values(X, Q, starts)
    for i in (0, 7, 21):
        _, values = relu_ascent(X, Q, starts[i : i + 1], n_starts=0, max_steps=3)
        assert float(values[0]) >= float(before[i])
    short, long = (relu_ascent(X, Q, starts, n_starts=0, max_steps=k)[1] for k in (2, 40))
    assert bool((long >= short - 1e-12).all())


def test_creeps_along_a_kink() -> None:
    """F = |20 relu(w_2) - 10 |w_1| + relu(w_1 / 2)| has its maximum 20 on a kink."""
    X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    q = torch.tensor([[20.0], [-10.0], [-10.0], [1.0]], dtype=torch.float64)
    _, values = relu_ascent(X, q, torch.tensor([[0.3, 1.0]], dtype=torch.float64), n_starts=0, max_steps=80)
    assert float(values[0]) == pytest.approx(20.0, rel=1e-6)


def test_degenerate_inputs_and_budget() -> None:
    X, Q = data(10, 3, 1, 0)
    W, values = relu_ascent(torch.zeros_like(X), Q, n_starts=4)
    assert values.tolist() == [0.0] * len(W)
    W, values = relu_ascent(X, Q, budget=0.0)
    assert len(W) == len(values) > 0
    one, again = relu_ascent(X, Q, seed=5), relu_ascent(X, Q, seed=5)
    assert torch.equal(one[0], again[0])
    tiny = relu_ascent(1e-8 * X, 1e-9 * Q, seed=5)[1]
    torch.testing.assert_close(1e17 * tiny[:1], one[1][:1], rtol=1e-4, atol=0)


def test_distinct_keeps_the_best_of_each_direction() -> None:
    W = torch.tensor([[1.0, 0.0], [1.0, 1e-6], [0.0, 1.0], [-1.0, 0.0]])
    kept = distinct(W, torch.tensor([1.0, 1.1, 0.9, 0.2]), most=5)
    assert kept.tolist() == [W[1].tolist(), W[2].tolist()]
    assert distinct(W, torch.tensor([1.0, 1.1, 0.9, 0.2]), most=1).tolist() == [W[1].tolist()]


def test_ascend_maximizes_each_ratio_separately() -> None:
    """<Q, u v'> / |u| |v| is maximal at the top singular pair, wherever each start was."""
    Q = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ratio(params: tuple[Tensor, ...]) -> Tensor:
        u, v = params
        return torch.einsum("ri,ij,rj->r", u, Q, v) / (u.norm(dim=1) * v.norm(dim=1))

    generator = torch.Generator().manual_seed(1)
    starts = tuple(
        torch.randn(9, k, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-4, 5)[:, None]
        for k in (6, 4)
    )
    before = ratio(starts)
    params, values = ascend(ratio, starts)
    assert bool((values >= before).all())
    torch.testing.assert_close(values, ratio(params))
    top = torch.linalg.svdvals(Q)[0]
    assert int((values > (1 - 1e-8) * top).sum()) >= 8
    assert bool((values <= top * (1 + 1e-12)).all())
    alone, value = ascend(ratio, tuple(p[2:3] for p in starts))
    torch.testing.assert_close(value, values[2:3], rtol=1e-6, atol=0)
    assert float((ascend(ratio, starts, budget=0.0)[1] - before).abs().max()) == 0.0
    assert alone[0].shape == (1, 6)


def test_many_rows_are_sampled_first(monkeypatch):
    X, Q = (
        torch.randn(900, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (4, 3)
    )
    _, whole = relu_ascent(X, Q)
    monkeypatch.setattr(ascent, "_MANY", 800)
    monkeypatch.setattr(ascent, "_SAMPLE", 200)
    start = relu_ascent(X, Q, max_steps=3)[0]
    W, values = relu_ascent(X, Q, starts=start)
    assert len(W) <= 4
    assert torch.allclose(values, relu_values(X, Q, W), rtol=1e-12)
    assert torch.allclose(W.norm(dim=1), torch.ones(len(W), dtype=torch.float64))
    assert float(values[0]) >= max(
        0.95 * float(whole[0]), float(relu_values(X, Q, start).max()) * (1 - 1e-12)
    )

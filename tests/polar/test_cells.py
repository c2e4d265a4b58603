"""Activation patterns: known counts, degenerate positions, completeness."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.polar.arrangement import TooManyPatterns, pattern_bound, patterns
from theodolite.reference.arrangements import patterns_by_linear_programs


def as_set(P: Tensor) -> set[tuple[bool, ...]]:
    return {tuple(row) for row in P.tolist()}


@pytest.mark.parametrize(
    ("n", "d", "count"),
    [
        (50, 2, 100),
        (100, 2, 200),
        (200, 2, 400),
        (50, 3, 2452),
        (100, 3, 9902),
        (200, 3, 39802),
        (50, 4, 39300),
    ],
)
def test_counts_in_general_position(n: int, d: int, count: int) -> None:
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(n + d))
    P = patterns(X)
    assert P.dtype == torch.bool
    assert len(P) == len(torch.unique(P, dim=0)) == count == pattern_bound(n, d)


def test_dimension_five_and_rank_deficiency() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(14, 5, generator=generator)
    assert len(patterns(X)) == pattern_bound(14, 5)
    left, right = (
        torch.randn(14, 3, generator=generator).double(),
        torch.randn(3, 8, generator=generator).double(),
    )
    assert len(patterns(left @ right)) == pattern_bound(14, 3)


def degenerate(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    integers = torch.randint(-2, 3, (9, 3), generator=generator).double()
    return {
        "integers": integers,
        "integers 4": torch.randint(-1, 2, (9, 4), generator=generator).double(),
        "braid": torch.tensor(
            [[1, -1, 0, 0], [1, 0, -1, 0], [1, 0, 0, -1], [0, 1, -1, 0], [0, 1, 0, -1], [0, 0, 1, -1.0]]
        ),
        "coplanar": torch.cat(
            [torch.cat([torch.randn(5, 2, generator=generator), torch.zeros(5, 1)], 1), torch.eye(3)]
        ),
        "duplicates": torch.cat([integers[:4], 3.0 * integers[:4], -0.7 * integers[:2]]),
        "zeros": torch.cat([torch.zeros(2, 3), torch.eye(3), torch.zeros(1, 3)]).double(),
        "one line": torch.tensor([[1.0, 2.0], [-2.0, -4.0], [0.5, 1.0]]),
        "cube": torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double(),
        "scaled": torch.randn(8, 3, generator=generator).double() * torch.tensor([1.0, 1e-4, 1e3]),
        "ones": torch.cat([torch.randn(8, 2, generator=generator), torch.ones(8, 1)], 1).double(),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "integers",
        "integers 4",
        "braid",
        "coplanar",
        "duplicates",
        "zeros",
        "one line",
        "cube",
        "scaled",
        "ones",
    ],
)
def test_degenerate_positions_equal_linear_programs(kind: str) -> None:
    X = degenerate(kind)
    P = as_set(patterns(X))
    truth = patterns_by_linear_programs(X)
    assert truth == P
    if kind == "braid":
        assert len(truth) == 24  # one cell for each order of four numbers
    if kind == "one line":
        assert len(truth) == 2


@pytest.mark.parametrize("side", [2, 3])
def test_complete_on_digit_patches(side: int) -> None:
    """Patches of integer pixels are in special position; no sampled w has a pattern that is missing."""
    images = torch.from_numpy(load_digits().images[:6])
    X = images.unfold(1, side, 1).unfold(2, side, 1).reshape(-1, side * side)
    generator = torch.Generator().manual_seed(side)
    X = X[torch.randperm(len(X), generator=generator)[: 60 if side == 2 else 14]]
    P = patterns(X, limit=10**6)
    known = as_set(P)
    rays = torch.linalg.svd(
        torch.stack([X[torch.randperm(len(X), generator=generator)[: side * side - 1]] for _ in range(300)])
    )
    W = torch.cat([torch.randn(3000, side * side, generator=generator).double(), rays.Vh[:, -1]])
    W = torch.cat([W, rays.Vh[:, -1] + 1e-6 * torch.randn(300, side * side, generator=generator).double()])
    T = W @ X.T
    clear = ((T.abs() > 1e-9) | (X == 0).all(1)).all(1)
    assert int(clear.sum()) > 2500
    assert as_set(T[clear] > 0.0) <= known


@pytest.mark.parametrize("distance", [1e-6, 1e-9, 1e-11])
def test_nearly_parallel_and_nearly_coplanar_rows_lose_no_cell(distance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(8, 3, generator=generator).double()
    flat = base[:4] * torch.tensor([1.0, 1.0, 0.0])
    noise = torch.randn(16, 3, generator=generator).double()
    X = torch.cat([base, base[4:] + distance * noise[:4], flat, flat + distance * noise[4:8]])
    known = as_set(patterns(X))
    W = torch.randn(20_000, 3, generator=generator).double()
    W[10_000:] -= (W[10_000:] @ base[4:5].T) / base[4].square().sum() * base[4:5] * (1.0 - distance)
    T = W @ X.T
    clear = (T.abs() > 1e-12 * W.norm(dim=1, keepdim=True)).all(1)
    assert as_set(T[clear] > 0.0) <= known


def test_refuses_too_many_and_wrong_input() -> None:
    with pytest.raises(TooManyPatterns, match="at most 1,000 patterns, got"):
        patterns(torch.randn(50, 4), limit=1000)
    with pytest.raises(ValueError, match="finite tensor"):
        patterns(torch.tensor([[float("nan"), 1.0]]))
    assert patterns(torch.zeros(3, 2)).tolist() == [[False] * 3]
    assert patterns(torch.zeros(0, 2)).shape == (1, 0)


@pytest.mark.parametrize(("d", "size"), [(5, 5e-5), (6, 5e-4), (7, 1e-3)])
def test_a_cell_between_rows_that_are_all_close_to_each_other(d: int, size: float) -> None:
    """A simplex whose d facets come from one cluster: every ray's rows have a volume of size^(d - 2), all resolved."""
    generator = torch.Generator().manual_seed(d)
    inside = torch.full((d - 1,), (d - 1) ** -0.5, dtype=torch.float64)
    offsets = torch.randn(d, d - 1, generator=generator, dtype=torch.float64)
    offsets -= torch.outer(offsets @ inside, inside)
    offsets[-1] = offsets[:-1].mean(0)
    offsets += 0.01 * torch.outer(torch.tensor([1.0] * (d - 1) + [-1.0]).double(), inside)
    cluster = torch.cat([torch.ones(d, 1).double(), size * offsets], 1)
    X = torch.cat([cluster, torch.eye(d, dtype=torch.float64)[1:]])
    w = torch.cat([torch.zeros(1).double(), inside])
    heights = X @ w
    assert float(heights.abs().min()) > 1e-7
    assert tuple((heights > 0.0).tolist()) in as_set(patterns(X))

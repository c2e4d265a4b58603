"""Bounds on boxes and cones: never beaten inside them, sharp on narrow ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from theodolite.polar.local_relaxation import box_relaxation_bound, cone_relaxation_bound
from theodolite.polar.relaxation import relaxation_bound
from theodolite.value import Value


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    n, d, K, C = (
        int(torch.randint(low, high, (1,), generator=g)) for low, high in ((1, 60), (1, 6), (1, 4), (1, 5))
    )
    X, Q = torch.randn(n, d, generator=g).double(), torch.randn(n, K, generator=g).double()
    if seed % 3 == 1:
        X, Q = (
            X.abs() * 10.0 ** torch.randint(-9, 9, (n, 1), generator=g),
            Q * (torch.rand(n, 1, generator=g) < 0.7),
        )
    if seed % 3 == 2:
        X = X.round()
    return X, Q, torch.randint(C, (n,), generator=g)


def values(X: Tensor, Q: Tensor, cells: Tensor, W: Tensor) -> Tensor:
    """Return F(w) / |w| for each row of W."""
    T = (torch.nn.functional.normalize(W, dim=1) @ X.T).relu()
    total = torch.zeros(len(W)).double()
    for c in cells.unique():
        total += (T[:, cells == c] @ Q[cells == c]).square().sum(1)
    return total.sqrt()


def in_cone(v: Tensor, angle: float, g: torch.Generator, count: int = 2000) -> Tensor:
    """Return unit vectors within an angle of v, many of them at its edge."""
    v = v / v.norm()
    across = torch.randn(count, len(v), generator=g).double()
    across = torch.nn.functional.normalize(across - (across @ v)[:, None] * v, dim=1)
    angles = angle * torch.rand(count, 1, generator=g).double().sqrt()
    angles[: count // 4] = angle
    return v * angles.cos() + across * angles.sin()


def checked(found: Value, attained: Tensor) -> None:
    assert float(attained.max()) <= found.upper * (1 + 1e-14) + 1e-300


@pytest.mark.parametrize("seed", range(30))
def test_cones_and_boxes_are_never_beaten(seed: int) -> None:
    X, Q, cells = problem(seed)
    g = torch.Generator().manual_seed(seed)
    d = X.shape[1]
    for angle in (0.0, 0.02, 0.5, 1.4, 2.5, math.pi):
        v = torch.randn(d, generator=g).double()
        inside = v[None] / v.norm() if d == 1 else in_cone(v, angle, g)
        if d == 1 and angle == math.pi:
            inside = torch.cat([inside, -inside])
        checked(cone_relaxation_bound(X, Q, v, angle, cells, steps=5), values(X, Q, cells, inside))
    for size in (0.0, 0.05, 0.4, 3.0):
        center, radius = torch.randn(d, generator=g).double(), size * torch.rand(d, generator=g).double()
        W = center + radius * (2.0 * torch.rand(2000, d, generator=g).double() - 1.0)
        W[:500] = center + radius * (W[:500] - center).sign()  # corners
        W = W[W.abs().amax(1) > 0.0]
        found = box_relaxation_bound(X, Q, center, radius, cells, steps=5)
        checked(found, values(X, Q, cells, W))


@pytest.mark.parametrize("leave", ["chords", "harmonic", "Shor"])
def test_each_of_the_three_is_a_bound(leave: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, where the others are infinite."""
    from theodolite.polar.local_relaxation import _Local

    for name in ("chords", "harmonic", "shor"):
        if name != leave.lower():
            monkeypatch.setattr(_Local, name, lambda *_: math.inf)
    used = 0
    for seed in range(12):
        X, Q, cells = problem(3 * seed)
        g = torch.Generator().manual_seed(seed)
        v, angle = torch.randn(X.shape[1], generator=g).double(), 0.1 + 0.3 * (seed % 5)
        found = cone_relaxation_bound(X, Q, v, angle, cells, steps=8)
        used += leave in found.note
        inside = v[None] if len(v) == 1 else in_cone(v, angle, g)
        checked(found, values(X, Q, cells, inside))
    assert used >= 4


def test_narrow_cones_are_sharp_and_a_cover_of_the_circle_closes() -> None:
    g = torch.Generator().manual_seed(0)
    X, Q = torch.randn(30, 2, generator=g).double(), torch.randn(30, 3, generator=g).double()
    cells = torch.arange(30) % 3
    v = torch.randn(2, generator=g).double()
    exact = float(values(X, Q, cells, v[None])[0])
    assert cone_relaxation_bound(X, Q, v, 1e-7, cells).upper == pytest.approx(exact, rel=1e-4)
    count = 256
    angles = (torch.arange(count) + 0.5).double() * (2 * math.pi / count)
    axes = torch.stack([angles.cos(), angles.sin()], 1)
    fine = torch.linspace(0.0, 2 * math.pi, 20001).double()
    attained = float(values(X, Q, cells, torch.stack([fine.cos(), fine.sin()], 1)).max())
    bounds = [cone_relaxation_bound(X, Q, a, math.pi / count, cells, degree=0, steps=0).upper for a in axes]
    assert attained <= max(bounds) <= 1.02 * attained


def test_whole_space_is_about_as_good_as_the_relaxation() -> None:
    g = torch.Generator().manual_seed(1)
    X, Q = torch.randn(200, 4, generator=g).double(), torch.randn(200, 2, generator=g).double()
    cells = torch.arange(200) % 2
    everywhere = relaxation_bound(X, Q, cells, degree=4).upper
    found = cone_relaxation_bound(X, Q, X[0], math.pi, cells, degree=4, steps=60).upper
    assert found <= 1.1 * everywhere
    half = cone_relaxation_bound(X, Q, X[0], 0.5, cells).upper
    assert half < 0.9 * found


def test_no_undecided_row_leaves_a_linear_map() -> None:
    X = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]]).double()
    Q = torch.tensor([[1.0], [1.0], [5.0]]).double()
    found = cone_relaxation_bound(X, Q, torch.tensor([1.0, 0.0]), 0.1)
    assert found.upper == pytest.approx(2.0, rel=0.01)
    assert "chords" in found.note
    box = box_relaxation_bound(X, Q, torch.tensor([1.0, 0.0]).double(), torch.tensor([0.1, 0.1]).double())
    assert 2.0 <= box.upper < 2.1
    zero = box_relaxation_bound(X, 0.0 * Q, torch.ones(2).double(), torch.ones(2).double())
    assert zero.upper == 0.0


def test_bad_input_is_refused() -> None:
    X, Q, _ = problem(0)
    d = X.shape[1]
    with pytest.raises(ValueError, match="angle: expected a number from 0 to pi"):
        cone_relaxation_bound(X, Q, X[0], 4.0)
    with pytest.raises(ValueError, match="direction: expected"):
        cone_relaxation_bound(X, Q, torch.zeros(d), 0.5)
    with pytest.raises(ValueError, match="radius: expected"):
        box_relaxation_bound(X, Q, torch.ones(d), -torch.ones(d))
    with pytest.raises(ValueError, match="center: expected"):
        box_relaxation_bound(X, Q, torch.ones(d + 1), torch.ones(d + 1))

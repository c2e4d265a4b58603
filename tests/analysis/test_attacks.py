"""Attacks: exact on linear classifiers, never below a certified radius, always re-verified."""

from __future__ import annotations

import math

import pytest
import torch
from builders import digits, mlp
from random_nets import random_network
from torch import Tensor, nn

from theodolite.analysis.attacks import radius
from theodolite.analysis.graph import trace
from theodolite.analysis.lipschitz import lipschitz_bounds


def classifier(rows: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, dtype=torch.float64)
    layer.weight.data = rows.double()
    if bias is not None:
        layer.bias.data = bias.double()
    return layer


def linear_radii(layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """Distances to the nearest of the hyperplanes on which a rival draws level."""
    W, scores = layer.weight.detach(), layer(x).detach()
    gaps = scores.gather(1, y[:, None]) - scores
    ratios = gaps / (W[y][:, None] - W[None]).norm(dim=2)
    return ratios.scatter(1, y[:, None], math.inf).amin(1).clamp_min(0.0)


def certified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Lower ends by the global Lipschitz constants of the differences of two logits."""
    bounds = lipschitz_bounds(trace(model, x))
    assert not bounds.reason
    scores = model(x).detach()
    gaps = scores.gather(1, y[:, None]) - scores
    ratios = gaps / bounds.pairwise()[y]
    return ratios.scatter(1, y[:, None], math.inf).amin(1).clamp_min(0.0)


def test_known_radius_of_a_linear_classifier():
    layer = classifier(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    x, y = torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([0])
    upper = float(radius(layer, x, y))
    assert upper == pytest.approx(0.6708204, rel=1e-6)
    # pair by pair the certified end is the same number
    assert float(certified(layer, x, y)) == pytest.approx(0.6708204, rel=1e-6)
    # and the margin over sqrt(2) times the norm of the network is below both
    margin = 1.5 / (math.sqrt(2.0) * float(torch.linalg.matrix_norm(layer.weight.detach(), 2)))
    assert margin == pytest.approx(0.4606007, rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_exact_on_linear_classifiers(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    for classes, inputs in ((2, 1), (2, 5), (4, 3), (10, 64)):
        layer = classifier(
            torch.randn(classes, inputs, generator=generator), torch.randn(classes, generator=generator)
        )
        x = torch.randn(60, inputs, generator=generator, dtype=torch.float64)
        y = layer(x).argmax(1)
        y[:5] = (y[:5] + 1) % classes
        true = linear_radii(layer, x, y)
        # the nearest class by linearization is the nearest, and its boundary is met at once
        for refinements in (0, 12):
            upper = radius(layer, x, y, targets=1, refinements=refinements, dtype=dtype)
            assert bool((upper[:5] == 0.0).all())
            assert bool((upper >= true * (1 - 1e-9)).all())
            assert bool((upper <= true * (1 + tolerance)).all())


def test_softmax_and_scale_do_not_move_the_boundary():
    layer = classifier(torch.randn(3, 4))
    x = torch.randn(20, 4, dtype=torch.float64)
    y = layer(x).argmax(1)
    for head in (nn.Softmax(1), nn.LogSoftmax(1)):
        upper = radius(nn.Sequential(layer, head), x, y, targets=2)
        assert bool((upper >= linear_radii(layer, x, y) * (1 - 1e-9)).all())
        assert float((upper / linear_radii(layer, x, y)).median()) < 1.0001


STEPS = 400  # of the polar grid


def rays(model: nn.Module, x: Tensor, y: int, longest: float) -> float:
    """Distance to the nearest misclassified point on a polar grid around a point of the plane."""
    angles = torch.linspace(0.0, 2.0 * math.pi, 361, dtype=torch.float64)[:-1]
    lengths = torch.linspace(0.0, longest, STEPS + 1, dtype=torch.float64)[1:]
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    points = x + lengths[:, None, None] * directions
    wrong = model(points.reshape(-1, 2)).argmax(1).reshape(len(lengths), -1) != y
    hit = wrong.any(1).nonzero()
    return float(lengths[hit[0]]) if len(hit) else math.inf


def test_close_to_an_exhaustive_search_in_the_plane():
    ratios = []
    for seed in range(3):
        model = mlp(2, 16, 16, 3, bias=True, seed=seed).double().requires_grad_(False)
        cloud = torch.randn(200, 2, dtype=torch.float64)
        # no class may win everywhere
        [head] = [bias for bias in model.parameters() if bias.shape == (3,)]
        head.sub_(model(cloud).median(0).values)
        x = cloud[:10]
        y = model(x).argmax(1)
        upper, lower = radius(model, x, y), certified(model, x, y)
        for k in range(len(x)):
            true = rays(model, x[k], int(y[k]), 2.0)
            if math.isfinite(true):
                # the grid overshoots by a step at most, and nothing lies below the radius
                assert float(upper[k]) >= true - 2.0 / STEPS - 1e-3 * true
                assert float(lower[k]) <= true
                ratios.append(float(upper[k]) / true)
    assert len(ratios) > 20
    assert sum(ratio < 1.01 for ratio in ratios) > 0.8 * len(ratios)


def test_never_below_the_certified_radius():
    finite = 0
    for seed in range(200, 206):
        model, shape = random_network(seed, n_outputs=4)
        x = torch.randn(12, *shape, dtype=torch.float64)
        y = model(x).argmax(1)
        lower = certified(model, x, y)
        for dtype in (torch.float64, torch.float32):
            upper = radius(model, x, y, steps=8, refinements=3, dtype=dtype)
            assert bool((lower <= upper * (1 + 1e-9)).all()), (seed, dtype)
            finite += int(torch.isfinite(upper).sum())
    assert finite > 60


def test_digits_are_bracketed_and_refinement_helps():
    x, y = digits()
    x, y = x[:40].double(), y[:40]
    model = mlp(64, 32, 10, seed=1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    right = model(x).argmax(1) == y
    assert int(right.sum()) > 35
    lower, upper = certified(model, x, y), radius(model, x, y)
    assert bool((lower <= upper).all())
    assert bool(((upper > 0) == right).all())
    assert bool(torch.isfinite(upper).all())
    plain = radius(model, x, y, refinements=0, targets=1)
    assert bool((upper <= plain * (1 + 1e-9)).all())
    assert float(upper[right].mean()) < 0.999 * float(plain[right].mean())


def test_points_that_only_single_precision_misclassifies_do_not_count():
    class Coarse(nn.Module):
        """Class 1 from 1.007 on; in float32, where the sum is a multiple of 1/128, from 1.0039 on."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0]))

        def forward(self, x: Tensor) -> Tensor:
            score = ((self.weight * x[:, :1] + 1e5) - 1e5) - 1.007
            return torch.cat([-score, score], 1)

    x, y = torch.tensor([[0.0]], dtype=torch.float64), torch.tensor([0])
    assert float(Coarse()(torch.tensor([[1.005]]))[0, 1].detach()) > 0.0
    # a point found in float32 is pushed a little further, and dropped if that is not enough
    assert float(radius(Coarse(), x, y, dtype=torch.float32)) == math.inf
    assert 1.007 <= float(radius(Coarse(), x, y)) < 1.0071


def test_nothing_found_is_infinite_and_misclassified_is_zero():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]], dtype=x.dtype) + 0.0 * x[:, :1]

    x = torch.randn(3, 2)
    assert radius(Constant(), x, torch.tensor([0, 0, 1])).tolist() == [math.inf, math.inf, 0.0]
    # one class can't be confused; a tie counts as misclassified
    single = classifier(torch.ones(1, 2))
    assert radius(single, x.double(), torch.tensor([0, 0, 0])).tolist() == [math.inf] * 3
    tie = classifier(torch.zeros(2, 2))
    assert radius(tie, x.double(), torch.tensor([0, 1, 0])).tolist() == [0.0] * 3


def test_flat_regions_and_infinite_outputs_are_survived():
    step = nn.Sequential(classifier(torch.randn(3, 2)), nn.Hardtanh(-1e-3, 1e-3), nn.Hardsigmoid())
    x = 10.0 * torch.randn(10, 2, dtype=torch.float64)
    upper = radius(step, x, step(x).argmax(1))
    assert upper.shape == (10,)
    assert not bool(torch.isnan(upper).any())

    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.exp(1e3 * x[:, :1]), x[:, :1].abs() + 2.0], 1)

    points = torch.tensor([[0.1], [-0.1]], dtype=torch.float64)
    upper = radius(Overflowing(), points, torch.tensor([0, 1]))
    assert not bool(torch.isnan(upper).any())
    # the boundary is where exp(1000 x) = x + 2: x = 0.000694
    assert float(upper[0]) >= 0.0993
    assert float(upper[1]) >= 0.1006


def test_same_answer_twice_and_the_model_is_left_alone():
    model = mlp(6, 8, 3)
    x = torch.randn(10, 6)
    y = model(x).argmax(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, given = torch.get_rng_state(), x.clone()
    first, second = radius(model, x, y), radius(model, x, y)
    assert torch.equal(first, second)
    assert first.dtype == torch.float64
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"norm": "linf"}, "norm: expected 'l2', got 'linf'"),
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, "x: expected real inputs"),
        ({"y": torch.zeros(2, dtype=torch.long)}, "y: expected 3 class numbers"),
        ({"y": torch.zeros(3)}, "y: expected 3 class numbers"),
    ],
)
def test_arguments_are_named(arguments, words):
    given = {"x": torch.zeros(3, 2), "y": torch.zeros(3, dtype=torch.long), **arguments}
    with pytest.raises(ValueError, match=words):
        radius(mlp(2, 3), **given)

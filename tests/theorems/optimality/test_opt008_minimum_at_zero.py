"""OPT008: the known answers of the example with three layers, and sampling and descent around W = 0."""

from __future__ import annotations

import math

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.nn.regularizers import WeightDecay
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.minimum_at_zero import MinimumAtZero
from theodolite.theorems.subject import Subject

ONE = torch.ones(1, 1, dtype=torch.float64)


def finding(subject: Subject) -> Finding:
    result = evaluate(MinimumAtZero(), subject)
    assert result.status != "failed", result.traceback
    return result


def chain(*weights: float, lam: float = 0.2) -> Subject:
    """1/2 (1 - w_1 w_2 w_3)^2 + lam/2 sum w^2, times two: our squared error has no 1/2."""
    layers: list[nn.Module] = []
    for weight in weights:
        layers += [nn.Linear(1, 1, bias=False, dtype=torch.float64), nn.ReLU()]
        nn.init.constant_(layers[-2].weight, weight)
    return Subject(nn.Sequential(*layers[:-1]), ONE, ONE, weight_decay=2.0 * lam)


def test_the_known_answers():
    result = finding(chain(*[0.921699] * 3))
    values = result.values
    assert result.status == "certified"
    assert values["basin_radius"].low == pytest.approx(1.5 * math.sqrt(3.0) * 0.2, rel=1e-6)
    assert values["attraction_radius"].low == pytest.approx(math.sqrt(3.0) * 0.2, rel=1e-6)
    assert values["objective_at_zero"].value == pytest.approx(2 * 0.5)
    assert values["dual_bound"].low == pytest.approx(2 * 0.26293, rel=1e-4)
    assert values["gap"].high == pytest.approx(1.0 - 0.26293 / 0.27840, rel=1e-3)
    assert result.advice == ""


def test_the_numbers_of_the_note():
    """B = 0.89397, lambda' = 0.31142, and the bound lambda' - lambda'^2 / 2 = 0.26293 <= 0.27840."""
    objective = 0.5 * (1 - 0.921699**3) ** 2 + 0.3 * 0.921699**2
    assert objective == pytest.approx(0.278401, rel=1e-5)
    slope = WeightDecay.slope(0.2, 3, objective)
    assert (2 * objective / 0.6) ** 1.5 == pytest.approx(0.89397, rel=1e-4)
    assert slope == pytest.approx(0.31142, rel=1e-4)
    assert slope - slope**2 / 2 == pytest.approx(0.26293, rel=1e-4)
    # zero becomes global above 2^(-4/3): the least objective by a fine grid of w, balanced as the optimum is
    w = torch.linspace(0.0, 1.5, 300_001, dtype=torch.float64)
    for lam, global_zero in ((2 ** (-4 / 3) + 1e-4, True), (2 ** (-4 / 3) - 1e-4, False)):
        least = float((0.5 * (1 - w**3) ** 2 + 1.5 * lam * w**2)[1:].min())
        assert (least > 0.5) is global_zero


def test_two_layers_have_no_basin():
    assert WeightDecay.basin(0.2, 2, 1.0) == WeightDecay.attraction(0.2, 2, 1.0) == 0.0
    assert WeightDecay.slope(0.2, 2, 0.3) == 0.2
    result = finding(chain(0.5, 0.5))
    assert result.status == "not applicable"
    assert "degree 2" in result.reason


@pytest.mark.parametrize("depth", [3, 4, 8])
def test_the_decay_is_above_its_chord(depth):
    slope, theta = WeightDecay.slope(0.1, depth, 0.7), torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    theta = theta * (2 * 0.7 / (0.1 * depth)) ** (depth / 2)
    assert bool((0.05 * depth * theta ** (2 / depth) >= slope * theta).all())


@pytest.mark.parametrize("widths", [(4, 3, 3, 3), (4, 3, 3, 2, 3)])
@pytest.mark.parametrize("decay", [1e-2, 0.3])
def test_no_weights_in_the_ball_are_as_good_as_zero(widths, decay):
    """Sampling, and ascent of the fall below zero's objective from the best samples."""
    x = torch.randn(20, widths[0], dtype=torch.float64)
    y = torch.randint(widths[-1], (20,))
    result = finding(Subject(builders.mlp(*widths).double(), x, y, weight_decay=decay))
    radius, model = result.values["basin_radius"].low, builders.mlp(*widths).double()
    named = dict(model.named_parameters())
    size = sum(p.numel() for p in named.values())

    def excess(flat: Tensor) -> Tensor:
        """(P(W) - P(0)) / |W|^2 of a direction scaled to the ball's rim."""
        flat = radius * flat / flat.norm()
        parts = flat.split([p.numel() for p in named.values()])
        point = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(model, point, (x,)), y)
        return (loss - math.log(widths[-1]) + decay / 2 * radius**2) / radius**2

    flat = torch.randn(500, size, dtype=torch.float64)
    values = torch.func.vmap(excess)(flat)
    best = flat[values.argsort()[:20]]
    for _ in range(100):
        best = best - 0.3 * best.norm(dim=1, keepdim=True) * F.normalize(
            torch.func.vmap(torch.func.grad(excess))(best)
        )
        values = torch.cat([values, torch.func.vmap(excess)(best)])
    assert bool((values > 0.0).all())
    assert float(values.min()) < 0.5 * decay  # the loss does pull: the radius is not arbitrarily small


def test_gradient_descent_from_within_the_radius_ends_at_zero():
    torch.manual_seed(0)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    result = finding(Subject(builders.mlp(4, 5, 5, 3).double(), x, y, weight_decay=0.3))
    radius = result.values["attraction_radius"].low
    for seed in range(5):
        model = builders.mlp(4, 5, 5, 3, seed=seed).double()
        with torch.no_grad():
            size = math.sqrt(sum(float(p.square().sum()) for p in model.parameters()))
            for p in model.parameters():
                p.mul_(radius / size)
        inside = evaluate(MinimumAtZero(), Subject(model, x, y, weight_decay=0.3))
        assert "gradient flow leads to W = 0" in inside.advice
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.3)
        for _ in range(400):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert sum(float(p.detach().square().sum()) for p in model.parameters()) < 1e-3 * radius**2


def test_training_never_falls_below_the_bound():
    torch.manual_seed(1)
    x = torch.randn(15, 3, dtype=torch.float64)
    y = (x[:, :1] * x[:, 1:2]).tanh()
    for seed in range(3):
        model = builders.mlp(3, 8, 8, 1, seed=seed).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        values = finding(Subject(model, x, y, weight_decay=0.02)).values
        objective = float(F.mse_loss(model(x), y).detach())
        objective += 0.01 * sum(float(p.detach().square().sum()) for p in model.parameters())
        assert 0.0 < values["dual_bound"].low <= objective
        assert values["gap"].high >= 0.0


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.subject, "weight decay was not given"),
        (lambda: builders.subject(builders.mlp(bias=True), weight_decay=0.1), "adds a bias of degree 1"),
        (lambda: builders.regression_subject(weight_decay=0.1, loss=F.huber_loss), "the dual of the loss"),
    ],
)
def test_where_it_does_not_apply(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert "\n" not in result.reason
    assert reason in result.reason or "degree 2" in result.reason

"""Relative stability and slopes against their definitions, closed forms and the nominal coverage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from theodolite.analysis import relative_stability as module
from theodolite.analysis.deformation_draws import draw_coefficients, max_entropy_coefficients, temperature_for
from theodolite.analysis.deformation_norms import displacements, supremum
from theodolite.analysis.relative_stability import ascend, deformation_slope, relative_stability
from theodolite.analysis.warping import warp
from theodolite.testing import check_global_state, snapshot
from theodolite.testing.theorems import check_coverage

SHAPES = [(12,), (6, 7), (4, 5, 4)]


def images(n, *shape, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, *shape, generator=generator, dtype=torch.float64)


class Linear(nn.Module):
    """A matrix, applied to flattened images."""

    def __init__(self, entries, outputs, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(outputs, entries, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.matrix.T


@pytest.mark.parametrize("shape", SHAPES)
def test_relative_stability_is_its_definition(shape):
    x = images(5, *shape)
    model = Linear(x[0].numel(), 3)
    cut = 3
    value = relative_stability(model, x, fields=2, displacement=0.5, cut=cut, seed=4, resamples=200)
    generator = torch.Generator().manual_seed(4)
    drawn = max_entropy_coefficients(shape, cut, temperature_for(0.5, shape, cut), 10, generator)
    tau = displacements(shape, drawn, "sine")
    moved = torch.cat([x, x])
    moved = torch.stack([warp(one, t, len(shape)) for one, t in zip(moved, tau, strict=True)])
    gaps = moved - torch.cat([x, x])
    assert value.witness["noise_norm"] == pytest.approx(float(gaps.flatten(1).norm(dim=1).mean()))
    top = (gaps.flatten(1) @ model.matrix.T).square().sum(1).mean()
    assert value.witness["deformation"] == pytest.approx(float(top.detach()))
    assert value.value == pytest.approx(value.witness["deformation"] / value.witness["noise"])
    assert value.lower <= value.value <= value.upper
    assert value.kind == "estimate"


def test_the_identity_and_noise_of_its_size():
    """For f = id noise moves every output by exactly its norm, so R_f = <d^2> / <d>^2 >= 1."""
    x = images(6, 8, 8)
    value = relative_stability(nn.Identity(), x)
    assert value.witness["noise"] == pytest.approx(value.witness["noise_norm"] ** 2)
    assert value.value >= 1.0


def test_means_over_positions_take_out_noise_more_than_deformations():
    x = images(8, 12, 12).cumsum(2).cumsum(3)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert relative_stability(pool, x).lower > relative_stability(nn.Identity(), x).upper > 1.0


def test_noise_has_its_size_and_every_direction():
    x = images(400, 3, channels=1)
    noise = module.noise_like(x, torch.full((400,), 2.0).double(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(module.norms(noise), torch.full((400,), 2.0).double())
    assert float(noise.mean(0).abs().max()) < 0.25


def test_interval_covers_at_its_rate():
    """Fresh inputs, fields and noise each time; the truth is that of very many."""
    model = nn.Sequential(nn.Conv1d(1, 2, 3, bias=False), nn.Flatten())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)).double()

    def draw(seed, n=60):
        x = images(n, 8, channels=1, seed=1000 + seed).cumsum(2)
        return relative_stability(
            model, x, fields=1, resamples=200, seed=seed, cut=2, batch_size=20_000, confidence=0.9
        )

    truth = draw(-1, n=20_000).value
    check_coverage(draw, truth, repetitions=100)


def test_absent_where_noise_does_nothing():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 2, dtype=x.dtype)

    value = relative_stability(Constant(), images(3, 5, 5))
    assert value.value is None
    assert value.witness["noise"] == 0.0


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(50, 2), nn.BatchNorm1d(2)).double().train()
    x, before = images(4, 5, 5), snapshot(model)
    twice = [check_global_state(lambda: relative_stability(model, x, seed=1)) for _ in range(2)]
    assert twice[0] == twice[1], "evaluation mode, seeded draws"
    assert check_global_state(lambda: deformation_slope(model, x, 0.1, steps=2)) == deformation_slope(
        model, x, 0.1, steps=2
    )
    assert snapshot(model) == before
    with torch.no_grad():
        deformation_slope(model, x, 0.1, steps=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_slope_is_its_definition(shape):
    x = images(4, *shape)
    model = Linear(x[0].numel(), 3)
    found = deformation_slope(model, x, (0.05, 0.2), steps=0, seed=3)
    drawn = draw_coefficients(len(shape), 3, 4, torch.Generator().manual_seed(3), decay=True)
    for scale in (0.05, 0.2):
        slopes = []
        for one, c in zip(x, drawn, strict=True):
            norm = supremum(shape, c[None], "sine", "grad_inf")[1]
            moved = warp(one, displacements(shape, c * scale / norm, "sine"), len(shape))
            slopes.append(float((model(moved[None]) - model(one[None])).detach().norm()) / scale)
        mean = found[scale]["mean"]
        assert mean.value == pytest.approx(sum(slopes) / 4)
        assert mean.lower < mean.value < mean.upper
        assert found[scale]["worst"].lower == pytest.approx(max(slopes))
        assert found[scale]["worst"].upper is None


@pytest.mark.parametrize("shape", SHAPES)
def test_ascent_climbs_and_keeps_the_constraint(shape):
    x = images(4, *shape)
    model = Linear(x[0].numel(), 3)
    start, far = (deformation_slope(model, x, 0.1, steps=s)[0.1]["worst"].lower for s in (0, 15))
    assert far > 1.2 * start
    drawn = draw_coefficients(len(shape), 3, 4, torch.Generator().manual_seed(0), decay=True)
    climbed = module.unit_fields(x, ascend(model, x, drawn, 0.1, steps=3))
    assert float(supremum(shape, climbed, "sine", "grad_inf")[1].max()) <= 1.0


def test_ascent_finds_the_best_of_two_waves():
    """On a sequence with fields of two waves the constraint set is a curve, which a scan covers."""
    x = images(1, 10, channels=1, seed=5).cumsum(2)
    model = Linear(10, 2, seed=1)
    angles = torch.arange(720, dtype=torch.float64) * (2.0 * math.pi / 720)
    circle = torch.stack([angles.cos(), angles.sin()], 1)[:, None, :]
    unit = module.unit_fields(x, circle)
    moved = module.deformed(x.expand(720, -1, -1), 0.2 * unit)
    best = float((model(moved) - model(x)).norm(dim=1).max().detach()) / 0.2
    found = max(
        deformation_slope(model, x, 0.2, cut=2, steps=60, seed=s)[0.2]["worst"].lower for s in range(3)
    )
    assert 0.99 * best <= found <= 1.001 * best


def test_slopes_of_invariant_and_detached_networks():
    class Detached(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                return x.flatten(1)[:, :2] * 2.0

    found = deformation_slope(Detached(), images(3, 6, 6), 0.1, steps=5)[0.1]
    assert found["worst"].lower > 0.0

    class Zero(nn.Module):
        def forward(self, x):
            return 0.0 * x.flatten(1).sum(1, keepdim=True)

    found = deformation_slope(Zero(), images(3, 6, 6), 0.1, steps=3)[0.1]
    assert found["mean"].value == found["worst"].lower == 0.0


def test_single_precision_agrees():
    x = images(4, 8, 8)
    model = Linear(128, 3)
    wide, narrow = deformation_slope(model, x, 0.1), deformation_slope(model.float(), x.float(), 0.1)
    assert narrow[0.1]["mean"].value == pytest.approx(wide[0.1]["mean"].value, rel=1e-4)
    assert relative_stability(model, x.float()).value == pytest.approx(
        relative_stability(model.double(), x).value, rel=1e-4
    )


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda m: relative_stability(m, images(1, 5, 5)), "x: expected at least two samples"),
        (
            lambda m: relative_stability(m, torch.zeros(3, 4)),
            r"x: expected real sequences.*got torch.float32 of shape \(3, 4\)",
        ),
        (lambda m: relative_stability(m, torch.zeros(3, 1, 4, 4).long()), "x: expected real sequences"),
        (lambda m: relative_stability(m, images(3, 5, 5), fields=0), "fields: expected at least 1, got 0"),
        (
            lambda m: relative_stability(m, images(3, 5, 5), displacement=0.0),
            "displacement: expected a positive number",
        ),
        (lambda m: relative_stability(m, images(3, 5, 5) * math.nan), "x: expected finite numbers"),
        (
            lambda m: deformation_slope(m, images(3, 5, 5), 1.0),
            r"grad_inf: expected numbers in \(0, 1\), got 1.0",
        ),
        (lambda m: deformation_slope(m, images(3, 5, 5), []), "grad_inf: expected numbers"),
        (
            lambda m: deformation_slope(m, images(3, 5, 5), 0.1, steps=-1),
            "steps, batch_size: expected at least 0 and 1",
        ),
    ],
)
def test_refusals(action, message):
    with pytest.raises(ValueError, match=message):
        action(nn.Flatten())

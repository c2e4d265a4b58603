"""STA004: what it measures, whom it blames, where it does not apply."""

from __future__ import annotations

import builders
import pytest
import torch
from torch import nn

from theodolite.analysis.lie_derivative import fields, lie_derivative, velocity
from theodolite.theorems.base import evaluate
from theodolite.theorems.stability import lie_derivative as module
from theodolite.theorems.stability.lie_derivative import LieDerivatives
from theodolite.theorems.subject import Subject


def data(*shape, n=12, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    return x, (x.flatten(1).mean(1) > 0).long()


def net(padding="zeros", head="mean", activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1, padding_mode=padding), activation()]
    if head == "mean":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    else:
        layers += [nn.Flatten(), nn.Linear(256, 2)]
    return nn.Sequential(*layers)


def finding_of(model, x, y, **options):
    return evaluate(LieDerivatives(), Subject(model, x, y, **options))


def test_numbers_against_the_definition():
    model, (x, y) = net().double(), data(1, 8, 8)
    finding = finding_of(model, x, y)
    assert finding.status == "estimated"
    wide = x.double()
    for family in ("translation", "rotation", "scale"):
        found = [lie_derivative(model, wide, f) for f in fields(family, 2)]
        sizes = torch.stack([one.relative for one in found]).square().mean(0).sqrt()
        assert finding.values[family].value == pytest.approx(float(sizes.mean()))
        squares = torch.stack([one.value.square().mean(1) for one in found])
        assert finding.values[f"lee[{family}]"].value == pytest.approx(float(squares.mean()))
    assert finding.values["translation"].unit == "per pixel"
    assert finding.values["rotation"].unit == "per radian"
    assert finding.values["scale"].unit == "per unit of log scale"
    assert "12 of 12 training inputs" in finding.values["translation"].note
    assert next(iter(finding.values)) == "translation"


def test_the_layer_that_contributes_most_is_named():
    finding = finding_of(net(head="flatten", activation=nn.Softplus), *data(1, 8, 8))
    terms = {name: v.witness["terms"] for name, v in finding.values.items() if name.startswith("term[")}
    assert list(terms) == ["term[0]", "term[1]", "term[3]"]
    worst = finding.values["breaks_most"]
    assert worst.witness["layer"] == "3"
    assert worst.value == pytest.approx(max(t["translation"] for t in terms.values()))
    assert finding.advice.startswith("'3' adds most to the change under small translations: it weighs")
    assert finding.chart.labels == ["0", "1", "3"]
    assert list(finding.chart.series) == ["translation", "rotation"]
    assert finding.chart.series["rotation"] == [t["rotation"] for t in terms.values()]


def test_circular_networks_break_translations_by_aliasing_alone():
    finding = finding_of(net("circular"), *data(1, 8, 8))
    assert finding.values["breaks_most"].witness["layer"] == "1"
    assert "aliasing" in finding.advice
    assert finding.values["term[0]"].kind == "exact", "no more than rounding"
    linear = finding_of(net("circular", activation=nn.Identity), *data(1, 8, 8))
    assert linear.values["translation"].value < 1e-12
    assert linear.values["breaks_most"].witness["layer"] is None
    assert linear.advice == ""
    assert linear.values["rotation"].value > 0.01


class Segmenter(nn.Module):
    """Image in, flat image out."""

    def __init__(self, kernel):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, kernel, padding=kernel // 2, padding_mode="circular")
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.out(self.conv(x)).flatten(1)


def test_images_out_are_equivariant_not_invariant():
    x, _ = data(1, 8, 8)
    pointwise = finding_of(Segmenter(1), x, x.flatten(1))
    # affine functions of each pixel: every flow commutes, although the output moves
    assert max(pointwise.values[f].value for f in ("translation", "rotation", "scale")) < 1e-12
    local = finding_of(Segmenter(3), x, x.flatten(1))
    assert local.values["translation"].value < 1e-12
    assert local.values["rotation"].value > 0.01


def test_sequences_and_volumes():
    torch.manual_seed(0)
    sequence = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    found = finding_of(sequence, *data(2, 11))
    assert "rotation" not in found.values
    assert {"translation", "scale", "breaks_most"} <= found.values.keys()
    assert list(found.chart.series) == ["translation", "scale"]
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 27, 2))
    found = finding_of(volume, *data(1, 4, 4, 4))
    assert "root mean square of 3 fields" in found.values["rotation"].note
    flat = finding_of(
        nn.Sequential(nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2)), *data(64), image_shape=(8, 8)
    )
    assert flat.values["translation"].lower > 0.0


def test_operations_without_forward_mode_are_differenced():
    class Resampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3, padding=1)
            self.head = nn.Linear(3 * 16, 2)
            grid = torch.rand(1, 4, 4, 2, generator=torch.Generator().manual_seed(0)) - 0.5
            self.register_buffer("grid", grid)

        def forward(self, x):
            grid = self.grid.expand(x.shape[0], 4, 4, 2)
            h = torch.nn.functional.grid_sample(torch.sigmoid(self.conv(x)), grid, align_corners=False)
            return self.head(h.flatten(1))

    torch.manual_seed(0)
    model, (x, y) = Resampled(), data(1, 8, 8)
    finding = finding_of(model, x, y)
    assert "by central differences (relative error about" in finding.values["translation"].note
    assert "breaks_most" not in finding.values
    assert (finding.chart, finding.advice) == (None, "")
    h, (turn,) = 1e-5, fields("rotation", 2)
    model, wide = model.double(), x.double()
    step = h * velocity(turn, wide, (2, 3), (1.0, 1.0))
    with torch.no_grad():
        slope = (model(wide + step) - model(wide - step)) / (2 * h)
        truth = slope.norm(dim=1) / model(wide).norm(dim=1)
    assert finding.values["rotation"].value == pytest.approx(float(truth.mean()), rel=1e-5)


def test_where_it_does_not_apply():
    x, y = data(6, 3)

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
            self.register_buffer("adjacency", torch.ones(6, 6))

        def forward(self, x):
            return self.b(torch.relu(self.adjacency @ self.a(x)).mean(1))

    finding = finding_of(Graph(), x, y)
    assert finding.status == "not applicable"
    assert "no convolution or pool slides" in finding.reason
    assert "flat vectors" in evaluate(LieDerivatives(), builders.subject()).reason
    single = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    assert "one position along every axis" in finding_of(single, *data(1, 1, 1)).reason

    class Sorted(nn.Module):
        def forward(self, x):
            return x.flatten(1).sort(1)[0].cumsum(1)[:, :3]

    images, _ = data(1, 8, 8)
    lost = nn.Sequential(nn.Conv2d(1, 2, 3), Sorted())
    assert "could not be followed to the output" in finding_of(lost, images, torch.zeros(12, 3)).reason
    classes = finding_of(lost, images, torch.arange(12) % 3)
    assert classes.status == "estimated", "class scores hold no positions, whatever the graph"


def test_the_sample_is_bounded_by_the_cost(monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 2e6)
    finding = finding_of(net(), *data(1, 8, 8, n=60))
    assert "over 8 of 60 training inputs" in finding.values["translation"].note
    assert "over 4 of 60 training inputs" in finding.values["term[0]"].note

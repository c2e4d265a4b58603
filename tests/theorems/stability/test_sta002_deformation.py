"""STA002: its numbers against their definitions, what is proved, whom it applies to, and how it reads."""

from __future__ import annotations

import re

import builders
import pytest
import torch
from torch import nn

from theodolite.analysis import relative_stability as probe
from theodolite.analysis.deformation_draws import draw_coefficients
from theodolite.analysis.lipschitz import lipschitz_upper
from theodolite.analysis.warping import warp
from theodolite.testing import check_theorem
from theodolite.theorems import deformable
from theodolite.theorems.base import evaluate
from theodolite.theorems.stability import deformation as module
from theodolite.theorems.stability.deformation import DeformationSlope
from theodolite.theorems.subject import Subject


def signals(n, *shape, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator), torch.arange(n) % 2


def net(d, head="mean"):
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1](2, 4, 3, padding=1)
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[d - 1](1)
    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))


def finding_of(model, x, y, **options):
    return evaluate(DeformationSlope(), Subject(model, x, y, **options))


@pytest.mark.parametrize("shape", [(2, 20), (2, 9, 8), (2, 6, 5, 7)])
def test_sequences_images_and_volumes(shape):
    finding = finding_of(net(len(shape) - 1), *signals(10, *shape))
    assert finding.status == "estimated", finding.reason
    values = finding.values
    assert list(values)[:2] == ["slope", "noise_slope"]
    assert values["slope"].low <= values["slope"].value <= values["slope_bound"].upper
    assert values["worst_slope"].upper is None
    assert values["worst_slope"].lower > values["slope"].value
    assert finding.chart.kind == "line"
    assert len(finding.chart.series["deformations"]) == len(module.SCALES)


def test_numbers_against_the_definition():
    x, y = signals(8, 2, 9, 8)
    model = net(2).double()
    subject = Subject(model, x, y)
    values = evaluate(DeformationSlope(), subject).values
    x = subject.x
    drawn = draw_coefficients(2, module.CUT, 8, subject.generator("STA002/fields"), decay=True)
    tau = module.SCALES[-1] * probe.displacements((9, 8), probe.unit_fields(x, drawn), "sine")
    with torch.no_grad():
        moved = torch.stack([warp(one, t, 2) for one, t in zip(x, tau, strict=True)])
        base = model(x)
        slope = (model(moved) - base).norm(dim=1) / base.norm(dim=1) / module.SCALES[-1]
    assert values["slope"].value == pytest.approx(float(slope.mean()), rel=1e-9)
    lipschitz = lipschitz_upper(model.eval(), x).upper
    proved = lipschitz * (moved - x).flatten(1).norm(dim=1) / base.norm(dim=1) / module.SCALES[-1]
    assert values["slope_bound"].upper == pytest.approx(float(proved.mean()), rel=1e-6)
    assert values["interpolant_bound"].upper > 0.0
    assert values["slope"].value == values[f"slope[{module.SCALES[-1]:g}]"].value


def test_flat_images_are_as_their_images():
    x, y = signals(8, 1, 6, 8)
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    one = finding_of(nn.Sequential(nn.Flatten(), flat), x.double(), y)
    two = finding_of(flat, x.double().flatten(1), y, image_shape=(6, 8))
    assert one.values.keys() == two.values.keys()
    for name, value in one.values.items():
        assert value.low == pytest.approx(two.values[name].low, rel=1e-6), name


def test_without_a_lipschitz_constant_nothing_is_called_proved():
    class Squares(nn.Module):
        def forward(self, x):
            return x.square().flatten(1)[:, :3] + 1.0

    values = finding_of(Squares(), *signals(6, 1, 6, 6)).values
    assert "slope" in values
    assert "slope_bound" not in values
    assert "interpolant_bound" not in values


def test_without_gradients_random_fields_are_the_worst():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x):
            with torch.no_grad():
                return self.layer(x)

    torch.manual_seed(0)
    values = evaluate(DeformationSlope(), builders.subject(Detached(), 20, image_shape=(8, 8))).values
    assert "the forward records no gradients" in values["worst_slope"].note
    assert values["worst_slope"].lower > 0.0


def test_large_inputs_are_warped_locally_and_say_so(monkeypatch):
    monkeypatch.setattr(deformable, "EXACT_WARP", 1.0)
    values = finding_of(net(2), *signals(6, 2, 6, 6)).values
    assert "cubic interpolation" in values["slope"].note
    assert "interpolant_bound" not in values
    assert "slope_bound" in values
    monkeypatch.setattr(module, "BUDGET", 1.0)
    assert "4 of 6 training inputs" in finding_of(net(2), *signals(6, 2, 6, 6)).values["slope"].note


def test_an_output_that_never_moves():
    class Signs(nn.Module):
        def forward(self, x):
            return 1.0 + 0.0 * x.flatten(1)[:, :2]

    values = finding_of(Signs(), *signals(6, 1, 6, 6)).values
    assert values["slope"].value == 0.0
    assert values["worst_slope"].lower == 0.0


def test_advice_compares_worst_and_mean():
    finding = evaluate(DeformationSlope(), builders.subject(builders.conv_net()))
    if finding.values["worst_slope"].low < 3.0 * finding.values["slope"].high:
        assert finding.advice == ""
    else:
        ratio = finding.values["worst_slope"].low / finding.values["slope"].value
        told = float(re.search(r"([\d.]+) times", finding.advice).group(1))
        assert told == pytest.approx(ratio, rel=1e-3)
    still = finding_of(net(2), *signals(6, 2, 6, 6))
    assert still.advice == "" or still.values["worst_slope"].low >= 3.0 * still.values["slope"].high


def test_keeps_the_promises_of_a_theorem():
    check_theorem(DeformationSlope, lambda: builders.subject(builders.conv_net("zeros"), 20))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.subject, r"no positions are known in inputs of shape \(64,\).*name their image_shape"),
        (builders.tokens_subject, "inputs have dtype torch.int64"),
        (lambda: Subject(net(2), *signals(6, 2, 3, 8)), "the inputs have 3 x 8 positions, too few to deform"),
        (lambda: Subject(_Nothing(), *signals(6, 1, 6, 6)), "the output is zero at every input"),
    ],
)
def test_not_applicable(build, reason):
    finding = evaluate(DeformationSlope(), build())
    assert finding.status == "not applicable"
    assert re.search(reason, finding.reason), finding.reason


class _Nothing(nn.Module):
    def forward(self, x):
        return 0.0 * x.flatten(1)[:, :2]

"""STA005: its numbers, whom it applies to, and how it reads."""

from __future__ import annotations

import re

import builders
import pytest
import torch
from torch import nn

from theodolite.analysis.relative_stability import relative_stability
from theodolite.testing import check_theorem
from theodolite.theorems.base import evaluate
from theodolite.theorems.stability import relative_stability as module
from theodolite.theorems.stability.relative_stability import RelativeStability
from theodolite.theorems.subject import Subject


def signals(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(2)).cumsum(-1), torch.arange(n) % 2


def test_numbers_are_those_of_the_analysis():
    model = builders.conv_net()
    subject = builders.subject(model, 20)
    values = evaluate(RelativeStability(), subject).values
    images = subject.x.view(20, 1, 8, 8)
    seed = subject.generator("STA005").initial_seed() % 2**31
    on_images = nn.Sequential(nn.Flatten(), model)
    for delta in module.DISPLACEMENTS:
        alone = relative_stability(on_images, images, displacement=delta, fields=module.FIELDS, seed=seed)
        value = values[f"relative_stability[{delta:g}]"]
        assert (value.value, value.lower, value.upper) == pytest.approx(
            (alone.value, alone.lower, alone.upper)
        )
    assert values["relative_stability"] == values["relative_stability[1]"]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (2, 16)),
        (nn.Sequential(nn.Conv3d(1, 3, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()), (1, 5, 6, 4)),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, 3)), (1, 7, 7)),
    ],
)
def test_sequences_volumes_and_networks_without_convolutions(model, shape):
    finding = evaluate(RelativeStability(), Subject(model, *signals(12, *shape)))
    assert finding.status == "estimated", finding.reason
    assert finding.chart.kind == "intervals"
    value = finding.values["relative_stability"]
    assert value.low <= value.value <= value.high


def test_advice_where_deformations_move_more():
    """Local means take out noise and keep what smooth deformations do."""

    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AvgPool1d(5, 1, 2)

        def forward(self, x):
            return self.pool(x).squeeze(1)[:, 5:9]

    x, y = signals(60, 1, 32)
    smooth = evaluate(RelativeStability(), Subject(Means(), x, y.float()[:, None].expand(-1, 4), loss="mse"))
    ratio = smooth.values["relative_stability"]
    assert (ratio.low > 1.0) == (smooth.advice != "")
    assert ratio.low > 1.0
    assert "data augmentation" in smooth.advice
    flat = evaluate(RelativeStability(), builders.subject(builders.conv_net(), 20))
    assert flat.advice == ""


def test_keeps_the_promises_of_a_theorem():
    check_theorem(RelativeStability, lambda: builders.subject(builders.conv_net("zeros"), 20))


def test_sample_is_stated(monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 1.0)
    finding = evaluate(RelativeStability(), builders.subject(builders.conv_net(), 20))
    assert finding.values["relative_stability"].note.startswith("8 inputs, 2 fields each")


def test_an_output_that_noise_does_not_move():
    class Signs(nn.Module):
        def forward(self, x):
            return 1.0 + 0.0 * x.flatten(1)[:, :2]

    finding = evaluate(RelativeStability(), Subject(Signs(), *signals(6, 1, 6, 6)))
    assert finding.values["relative_stability"].value is None
    assert finding.advice == ""
    assert finding.chart is None


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.subject, "no positions are known"),
        (builders.tokens_subject, "inputs have dtype torch.int64"),
        (
            lambda: Subject(builders.conv_net(), torch.ones(6, 64), torch.arange(6) % 2),
            "every input of the sample is constant in space",
        ),
    ],
)
def test_not_applicable(build, reason):
    finding = evaluate(RelativeStability(), build())
    assert finding.status == "not applicable"
    assert re.search(reason, finding.reason), finding.reason

"""STA003: what it reports, for which networks, and how it reads."""

from __future__ import annotations

import builders
import pytest
import torch
from torch import nn

from theodolite.models import AlexNet
from theodolite.theorems.base import evaluate
from theodolite.theorems.stability.frame_bounds import FrameBoundsAndAdmissibility
from theodolite.theorems.subject import Subject


def finding_of(model, *shape, **options):
    torch.manual_seed(1)
    x = torch.randn(12, *shape)
    return evaluate(FrameBoundsAndAdmissibility(), Subject(model, x, torch.arange(12) % 2, **options))


def test_a_circular_network():
    finding = evaluate(FrameBoundsAndAdmissibility(), builders.subject(builders.conv_net()))
    assert finding.status == "certified"
    values = finding.values
    assert {values[f"frame_{end}[{name}]"].kind for end in ("lower", "upper") for name in "14"} == {"exact"}
    assert values["admissible_layers"].value == 0
    assert list(values["admissible_layers"].witness) == ["1", "4"]
    assert values["vertical_invariance"].upper == 0.0, "an average over all positions"
    assert values["deformation_sensitivity"].upper == pytest.approx(
        1.171573 * values["feature_lipschitz"].upper, rel=1e-6
    )
    condition = values["condition[1]"]
    assert condition.upper == pytest.approx(values["frame_upper[1]"].value)
    assert condition.witness["S"] == [2, 2]
    assert finding.chart is not None
    assert "scaling '1' by 0.5402, and likewise 1 more, makes it admissible" in finding.advice


def test_contraction_only_where_proved():
    """The word stands where the composed constant is at most one, and not where it is just above."""
    for scale, word in ((1.0 - 1e-5, "a contraction"), (1.0 + 1e-5, "not proved to be a contraction")):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
        model[0].weight.data = scale * torch.eye(4)

        note = finding_of(model, 4).values["feature_lipschitz"].note
        assert note == f"of the features: {word}"


def test_zero_padding_gets_bounds_and_no_invariance():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 2)
    )
    finding = finding_of(model, 1, 8, 8)
    assert finding.status == "certified"
    assert finding.values["frame_upper[0]"].kind == "bound"
    assert finding.values["vertical_invariance"].value is None
    assert "pads with zeros" in finding.values["vertical_invariance"].note


def kinds_of_networks():
    torch.manual_seed(0)
    return {
        "alexnet": (AlexNet(1, 8, 10, width=4), (1, 8, 8)),
        "one axis": (nn.Sequential(nn.Conv1d(2, 4, 5, 2, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(16, 2)), (2, 16)),
        "three axes": (nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4, 4)),
        "up and down": (
            nn.Sequential(
                nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.Tanh(),
                nn.Upsample(scale_factor=2), nn.Conv2d(2, 1, 1), nn.Flatten(), nn.Linear(256, 2),
            ),
            (1, 8, 8),
        ),
        "vectors": (builders.mlp(6, 5, 2, bias=True), (6,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(kinds_of_networks()))
def test_every_layer_of_every_kind_of_network(name):
    model, shape = kinds_of_networks()[name]
    finding = finding_of(model, *shape)
    assert finding.status == "certified", finding.reason or finding.traceback
    weights = [
        n for n, m in model.named_modules() if hasattr(m, "weight") and not isinstance(m, nn.BatchNorm2d)
    ]
    for layer in weights:
        A, B, tree = (
            finding.values[f"{kind}[{layer}]"] for kind in ("frame_lower", "frame_upper", "branch_sum")
        )
        assert 0.0 <= A.low <= B.high <= tree.high * (1.0 + 1e-9)
    assert ("deformation_sensitivity" in finding.values) == (len(shape) > 1)


def test_a_layer_without_a_constant_is_named():
    finding = evaluate(FrameBoundsAndAdmissibility(), builders.subject(builders.squaring_net()))
    constant = finding.values["feature_lipschitz"]
    assert constant.value is None
    assert "product" in constant.note
    assert "frame_upper[head]" in finding.values


def test_not_applicable_without_weights():
    finding = evaluate(FrameBoundsAndAdmissibility(), builders.bare_subject())
    assert finding.status == "not applicable"
    assert "0 weight matrices" in finding.reason

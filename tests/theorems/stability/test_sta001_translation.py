"""STA001: what it proves, what it measures, whom it blames, and how it reads."""

from __future__ import annotations

import re

import builders
import pytest
import torch
from torch import nn

from theodolite.testing import check_theorem
from theodolite.theorems.base import evaluate
from theodolite.theorems.stability import translation as module
from theodolite.theorems.stability.translation import TranslationEquivariance
from theodolite.theorems.subject import Subject


def images(n=12, size=8, channels=1):
    torch.manual_seed(2)
    x = torch.randn(n, channels, size, size)
    return x, (x.mean((1, 2, 3)) > 0).long()


def finding_of(model, n=12, size=8, **options):
    return evaluate(TranslationEquivariance(), Subject(model, *images(n, size), **options))


def net(*modes, head="mean", stride=1):
    torch.manual_seed(0)
    layers, channels = [], 1
    for mode in modes:
        layers += [nn.Conv2d(channels, 4, 3, stride, 1, padding_mode=mode), nn.ReLU()]
        channels = 4
    if head == "mean":
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 2))


def test_circular_network_is_proved_and_measured_to_commute():
    finding = finding_of(net("circular", "circular"))
    assert finding.status == "certified"
    values = finding.values
    assert values["largest_defect"].value < 1e-13
    assert values["worst_layer_defect"].value <= values["largest_defect"].value
    layers = [name for name in values if name.startswith("defect[")]
    assert values["proved_layers"].value == len(layers) == 6
    assert values["proved_layers"].witness is None
    assert "proved to commute" in values["worst_layer_defect"].note
    assert values["invariance_defect"].value < 1e-13, "a mean over all positions is invariant"
    assert values["predictions_kept"].value == 1.0
    assert values["invariance[0]"].value > 0.1, "equivariant layers are not invariant"
    assert values["invariance[6]"].value < 1e-13
    assert finding.advice == ""


def test_the_layer_that_breaks_it_is_named():
    """Relative defects may grow in layers that commute; the blame is on the one that does not."""
    finding = finding_of(net("circular", "zeros", "circular"))
    values = finding.values
    assert values["breaks_most"].witness == {"layer": "2", "why": "pads with zeros"}
    assert values["breaks_most"].value > 0.1
    own = {name: v.witness["own"] for name, v in values.items() if name.startswith("defect[")}
    assert max(v for name, v in own.items() if name != "defect[2]") < 1e-13
    assert [values[f"defect[{i}]"].witness["proved"] for i in (0, 1, 2, 4)] == [True, True, False, False]
    assert values["proved_layers"].value == 2
    assert finding.advice == "'2' breaks equivariance most: it pads with zeros."


def test_flatten_breaks_it():
    finding = finding_of(net("circular", head="flatten"))
    assert finding.advice == "'3' breaks equivariance most: it weighs each position by itself."
    assert finding.values["invariance_defect"].value > 0.1


def test_numbers_of_the_output_against_the_definition():
    model = net("zeros", head="flatten").double()
    subject = Subject(model, *images())
    values = evaluate(TranslationEquivariance(), subject).values
    shifts = values["worst_layer_defect"].witness["shifts"]
    x = subject.x.double()
    with torch.no_grad():
        base = model(x)
        moved = torch.stack([model(x.roll(tuple(by), (2, 3))) for by in shifts])
        features = model[:2](x)
        layer = torch.stack(
            [model[:2](x.roll(tuple(by), (2, 3))) - features.roll(tuple(by), (2, 3)) for by in shifts]
        )
    change = (moved - base).norm(dim=2) / base.norm(dim=1)
    assert values["invariance_defect"].value == pytest.approx(float(change.mean()))
    assert values["invariance_defect"].witness["largest"] == pytest.approx(float(change.max()))
    defect = layer.flatten(2).norm(dim=2) / features.flatten(1).norm(dim=1)
    assert values["defect[1]"].value == pytest.approx(float(defect.mean()))
    assert values["defect[1]"].witness["largest"] == pytest.approx(float(defect.max()))
    kept = (moved.argmax(2) == base.argmax(1)).double().mean()
    assert values["predictions_kept"].value == pytest.approx(float(kept))


def test_stride_two_commutes_with_even_shifts_alone():
    values = finding_of(net("circular", "circular", stride=2)).values
    assert values["largest_defect"].value < 1e-13
    assert values["proved_layers"].value == 6
    assert values["invariance_defect"].value > 1e-3, "odd shifts change the output"


def test_measured_to_commute_is_not_called_proved():
    """Sorting positions and taking all of them is invariant; no rule shows it, so nothing says so."""

    class Sorted(nn.Module):
        def forward(self, x):
            return x.flatten(2).sort(2)[0].mean(2)

    model = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1, padding_mode="circular"), Sorted(), nn.Linear(4, 2))
    values = finding_of(model).values
    assert values["invariance_defect"].value < 1e-13
    assert "no rule here (sort)" in values["proved_layers"].witness
    assert values["proved_layers"].value < 3


def test_sample_and_shifts_are_stated(monkeypatch):
    values = finding_of(net("zeros"), n=12).values
    assert "12 of 12 training inputs and 6 cyclic shifts" in values["worst_layer_defect"].note
    monkeypatch.setattr(module, "MOST_IMAGES", 5)
    values = finding_of(net("zeros"), n=12).values
    assert "5 of 12 training inputs" in values["worst_layer_defect"].note
    assert len(values["worst_layer_defect"].witness["shifts"]) == 6
    monkeypatch.setattr(module, "BUDGET", 1.0)
    assert "2 of 12 training inputs" in finding_of(net("zeros"), n=12).values["largest_defect"].note


def test_keeps_the_promises_of_a_theorem():
    check_theorem(TranslationEquivariance, lambda: builders.subject(builders.conv_net("zeros"), 20))


def test_regression_and_one_output():
    x, _ = images()
    finding = evaluate(
        TranslationEquivariance(),
        Subject(nn.Sequential(net("zeros"), nn.Linear(2, 1)), x, x.mean((1, 2, 3))[:, None]),
    )
    assert finding.status == "certified"
    assert "predictions_kept" not in finding.values


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.subject, "the inputs are flat vectors over which no convolution or pool slides"),
        (builders.tokens_subject, "inputs have dtype torch.int64"),
        (
            lambda: Subject(
                nn.Sequential(nn.Linear(5, 3), nn.Flatten(), nn.Linear(12, 2)),
                torch.randn(8, 4, 5),
                torch.arange(8) % 2,
            ),
            r"the inputs are arrays of shape \(4, 5\) over which no convolution or pool slides",
        ),
        (
            lambda: Subject(
                nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2)),
                torch.randn(8, 1, 1, 1),
                torch.arange(8) % 2,
            ),
            "one position along every axis",
        ),
        (
            lambda: Subject(
                nn.Sequential(nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)), net("zeros")),
                builders.digits()[0][:8],
                torch.arange(8) % 2,
            ),
            r"could not be followed to layer '2\.0' \(Conv2d\), the first to slide over them",
        ),
    ],
)
def test_not_applicable(build, reason):
    finding = evaluate(TranslationEquivariance(), build())
    assert finding.status == "not applicable"
    assert finding.values == {}
    assert re.search(reason, finding.reason), finding.reason


def test_an_mlp_on_images_is_measured():
    torch.manual_seed(0)
    finding = finding_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)))
    assert finding.status == "certified"
    assert finding.advice == "'1' breaks equivariance most: it weighs each position by itself."

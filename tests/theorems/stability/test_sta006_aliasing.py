"""STA006: whom it names, what it claims of which data, and how it reads."""

from __future__ import annotations

import builders
import pytest
import torch
from torch import nn

from theodolite.theorems.base import evaluate
from theodolite.theorems.stability import aliasing as module
from theodolite.theorems.stability.aliasing import AliasingByLayer
from theodolite.theorems.subject import Subject


def subject_of(model, x):
    return Subject(model, x, torch.arange(len(x)) % 2)


def images(n=12, size=16, seed=1):
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_the_worst_subsampling_is_named():
    """A difference of neighbours before a stride passes what folds; a mean of windows takes it away."""
    model = net(nn.Conv2d(1, 4, 1), nn.AvgPool2d(4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, 2, bias=False))
    with torch.no_grad():
        model[3].weight[:] = torch.eye(4).reshape(4, 4, 1, 1) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    finding = evaluate(AliasingByLayer(), subject_of(model, images()))
    assert finding.status == "certified"
    values = finding.values
    worst = values["worst_subsampling"]
    assert worst.witness["layer"] == "3"
    assert worst.value == values["folded_share[3]"].value > 0.5
    assert values["folded_share[1]"].value < 0.2
    assert values["folding_gain[3]"].low > 1.0
    assert finding.advice.startswith("'3' folds most: a blur before its subsampling would act on")
    assert values["worst_nonlinearity"].witness["layer"] == "2"
    assert finding.chart is not None


def test_a_blur_before_the_stride_lowers_the_share():
    plain = net(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.MaxPool2d(2))
    blur = nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False, padding_mode="circular")
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4.0
    blur.weight.data = (taps[:, None] * taps).expand(4, 1, 3, 3).clone()
    blurred = nn.Sequential(plain[0], plain[1], nn.MaxPool2d(2, 1), blur, *plain[3:])
    before, after = (evaluate(AliasingByLayer(), subject_of(m, images())).values for m in (plain, blurred))
    assert after["worst_subsampling"].value < 0.5 * before["worst_subsampling"].value


def test_exact_on_all_inputs_and_estimated_on_some(monkeypatch):
    model = net(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())
    subject = subject_of(model, images(60))
    whole = evaluate(AliasingByLayer(), subject)
    assert whole.status == "certified"
    assert "mean over all 60 training inputs" in whole.values["worst_subsampling"].note
    monkeypatch.setattr(module, "MOST_INPUTS", 20)
    part = evaluate(AliasingByLayer(), subject)
    assert part.status == "estimated"
    value = part.values["folded_share[0]"]
    assert value.kind == "estimate"
    assert "from 20 drawn" in value.note
    assert 0.0 <= value.lower < value.value < value.upper <= 1.0


def test_intervals_cover_the_whole_set(monkeypatch):
    torch.manual_seed(0)
    model = net(nn.Conv2d(1, 4, 3, 2, 1))
    x = images(200, 8) * torch.rand(200, 1, 1, 1).pow(3) + torch.linspace(0, 2, 200).reshape(-1, 1, 1, 1)
    subject = subject_of(model, x)
    truth = evaluate(AliasingByLayer(), subject).values["folded_share[0]"].value
    monkeypatch.setattr(module, "MOST_INPUTS", 30)
    hits = 0
    for seed in range(40):
        subject.seed = seed
        value = evaluate(AliasingByLayer(), subject).values["folded_share[0]"]
        hits += value.lower <= truth <= value.upper
    assert hits >= 34, "nominally 38"


def test_work_is_limited(monkeypatch):
    model = net(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())
    monkeypatch.setattr(module, "BUDGET", 1.0)
    finding = evaluate(AliasingByLayer(), subject_of(model, images(30)))
    assert f"from {module.FEWEST_INPUTS} drawn" in finding.values["worst_subsampling"].note


def test_one_and_three_axes_and_a_decoder():
    torch.manual_seed(0)
    line = nn.Sequential(nn.Conv1d(1, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 2))
    volume = nn.Sequential(nn.Conv3d(1, 2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    decoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, 2), nn.Flatten(), nn.Linear(64, 2)
    )
    for model, shape, names in (
        (line, (1, 16), {"0", "2"}),
        (volume, (1, 4, 4, 4), {"0"}),
        (decoder, (1, 8, 8), {"0"}),
    ):
        values = evaluate(AliasingByLayer(), subject_of(model, torch.randn(6, *shape))).values
        assert {name[13:-1] for name in values if name.startswith("folded_share[")} == names
        assert "beyond_band[1]" in values


@pytest.mark.parametrize("build", [builders.subject, builders.regression_subject])
def test_not_applicable_without_positions(build):
    finding = evaluate(AliasingByLayer(), build())
    assert finding.status == "not applicable"
    assert (
        finding.reason == "no layer of the model drops positions, and no nonlinearity acts on a grid of them"
    )


def test_without_subsampling_the_nonlinearities_remain():
    finding = evaluate(AliasingByLayer(), subject_of(net(nn.Conv2d(1, 4, 3), nn.ReLU()), images()))
    assert next(iter(finding.values)) == "worst_nonlinearity"
    assert finding.advice == ""

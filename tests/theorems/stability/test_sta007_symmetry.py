"""STA007: defects, predictions kept and averages, against their definitions."""

from __future__ import annotations

import builders
import pytest
import torch
from torch import nn

from theodolite.analysis.groups import grid_symmetries, group_average
from theodolite.theorems.base import evaluate
from theodolite.theorems.stability import symmetry as module
from theodolite.theorems.stability.symmetry import SymmetryDefects
from theodolite.theorems.subject import Subject


def data(*shape, n=40, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    return x, (x.flatten(1)[:, ::3].mean(1) > 0).long()


def net(d=2, seed=0):
    torch.manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    return nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def finding_of(model, x, y, **options):
    with torch.no_grad():
        model(x[:2])
    return evaluate(SymmetryDefects(), Subject(model, x, y, **options))


def test_numbers_against_the_definition():
    model, (x, y) = net(), data(1, 6, 6)
    finding = finding_of(model, x, y)
    assert finding.status == "estimated"
    model, wide = model.double(), x.double()
    group = grid_symmetries((6, 6))
    with torch.no_grad():
        base = model(wide)
        moved = torch.stack([model(g(wide)) for g in group.elements])
        averaged = group_average(model, group)(wide)
    defects = (moved - base).norm(dim=2) / base.norm(dim=1)
    values = finding.values
    assert values["defect"].value == pytest.approx(float(defects[1:].mean()))
    assert len([v for v in values if v.startswith("defect[")]) == 7
    for g, row in zip(group.elements[1:], defects[1:], strict=True):
        assert values[f"defect[{g.name}]"].value == pytest.approx(float(row.mean()))
    kept = (moved.argmax(2) == base.argmax(1)).all(0)
    assert values["predictions_kept"].value == pytest.approx(float(kept.double().mean()))
    before, after = base.argmax(1) == y, averaged.argmax(1) == y
    assert values["accuracy"].value == pytest.approx(float(before.double().mean()))
    assert values["averaged_accuracy"].value == pytest.approx(float(after.double().mean()))
    change = values["accuracy_change"]
    assert change.value == pytest.approx(float(after.double().mean() - before.double().mean()))
    assert change.lower < change.value < change.upper
    two = (base + model(wide.flip(3)).detach()).argmax(1) == y
    expected = float(two.double().mean() - before.double().mean())
    assert values["accuracy_change[flip of axis 1]"].value == pytest.approx(expected)
    assert "40 of 40 training inputs" in values["defect"].note
    assert len(finding.chart.labels) == 7


def test_averaging_that_helps_is_said_to():
    """The class is invariant and the network's noise is not: the average is right more often."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)
            generator = torch.Generator().manual_seed(0)
            w = torch.randn(36, generator=generator)
            turned = torch.stack([g(w.view(1, 1, 6, 6)) for g in grid_symmetries((6, 6)).elements])
            self.register_buffer("w", 0.2 * (w - turned.mean(0).flatten()))  # averages to zero

        def forward(self, x):
            h = self.conv(x).flatten(1)
            score = h.sum(1, keepdim=True) / 6.0 + h @ self.w[:, None]
            return torch.cat([-score, score], 1)

    x, _ = data(1, 6, 6, n=400)
    y = (x.sum((1, 2, 3)) > 0).long()
    finding = finding_of(Noisy(), x, y)
    assert finding.values["averaged_accuracy"].value == 1.0
    assert finding.values["accuracy_change"].lower > 0.0
    assert finding.advice.startswith("averaging the outputs over the group makes the network more accurate")


def test_invariant_networks_keep_everything():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    values = finding_of(model, *data(1, 5, 7)).values
    assert (values["defect"].kind, values["defect"].value < 1e-13) == ("exact", True)
    assert values["predictions_kept"].value == 1.0
    assert values["predictions_kept"].lower < 1.0, "forty inputs show no more"
    assert values["accuracy_change"].value == 0.0
    assert values["accuracy_change"].lower < 0.0 < values["accuracy_change"].upper
    assert {n for n in values if n.startswith("defect[")} == {
        "defect[flip of axis 0]",
        "defect[flip of axis 1]",
        "defect[rotation by 180 degrees]",
    }, "a rectangle has no quarter turns"


class Segmenter(nn.Module):
    """Image in, flat image out."""

    def __init__(self, kernel):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, kernel, padding=kernel // 2)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x))).flatten(1)


def test_images_out_turn_with_the_input():
    x, _ = data(1, 6, 6)
    assert finding_of(Segmenter(1), x, x.flatten(1)).values["defect"].value < 1e-13
    model = Segmenter(3)
    values = finding_of(model, x, x.flatten(1)).values
    group = grid_symmetries((6, 6))
    images = nn.Sequential(model.double(), nn.Unflatten(1, (1, 6, 6)))
    with torch.no_grad():
        base = images(x.double())
        average = group_average(images, group, "same")(x.double())
        turned = images(x.double().flip(3))
    truth = (turned - base.flip(3)).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)
    assert values["defect[flip of axis 1]"].value == pytest.approx(float(truth.mean()))
    losses = [(output - x.double()).square().flatten(1).mean(1) for output in (base, average)]
    assert values["loss"].value == pytest.approx(float(losses[0].mean()))
    assert values["averaged_loss"].value == pytest.approx(float(losses[1].mean()))
    assert values["loss_change"].value == pytest.approx(float((losses[1] - losses[0]).mean()))
    # the loss is convex and the inputs' noise has the symmetry, so that averaging must not hurt much
    assert values["loss_change"].upper < 0.01


def test_regression_on_invariants():
    x, _ = data(1, 6, 6)
    values = finding_of(net(), x, torch.randn(40, 2)).values
    assert {"loss", "averaged_loss", "loss_change"} <= values.keys()
    assert "predictions_kept" not in values


def test_sequences_and_volumes():
    flip = finding_of(net(1), *data(1, 9)).values
    assert [n for n in flip if n.startswith("defect[")] == ["defect[flip of axis 0]"]
    volume = finding_of(net(3), *data(1, 4, 4, 4)).values
    assert "47 flips and rotations" in volume["defect"].note
    shown = [n for n in volume if n.startswith("defect[")]
    assert len(shown) == 6, "three flips and three exchanges generate all 48"
    thin = finding_of(net(2), *data(1, 1, 9)).values
    assert [n for n in thin if n.startswith("defect[")] == ["defect[flip of axis 1]"]


class Points(nn.Module):
    """A shared map of each point, then what ``mix`` does."""

    def __init__(self, mix, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mix, self.last = nn.Linear(3, 4), mix, nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.mix(torch.relu(self.first(x))))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(1)[0][:, 2]


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.rand(6, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return (self.adjacency @ x).sum(1)


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0].mean(1)


@pytest.mark.parametrize("mix", [Mean, Sorted])
def test_sets_of_points_are_permuted(mix):
    values = finding_of(Points(mix()), *data(6, 3)).values
    assert values["defect"].value < 1e-14
    assert "8 random permutations" in values["defect"].note
    assert values["predictions_kept"].value == 1.0
    assert "accuracy_change" not in values, "a few permutations are no whole group"


def test_what_only_seems_invariant_is_measured():
    class First(nn.Module):  # the largest entry's own row, by an operation that no rule knows
        def forward(self, x):
            return x.cummax(1)[0].mean(1)

    values = finding_of(Points(First()), *data(6, 3)).values
    assert values["defect"].lower > 0.01


def test_a_label_for_each_point_is_equivariant():
    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return torch.tanh(self.a(x)).flatten(1)

    x, _ = data(6, 3)
    assert finding_of(Labels(), x, torch.zeros(40, 12)).values["defect"].value < 1e-14


@pytest.mark.parametrize(
    ("mix", "width", "why"),
    [
        (Fixed, 4, "weighs each position by itself"),
        (nn.Flatten, 24, "weighs each position by itself"),
        (Last, 4, "reads them in order"),
    ],
)
def test_rows_that_are_no_set_are_left_alone(mix, width, why):
    finding = finding_of(Points(mix(), width), *data(6, 3))
    assert finding.status == "not applicable"
    assert "their rows are no set" in finding.reason
    assert why in finding.reason


def test_where_it_does_not_apply():
    def reason(model, x, y):
        return finding_of(model, x, y).reason

    assert "flat vectors" in evaluate(SymmetryDefects(), builders.subject()).reason
    single = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    assert "one position along every axis" in reason(single, *data(1, 1, 1))
    alone = Points(Mean())
    assert "there is one alone" in reason(alone, *data(1, 3))

    class Squashed(nn.Module):
        def forward(self, x):
            return (x - x.mean(1, keepdim=True)).square().mean(2)[:, :2]

    assert "no linear map that all of them share comes first" in reason(Squashed(), *data(6, 3)) or (
        "keeps some positions only" in reason(Squashed(), *data(6, 3))
    )

    class Thrown(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, stride=(1, 2), padding=1)

        def forward(self, x):
            return self.conv(x).flatten(1)

    x, _ = data(1, 6, 6)
    assert "does not act on the model's output" in reason(Thrown(), x, torch.zeros(40, 18))


def test_chunks_change_nothing(monkeypatch):
    model, (x, y) = net(), data(1, 6, 6)
    whole = finding_of(model, x, y).values
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    parts = finding_of(model, x, y).values
    assert whole.keys() == parts.keys()
    assert all(parts[n].value == pytest.approx(whole[n].value, rel=1e-9) for n in whole)

"""Anti-aliased downsampling as a remedy: flips that fall, errors that must not rise, and what it refuses."""

from __future__ import annotations

import json

import builders
import pytest
import torch
from torch import nn

from theodolite import remedies
from theodolite.analysis.anti_aliasing import aliasing, made_over, swapped
from theodolite.analysis.graph import trace
from theodolite.analysis.translation_action import translation_action
from theodolite.nn import AntiAliased
from theodolite.remedies import AntiAlias, anti_alias, attempts, try_all
from theodolite.remedies.base import split_rows
from theodolite.testing import snapshot
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.hypotheses import require_cost
from theodolite.theorems.subject import Subject


def threshold(pool: nn.Module, x: torch.Tensor) -> nn.Module:
    """A classifier by the mean of a pool, above or below its median over x."""
    net = nn.Sequential(pool, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        middle = float(net[:3](x).median())
        net[3].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net[3].bias.copy_(torch.tensor([middle, -middle]))
    return net.eval()


def noisy(n: int = 400, *, own_labels: bool = False, **options) -> Subject:
    """Maxima of white noise, subsampled: classes that every position tells, a label that few of them give."""
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = threshold(nn.MaxPool2d(2, 4), x)
    judge = net if own_labels else threshold(AntiAliased(nn.MaxPool2d(2), padding_mode="circular"), x)
    with torch.no_grad():
        y = judge(x).argmax(1)
    for p in net.parameters():
        p.requires_grad_(False)
    return Subject(net, x, y, **options)


def test_flips_fall_and_the_error_with_them():
    audited = noisy()
    before = snapshot(audited.model)
    outcome = AntiAlias().attempt(audited)
    assert snapshot(audited.model) == before
    assert outcome.helped
    effects = outcome.effects
    assert effects["flips_change"].kind == effects["error_change"].kind == "estimate"
    assert effects["flips_change"].upper < 0
    assert "blur before '0' drops positions, weights unchanged" in outcome.description
    assert "labels that flip under one-pixel shifts" in outcome.description
    assert "validation error" in outcome.description
    assert effects["aliasing"].witness["layer"] == "0"
    assert 0.1 < effects["aliasing"].value < 1.0
    assert outcome.benefit == pytest.approx(-effects["flips_change"].value - effects["error_change"].value)
    json.dumps(outcome.to_dict())
    # the numbers are those of the two models on the validation rows
    _, rows = split_rows(audited)
    x, y = audited.x[rows], audited.y[rows]
    with torch.no_grad():
        for when, model in (("before", audited.model), ("after", outcome.model)):
            labels = model(x).argmax(1)
            moved = [model(x.roll(by, (2, 3))).argmax(1) for by in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            flipped = torch.stack([other != labels for other in moved]).any(0)
            assert effects[f"flips_{when}"].value == pytest.approx(float(flipped.double().mean()))
            assert effects[f"error_{when}"].value == pytest.approx(float((labels != y).double().mean()))


def test_fewer_flips_do_not_help_where_the_error_rises():
    """The labels are the network's own, so that any change of it makes errors."""
    outcome = AntiAlias().attempt(noisy(own_labels=True))
    assert outcome.effects["flips_change"].upper < 0
    assert outcome.effects["error_change"].lower > 0
    assert not outcome.helped
    assert outcome.remedy not in [o.remedy for o in try_all(noisy(own_labels=True))]


def trained(n: int = 200) -> Subject:
    """A convolutional network with batch norm after a few steps on digits."""
    torch.manual_seed(0)
    x, y = builders.digits()
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:n]), y[:n]).backward()
        optimizer.step()
    return Subject(model, x[:n], y[:n], weight_decay=1e-4)


def test_batch_norms_and_weights_are_tuned_and_nothing_else_is_touched(tmp_path):
    audited, state = trained(), torch.get_rng_state()
    before = snapshot(audited.model)
    found = dict(attempts(audited))
    assert snapshot(audited.model) == before
    assert torch.equal(torch.get_rng_state(), state)
    outcome = found[AntiAlias]
    assert "tuned" in outcome.description
    assert outcome.parameters_saved == 0
    assert set(outcome.effects["aliasing"].witness["all"]) == {"4", "5"}
    assert AntiAlias().attempt(trained()).to_dict() == outcome.to_dict()
    assert not outcome.model.training
    assert all(p.grad is None for p in outcome.model.parameters())
    assert [m.momentum for m in outcome.model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1]
    x = audited.x[:7]
    with torch.no_grad():
        expected = outcome.model(x)
    outcome.save(tmp_path / "blurred.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "blurred.pt2").module()(x), expected)
    outcome.save(tmp_path / "blurred.pt")
    state = torch.load(tmp_path / "blurred.pt", weights_only=True)
    assert not [name for name in state if "kernel" in name]  # the blur is no weight


def test_what_costs_too_much_is_not_tried_and_the_rows_are_as_many_as_are_affordable(monkeypatch):
    whole = AntiAlias().attempt(noisy()).effects["flips_before"].note
    assert whole.startswith("share of 80 validation samples")
    per_row = float(require_cost(noisy()).total) * 5
    monkeypatch.setattr(anti_alias, "BUDGET", per_row * 4 * 20)
    fewer = AntiAlias().attempt(noisy())
    assert fewer.effects["flips_before"].note.startswith("share of 40 validation samples")
    assert "80 validation samples" in fewer.effects["error_before"].note
    monkeypatch.setattr(anti_alias, "BUDGET", per_row * 4 * 15)
    with pytest.raises(NotApplicable, match="too many to try it"):
        AntiAlias().attempt(noisy())


def test_the_best_comes_first_among_others():
    assert remedies.ALL[-1] is AntiAlias
    found = try_all(noisy())
    assert [o.remedy for o in found] == ["anti-alias"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: builders.subject(), "no translation is known to act"),
        (lambda: Subject(builders.mlp(4, 2), torch.randn(120, 4), torch.randn(120, 2)), "flips of labels are counted, which needs classes"),
        (lambda: Subject(builders.tokens_net(), torch.arange(600).view(120, 5) % 20, torch.arange(120) % 3), "whole numbers"),
        (lambda: noisy(90), "90 training samples are too few"),
        (
            lambda: builders.subject(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))),
            "no layer drops positions",
        ),
        (
            lambda: builders.subject(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), Halving(), nn.Linear(16, 10))),
            "'1' stays: layer: expected a convolution, max-pool or average pool, got Halving",
        ),
        (
            lambda: builders.subject(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), Constant(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))),
            "alias nothing",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_says_why(build, reason):
    with pytest.raises(NotApplicable, match=reason):
        AntiAlias().attempt(build())


class Halving(nn.Module):
    def forward(self, x):
        return nn.functional.max_pool2d(x, 2).flatten(1)


class Constant(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True).expand(x.shape) + 0.0 * x


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = self.same = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.patches = nn.Conv2d(3, 4, 8, 8)
        self.hooked = nn.AvgPool2d(2)
        self.hooked.register_forward_hook(lambda module, args, output: None)

    def forward(self, x):
        y = self.same(self.pool(self.conv(x)))
        return self.patches(self.conv(x)).mean((2, 3)) + self.hooked(y).mean((1, 2, 3))[:, None]


def test_layers_that_drop_positions_are_found_by_the_graph():
    model, x = Branches().eval(), torch.randn(2, 1, 16, 16)
    action = translation_action(trace(model, x), x)
    found, refused = made_over(model, action, x)
    (name,) = found
    assert name in ("pool", "same")
    assert found[name].blur.padding_mode == "reflect"
    assert refused["patches"] == "its dense version would take 64 times its work"
    assert refused["hooked"] == "it has hooks, which would be lost"
    before = snapshot(model)
    copied = swapped(model, found)
    assert snapshot(model) == before
    assert copied.pool is copied.same
    assert isinstance(copied.pool, AntiAliased)
    assert model(x).shape == copied(x).shape
    only = nn.MaxPool2d(2)
    assert isinstance(swapped(only, {"": AntiAliased(only)}), AntiAliased)


@pytest.mark.parametrize(("frequency", "share"), [(1, 0.0), (3, 0.0), (5, 1.0), (7, 1.0)])
def test_aliasing_is_the_share_of_frequencies_above_half_the_new_rate(frequency, share):
    """A stride of 2 on 16 positions folds the frequencies above 4 of 8."""
    wave = torch.cos(2 * torch.pi * frequency * torch.arange(16.0) / 16)
    pool = nn.AvgPool1d(1, 2)
    layers = {"": AntiAliased(pool, padding_mode="circular")}
    assert aliasing(pool, layers, wave.view(1, 1, 16))[""] == pytest.approx(share, abs=1e-6)
    mixed = (3.0 * torch.cos(2 * torch.pi * torch.arange(16.0) / 16) + 4.0 * wave).view(1, 1, 16)
    expected = 0.8 if share else 0.0
    assert aliasing(pool, layers, mixed)[""] == pytest.approx(expected, abs=1e-6)

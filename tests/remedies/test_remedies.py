"""Remedies: tried on a copy, measured on a validation part of the training data, saved whole."""

from __future__ import annotations

import json
import math
from functools import cache

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from scipy.stats import multinomial
from torch import nn

from theodolite import remedies
from theodolite.remedies import Change, Outcome, Remedy, RemoveUnits, ResolveHead, attempts, try_all
from theodolite.remedies.base import mean_difference, rate_difference, split_rows
from theodolite.testing import snapshot
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.subject import InputError, Subject

DECAY = 1e-3


@cache
def trained(kind: str, steps: int = 60) -> nn.Module:
    """A network trained on 600 digits, some of its units dead, unused or double."""
    x, y = builders.digits()
    torch.manual_seed(0)
    if kind == "dense":
        model: nn.Module = builders.mlp(64, 24, 16, 10, bias=True)
    else:
        model = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:600]), y[:600])
        (loss + DECAY / 2 * sum(p.square().sum() for p in model.parameters())).backward()
        optimizer.step()
    for p in model.parameters():
        p.grad = None
    with torch.no_grad():
        if kind == "dense":
            first, second = model.layers[0], model.layers[2]
            first.weight[3], first.bias[3] = 0.0, 0.7
            first.weight[5], first.bias[5] = 2.5 * first.weight[6], 2.5 * first.bias[6]
            second.weight[:, 9] = 0.0
        else:
            model[1].weight[2], model[2].bias[2], model[2].running_mean[2] = 0.0, -1.0, model[1].bias[2]
            model[4].weight[0], model[4].bias[0] = 3 * model[4].weight[1], 3 * model[4].bias[1]
            model[8].weight.view(10, 8, 9)[:, 6] = 0.0
    return model


def subject(kind: str = "dense", n: int = 600, **options) -> Subject:
    x, y = builders.digits()
    return Subject(trained(kind), x[:n], y[:n], **{"weight_decay": DECAY, **options})


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_remedies_leave_the_model_alone_and_repeat(kind):
    model = trained(kind)
    before, state = snapshot(model), torch.get_rng_state()
    audited = subject(kind)
    inner = snapshot(audited.model)
    first, again = try_all(audited), try_all(subject(kind))
    assert snapshot(model) == before
    assert snapshot(audited.model) == inner
    assert torch.equal(torch.get_rng_state(), state)
    assert [o.to_dict() for o in first] == [o.to_dict() for o in again]
    json.dumps([o.to_dict() for o in first])


def test_resolve_head_helps_an_unfinished_network():
    audited = subject()
    outcome = ResolveHead().propose(audited)
    assert outcome is not None
    assert outcome.helped
    effects = outcome.effects
    assert effects["loss_change"].kind == effects["error_change"].kind == "estimate"
    assert effects["loss_change"].upper < 0
    assert effects["gap"].upper < 1e-6
    assert effects["objective_after"].value < effects["objective_before"].value
    assert outcome.parameters_saved == 0
    assert "favors the original" in outcome.note
    # the numbers are those of the model that is saved, on rows that it was not fitted to
    fit, validation = split_rows(audited)
    assert set(fit.tolist()) | set(validation.tolist()) == set(range(600))
    assert not set(fit.tolist()) & set(validation.tolist())
    x, y = audited.x[validation], audited.y[validation]
    with torch.no_grad():
        loss = float(F.cross_entropy(outcome.model(x), y))
        error = float((outcome.model(x).argmax(1) != y).double().mean())
        old = float(F.cross_entropy(trained("dense").eval()(x), y))
    assert effects["loss_after"].value == pytest.approx(loss, rel=1e-5)
    assert effects["error_after"].value == pytest.approx(error)
    assert effects["loss_before"].value == pytest.approx(old, rel=1e-5)
    with torch.no_grad():
        whole = float(F.cross_entropy(outcome.model(audited.x[fit]), audited.y[fit]))
        whole += DECAY / 2 * sum(float(p.square().sum()) for p in outcome.model.parameters())
    assert effects["objective_after"].value == pytest.approx(whole, rel=1e-5)
    assert outcome.description.startswith("re-solve the head on 480 of 600 training samples")
    assert "validation error" in outcome.description


def test_only_the_head_changes():
    outcome = ResolveHead().attempt(subject())
    old, new = trained("dense").state_dict(), outcome.model.state_dict()
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    assert changed == {"layers.4.weight", "layers.4.bias"}


def test_a_solved_head_is_not_helped():
    outcome = ResolveHead().attempt(subject())
    again = ResolveHead().attempt(
        Subject(outcome.model, *[t[:600] for t in builders.digits()], weight_decay=DECAY)
    )
    assert not again.helped
    assert abs(again.effects["objective_after"].value / again.effects["objective_before"].value - 1) < 1e-6


def test_regression_has_no_error_rate():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator)
    y = torch.stack([x[:, 0].abs(), x[:, 1] * x[:, 2]], 1)
    outcome = ResolveHead().attempt(Subject(builders.mlp(4, 30, 2, bias=True), x, y, weight_decay=1e-4))
    assert outcome.helped
    assert "error_change" not in outcome.effects
    assert "validation loss" in outcome.description


def test_random_labels_are_not_helped():
    x, _ = builders.digits()
    y = torch.randint(0, 10, (400,), generator=torch.Generator().manual_seed(3))
    model = builders.mlp(64, 40, 10)
    with torch.no_grad():
        model.layers[2].weight.zero_()  # ln 10 for every sample: nothing does better on noise
    outcome = ResolveHead().attempt(Subject(model, x[:400], y, weight_decay=1e-5))
    assert outcome.effects["objective_after"].value < outcome.effects["objective_before"].value
    assert not outcome.helped
    assert outcome not in try_all(Subject(model, x[:400], y, weight_decay=1e-5))


@pytest.mark.parametrize(
    ("kind", "removed"),
    [("dense", {"dead": 1, "unused": 1, "duplicate": 1}), ("conv", {"dead": 1, "unused": 1, "duplicate": 1})],
)
def test_remove_units_keeps_the_function(kind, removed):
    audited = subject(kind)
    outcome = RemoveUnits().attempt(audited)
    assert outcome.helped
    assert outcome.effects["units_removed"].value == 3
    assert outcome.effects["units_removed"].witness == removed
    assert outcome.effects["error_change"].kind == "exact"
    assert outcome.effects["max_difference"].value < 1e-4
    sizes = [sum(p.numel() for p in m.parameters()) for m in (trained(kind), outcome.model)]
    assert [outcome.parameters_before, outcome.parameters_after] == sizes
    assert outcome.parameters_saved == outcome.effects["parameters_removed"].value > 0
    x = builders.digits()[0]
    with torch.no_grad():
        torch.testing.assert_close(outcome.model(x), trained(kind).eval()(x), rtol=1e-4, atol=1e-4)
    assert "same function exactly" in outcome.description
    # what is left works on: it can be trained and shrunk again
    assert all(p.requires_grad for p in outcome.model.parameters())
    with pytest.raises(NotApplicable, match="no unit is dead"):
        RemoveUnits().attempt(Subject(outcome.model, audited.x, audited.y))


def test_test_data_are_never_looked_at():
    _x, _y = builders.digits()
    plain = try_all(subject())
    poisoned = subject(test=(torch.full((50, 64), 1e30), torch.zeros(50, dtype=torch.int64)))
    assert [o.to_dict() for o in try_all(poisoned)] == [o.to_dict() for o in plain]
    assert poisoned._cache.keys().isdisjoint({"logits/test"})


def test_the_best_comes_first_and_none_helped_is_an_empty_list():
    outcomes = try_all(subject())
    assert [o.remedy for o in outcomes] == ["resolve-head", "remove-units"]
    assert outcomes[0].benefit > outcomes[1].benefit > 0
    assert try_all(builders.subject(builders.mlp(), n=40)) == []
    assert try_all(subject(), budget=0.0) == []
    reasons = {r.name: o for r, o in attempts(subject(), budget=0.0)}
    assert set(reasons) == set(remedies.BY_NAME)
    assert "budget of 0 s" in reasons["resolve-head"]


def test_at_most_three_are_shown(monkeypatch):
    monkeypatch.setattr(remedies, "ALL", [RemoveUnits] * 5)
    assert len(try_all(subject())) == 3


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (lambda: subject(n=90), "resolve-head", "90 training samples are too few"),
        (lambda: subject(weight_decay=None), "resolve-head", "needs a weight decay > 0"),
        (lambda: builders.subject(nets.branching_net), "remove-units", "could not be traced"),
        (
            lambda: builders.subject(nn.Sequential(builders.mlp(), nn.Softmax(1)), weight_decay=DECAY),
            "resolve-head",
            "'softmax' in layer '1'",
        ),
        (lambda: builders.subject(), "remove-units", "no unit is dead"),
    ],
)
def test_what_cannot_be_tried_says_why(build, name, reason):
    audited = build()
    remedy = remedies.BY_NAME[name]()
    assert remedy.propose(audited) is None
    with pytest.raises(NotApplicable, match=reason):
        remedy.attempt(audited)


@pytest.mark.parametrize(
    "name",
    ["frozen_net", "double_net", "half_net", "residual_net", "tied_net", "recurrent_net", "no_parameters"],
)
def test_awkward_networks(name):
    x, y = builders.digits_pairs(150)["train"]
    model = getattr(nets, name)
    before = snapshot(model)
    results = list(attempts(Subject(model, x, y, weight_decay=DECAY)))
    assert all(isinstance(o, (Outcome, str)) for _, o in results)
    assert snapshot(model) == before


class Temperature(Remedy):
    """Divide the logits by a temperature: a remedy in a few lines."""

    name = "temperature"
    title = "Calibrate the temperature"

    def change(self, model, subject, fit):
        with torch.no_grad():
            logits = torch.cat([model(subject.x[rows]) for rows in fit.split(256)])
        grid = torch.logspace(-1, 1, 41)
        losses = [F.cross_entropy(logits / t, subject.y[fit]) for t in grid]
        best = float(grid[int(torch.stack(losses).argmin())])
        head = model.layers[-1]
        with torch.no_grad():
            head.weight /= best
            head.bias /= best
        return Change(model, f"divide the logits by {best:.2g}")


def test_a_remedy_is_a_few_lines():
    outcome = Temperature().attempt(subject())
    assert outcome.effects["error_change"].value == 0.0
    assert outcome.effects["loss_change"].value <= 0.01
    assert outcome.helped == (outcome.effects["loss_change"].upper < 0)


def test_validation_rows_are_stratified_and_seeded():
    first, again, other = (split_rows(subject(seed=s))[1] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    counts = torch.bincount(subject().y, minlength=10)
    chosen = torch.bincount(subject().y[first], minlength=10)
    assert float((chosen - counts / 5).abs().max()) <= 1.0
    assert len(first) == 120


def test_mean_interval_covers_at_its_rate():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(1000, 30, generator=generator, dtype=torch.float64).exp() - math.exp(0.5)
    draws = draws[:, :15] - draws[:, 15:] + 0.3
    hits = [v.lower <= 0.3 <= v.upper for v in map(mean_difference, draws)]
    assert 0.93 <= sum(hits) / 1000 <= 0.99
    assert mean_difference(torch.zeros(30)).upper == 0.0


@pytest.mark.parametrize(
    ("spoiled", "corrected"), [(0.02, 0.05), (0.0, 0.1), (0.1, 0.1), (0.3, 0.1), (0.0, 0.3)]
)
def test_rate_interval_covers_at_its_rate(spoiled, corrected):
    m, covered = 40, 0.0
    for worse in range(m + 1):
        for better in range(m + 1 - worse):
            chance = multinomial.pmf(
                [worse, better, m - worse - better], m, [spoiled, corrected, 1 - spoiled - corrected]
            )
            if chance > 1e-9:
                row = torch.arange(m)
                value = rate_difference(row < better, (row >= better) & (row < better + worse))
                covered += chance * (value.lower <= spoiled - corrected <= value.upper)
    assert 0.93 <= covered <= 1.0 + 1e-9  # approximate: 0.938 at the worst of these


def test_rate_interval_never_collapses():
    value = rate_difference(torch.zeros(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool))
    assert value.value == 0.0
    assert value.lower < -0.02
    assert value.upper > 0.02
    everything = rate_difference(torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool))
    assert everything.lower <= everything.value == -1.0


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_saved_files_give_the_same_outputs(kind, tmp_path):
    outcome = RemoveUnits().attempt(subject(kind))
    x = builders.digits()[0][:7]
    with torch.no_grad():
        expected = outcome.model(x)
    outcome.save(tmp_path / "small.pt")
    state = torch.load(tmp_path / "small.pt", weights_only=True)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in outcome.model.state_dict().items()
    }
    outcome.save(str(tmp_path / "small.pt2"))
    program = torch.export.load(tmp_path / "small.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.pt", "small.pt2"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    outcome = ResolveHead().attempt(subject())
    (tmp_path / "folder.pt").mkdir()
    for path, reason in [
        (tmp_path / "head.onnx", "ends in .pt or .pt2"),
        (tmp_path / "missing" / "head.pt", "No such file or directory"),
        (tmp_path / "folder.pt", "Is a directory"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            outcome.save(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.pt"]


def test_an_untraceable_model_cannot_be_saved_as_a_program(tmp_path):
    from theodolite.remedies.saving import save_model

    with pytest.raises(InputError, match=r"cannot be exported to \.pt2"):
        save_model(nets.branching_net, tmp_path / "a.pt2", builders.digits()[0][:2])
    with pytest.raises(InputError, match="expected an example input"):
        save_model(nets.relu_net, tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_keeps_no_other_remedy_from_its_turn(monkeypatch):
    def crash(self, subject):
        raise ZeroDivisionError("boo")

    monkeypatch.setattr(ResolveHead, "attempt", crash)
    outcomes = dict(attempts(subject()))
    assert isinstance(outcomes[ResolveHead], ZeroDivisionError)
    assert isinstance(outcomes[RemoveUnits], (str, Outcome))
    with pytest.raises(ZeroDivisionError, match="boo"):
        try_all(subject())

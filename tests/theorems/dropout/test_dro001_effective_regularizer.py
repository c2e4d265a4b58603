"""DRO001: each dropout layer's penalty, by hand, by exhaustive masks, and where it must not speak."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.dropout_layers import find_dropout, may_drop
from theodolite.nn import BernoulliDropout, DropBlock, DropConnect
from theodolite.testing import FUNCTION_PRESERVING, same_values
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.dropout.effective_regularizer import EffectiveRegularizer
from theodolite.theorems.subject import Subject


def finding(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Finding:
    result = evaluate(EffectiveRegularizer(), Subject(model, x, y, **options))
    assert result.status != "failed", result.traceback
    return result


def regression(n: int = 7, d: int = 5, k: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(n, d, dtype=torch.float64, generator=generator),
        torch.randn(n, k, dtype=torch.float64, generator=generator),
    )


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def exhaustive(masks: int, p: float, loss: Callable[[Tensor], Tensor], plain: float) -> float:
    """Return the mean of a loss over all masks, less the loss without."""
    total = 0.0
    for kept in itertools.product((0.0, 1.0), repeat=masks):
        chance = math.prod(1.0 - p if k else p for k in kept)
        total += chance * float(loss(torch.tensor(kept, dtype=torch.float64) / (1.0 - p)))
    return total - plain


def test_last_layer_of_a_relu_network_is_exact():
    x, y = regression()
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)))
    result = finding(net, x, y)
    assert result.status == "certified"
    value = result.values["regularizer[2]"]
    assert value.kind == "exact"
    with torch.no_grad():
        h = F.relu(net[0](x))
        plain = float(F.mse_loss(net[3](h), y))
        exact = exhaustive(4, 0.3, lambda m: F.mse_loss(net[3](h * m), y), plain)
    assert value.value == pytest.approx(exact, rel=1e-10)
    assert result.headline.value == value.value
    assert result.headline.witness == {"layer": "2"}
    assert result.values["share_of_loss"].value == pytest.approx(exact / plain, rel=1e-10)
    assert result.chart.series["penalty"] == [value.value]


def test_everything_linear_behind_is_one_map():
    """Dropout, linear, another dropout, linear: each alone, by exhaustive masks."""
    x, y = regression()
    net = seeded(
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(5, 4), BernoulliDropout(0.4), nn.Linear(4, 2))
    )
    values = finding(net, x, y).values
    with torch.no_grad():
        plain = float(F.mse_loss(net[3](net[1](x)), y))
        first = exhaustive(5, 0.2, lambda m: F.mse_loss(net[3](net[1](x * m)), y), plain)
        second = exhaustive(4, 0.4, lambda m: F.mse_loss(net[3](net[1](x) * m), y), plain)
    assert values["regularizer[0]"].value == pytest.approx(first, rel=1e-10)
    assert values["regularizer[2]"].value == pytest.approx(second, rel=1e-10)
    assert values["regularizer"].value == pytest.approx(max(first, second), rel=1e-10)


def test_channels_blocks_and_pooling():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout2d(0.25), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    ).double()
    x, y = torch.randn(4, 1, 6, 6).double(), torch.randn(4, 2).double()
    value = finding(net, x, y).values["regularizer[2]"]
    with torch.no_grad():
        h = F.relu(net[0](x))
        plain = float(F.mse_loss(net[3:](h), y))
        exact = exhaustive(3, 0.25, lambda m: F.mse_loss(net[3:](h * m[:, None, None]), y), plain)
    assert (value.kind, value.value) == ("exact", pytest.approx(exact, rel=1e-10))
    x, y = regression()
    for shared in (False, True):
        net = seeded(
            lambda shared=shared: nn.Sequential(
                nn.Linear(5, 6), nn.ReLU(), DropBlock(3, theta_bar=0.8, shared=shared), nn.Linear(6, 2)
            )
        )
        p = net[2].rate(2)
        with torch.no_grad():
            h = F.relu(net[0](x))
            plain = float(F.mse_loss(net[3](h), y))
            exact = exhaustive(
                2, p, lambda m, h=h, net=net: F.mse_loss(net[3](h * m.repeat_interleave(3)), y), plain
            )
        assert finding(net, x, y).values["regularizer[2]"].value == pytest.approx(exact, rel=1e-10)


def test_dropped_weights_of_the_last_layer_and_of_a_linear_first_one():
    x, y = regression(d=3)
    net = seeded(lambda: nn.Sequential(DropConnect(3, 2, p=0.3), DropConnect(2, 2, p=0.2)))
    values = finding(net, x, y).values
    with torch.no_grad():
        W, b = net[0].weight, net[0].bias
        plain = float(F.mse_loss(net.eval()(x), y))
        first = exhaustive(
            6, 0.3, lambda m: F.mse_loss(net[1](F.linear(x, W * m.reshape(2, 3), b)), y), plain
        )
        U, c, h = net[1].weight, net[1].bias, net[0](x)
        last = exhaustive(4, 0.2, lambda m: F.mse_loss(F.linear(h, U * m.reshape(2, 2), c), y), plain)
    assert values["regularizer[0]"].value == pytest.approx(first, rel=1e-10)
    assert values["regularizer[1]"].value == pytest.approx(last, rel=1e-10)


def test_cross_entropy_gets_a_score_and_says_so():
    result = evaluate(EffectiveRegularizer(), builders.subject(builders.dropout_net()))
    assert result.status == "score"
    assert result.headline.kind == "score"
    assert "not a bound" in result.headline.note
    assert result.values["regularizer[2]"].kind == "score"
    assert result.values["sampled[2]"].kind == "estimate"


def test_score_is_near_the_truth_for_weak_units():
    x, _ = regression()
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 3)))
    y = torch.arange(7) % 3
    with torch.no_grad():
        net[3].weight *= 0.02
        h = F.relu(net[0](x))
        plain = float(F.cross_entropy(net[3](h), y))
        exact = (
            sum(  # a mask for each sample
                exhaustive(
                    4,
                    0.3,
                    lambda m, i=i: F.cross_entropy(net[3](h[i : i + 1] * m), y[i : i + 1]),
                    float(F.cross_entropy(net[3](h[i : i + 1]), y[i : i + 1])),
                )
                for i in range(7)
            )
            / 7
        )
    values = finding(net, x, y).values
    assert plain > 0.0
    assert values["regularizer[2]"].value == pytest.approx(exact, rel=0.02)
    assert values["sampled[2]"].low <= exact <= values["sampled[2]"].high


@pytest.mark.parametrize("shared", [False, True])
def test_below_a_nonlinearity_the_estimate_holds_the_exhaustive_truth(shared):
    x, y = regression()
    net = seeded(
        lambda: nn.Sequential(
            BernoulliDropout(0.3, shared=shared), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
        )
    )
    with torch.no_grad():
        truth = exhaustive(5, 0.3, lambda m: F.mse_loss(net[1:](x * m), y), float(F.mse_loss(net[1:](x), y)))
    subject = Subject(net, x, y)
    hits = 0
    for subject.seed in range(12):  # 99 % intervals: one of twelve may miss
        result = evaluate(EffectiveRegularizer(), subject)
        value = result.values["regularizer[0]"]
        assert (result.status, value.kind) == ("estimated", "estimate")
        assert value.high - value.low < truth
        hits += value.low <= truth <= value.high
    assert hits >= 11


def test_functional_dropout_and_layers_used_twice():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.drop = nn.Linear(5, 4), nn.Linear(4, 2), nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(F.relu(self.first(self.drop(x))), 0.4, self.training)
            return self.last(self.drop(h))

    x, y = regression()
    net = seeded(Net)
    values = finding(net, x, y).values
    assert [name for name in values if "[" in name] == [
        "regularizer[drop]",
        "regularizer[forward]",
        "regularizer[drop#2]",
    ]
    with torch.no_grad():
        h = F.relu(net.first(x))
        plain = float(F.mse_loss(net.last(h), y))
        exact = exhaustive(4, 0.4, lambda m: F.mse_loss(net.last(h * m), y), plain)
    assert values["regularizer[forward]"].value == pytest.approx(exact, rel=1e-10)
    assert values["regularizer[drop#2]"].value == pytest.approx(exact * (0.2 / 0.8) / (0.4 / 0.6), rel=1e-10)
    assert values["regularizer[drop]"].kind == "estimate"


def test_closed_forms_do_not_change_with_the_function_preserved():
    x, y = regression(d=6)
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2)))
    before = finding(net, x, y)
    for change in FUNCTION_PRESERVING.values():
        after = finding(change(net, torch.Generator().manual_seed(0)), x, y)
        assert same_values(before, after, 1e-9)


def test_in_place_layers_and_training_mode():
    x, y = regression()
    plain = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)))
    other = seeded(
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Dropout(0.3, inplace=True), nn.Linear(4, 2)
        )
    )
    assert same_values(finding(plain.eval(), x, y), finding(other.train(), x, y), 1e-12)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), "the model has no dropout layer"),
        ((nn.Linear(5, 4), nn.Dropout(0.0), nn.Linear(4, 2)), "no layer drops units"),
        (
            (nn.Linear(5, 4), nn.Dropout(0.3), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
            "whose statistics while training are of units with masks",
        ),
        (
            (nn.Linear(5, 4), nn.AlphaDropout(0.3), nn.Linear(4, 2)),
            "drops to a value other than zero",
        ),
    ],
)
def test_where_it_does_not_speak(layers, reason):
    result = finding(nn.Sequential(*layers).double(), *regression())
    assert result.status == "not applicable"
    assert reason in result.reason


def test_layers_that_are_not_measured_are_named():
    net = seeded(
        lambda: nn.Sequential(
            nn.Dropout(0.1), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)
        )
    )
    result = finding(net, *regression())
    assert "not measured: 0" in result.headline.note
    assert result.status == "certified"


def test_a_loss_of_ones_own_is_estimated():
    x, y = regression()
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)))
    own = finding(net, x, y, loss=nn.functional.l1_loss)
    assert own.values["regularizer"].kind == "estimate"


def test_other_randomness_while_training_is_left_alone():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(5, 4), nn.Dropout(0.3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = h + torch.randn_like(h) if self.training else h
            return self.last(self.drop(h))

    x, y = regression()
    net = seeded(Noisy)
    value = finding(net, x, y).values[
        "regularizer[drop]"
    ]  # found by its module, everything else as evaluated
    with torch.no_grad():
        h = net.first(x)
        plain = float(F.mse_loss(net.last(h), y))
        exact = exhaustive(4, 0.3, lambda m: F.mse_loss(net.last(h * m), y), plain)
    assert value.value == pytest.approx(exact, rel=1e-10)


def test_finding_layers_leaves_the_model_alone():
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.3), nn.Linear(4, 2)).eval()
    before = [type(m) for m in net.modules()]
    found = find_dropout(net, torch.randn(3, 5))
    assert [site.name for site in found.sites] == ["1"]
    assert [type(m) for m in net.modules()] == before
    assert not net.training
    assert not may_drop(nn.Sequential(nn.Linear(2, 2)))

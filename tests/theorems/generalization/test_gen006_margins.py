"""GEN006: margins, and the bracket of input radii against brute force in the plane."""

from __future__ import annotations

import math

import builders
import pytest
import torch
from fixtures import nets
from torch import Tensor, nn

from theodolite.analysis.attacks import radius
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.generalization.lipschitz import exact_model, network_bounds
from theodolite.theorems.generalization.margins import Margins, _certified, _median
from theodolite.theorems.subject import Subject


def finding(model: nn.Module, x: Tensor, y: Tensor, **options) -> Finding:  # type: ignore[no-untyped-def]
    result = evaluate(Margins(), Subject(model, x, y, **options))
    assert result.status != "failed", result.traceback
    return result


def linear(rows: list[list[float]]) -> nn.Module:
    weight = torch.tensor(rows, dtype=torch.float64)
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


PLANE = [[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]


def test_known_answer_of_a_linear_network():
    result = finding(linear(PLANE), torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    assert result.status == "certified"
    assert next(iter(result.values)) == "radius"
    v = result.values
    # the distance to the nearest of the two boundaries: 1.5 / |(2, -1)|
    assert v["radius"].lower == pytest.approx(0.6708204, rel=1e-6)
    assert v["radius"].upper == pytest.approx(0.6708204, rel=1e-6)
    assert v["radius"].lower <= 1.5 / math.sqrt(5.0) <= v["radius"].upper
    assert v["margin_median"].value == v["margin_min"].value == 1.5
    assert v["margin_not_positive"].value == 0.0


def test_margins_are_those_of_the_training_sample():
    subject = builders.subject()
    v = evaluate(Margins(), subject).values
    with torch.no_grad():
        logits = subject.model.double()(subject.x.double())
    true = logits.gather(1, subject.y[:, None])[:, 0]
    others = torch.stack([logits[i, torch.arange(10) != y].max() for i, y in enumerate(subject.y)])
    m = true - others
    assert v["margin_median"].value == pytest.approx(float(m.quantile(0.5)), rel=1e-9)
    assert v["margin_10_percent"].value == pytest.approx(float(m.quantile(0.1)), rel=1e-9)
    assert v["margin_min"].value == pytest.approx(float(m.min()), rel=1e-9)
    assert v["margin_min"].witness == {"training point": int(m.argmin())}
    assert v["margin_not_positive"].value == float((m <= 0).double().mean())
    assert "over 120 training points" in v["margin_median"].note


def test_misclassified_points_and_ties_have_radius_zero():
    model = linear(PLANE)
    wrong = finding(model, torch.tensor([[1.0, 0.5]]), torch.tensor([1])).values
    assert (wrong["radius"].lower, wrong["radius"].upper) == (0.0, 0.0)
    assert wrong["margin_min"].value == -1.5
    tie = finding(model, torch.zeros(1, 2), torch.tensor([0])).values["radius"]
    assert tie.lower == 0.0
    assert tie.upper < 1e-5


def true_radius(model: nn.Module, x: Tensor, y: int, limit: float) -> float:
    """Return the distance to the nearest misclassified point that a scan of 240 directions finds."""
    angles = torch.linspace(0.0, 2.0 * math.pi, 241, dtype=torch.float64)[:-1]
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    steps = torch.linspace(0.0, limit, 501, dtype=torch.float64)[1:]
    points = x + steps[:, None, None] * rays
    with torch.no_grad():
        wrong = model(points.reshape(-1, 2)).argmax(1).reshape(len(steps), -1) != y
    first = wrong.any(1).nonzero()
    return float(steps[first[0, 0]]) if len(first) else math.inf


def centered(model: nn.Module, x: Tensor) -> nn.Module:
    """Shift the last bias so that every class is predicted somewhere."""
    with torch.no_grad():
        list(model.modules())[-1].bias -= model(x).mean(0)
    return model


def ends(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two ends for each point; the theorem prints their medians."""
    subject = Subject(model, x, y)
    lower = _certified(exact_model(subject), x, y, network_bounds(subject).pairwise())
    upper = radius(exact_model(subject), x, y)
    printed = evaluate(Margins(), subject).values["radius"]
    assert printed.lower == min(_median(lower), _median(upper))
    assert printed.high == _median(upper)
    return lower, upper


@pytest.mark.parametrize("seed", range(3))
def test_the_bracket_holds_the_radius_in_the_plane(seed):
    torch.manual_seed(seed)
    x = torch.randn(12, 2, dtype=torch.float64)
    model = centered(builders.mlp(2, 8, 6, 3, bias=True, seed=seed).double(), x)
    with torch.no_grad():
        y = model(x).argmax(1)
    lower, upper = ends(model, x, y)
    assert int(torch.isfinite(upper).sum()) >= 8
    truth = torch.tensor([true_radius(model, x[i], int(y[i]), 5.0) for i in range(12)])
    assert bool((lower <= truth).all())
    # the scan overshoots by a step, and by a direction that it misses
    near = upper < 4.9
    assert bool((truth <= upper * 1.02 + 0.01)[near].all())
    assert float((upper / truth)[near].median()) < 1.1  # the attack is a good one in the plane


@pytest.mark.parametrize("build", [lambda: builders.mlp(bias=True), builders.conv_net])
def test_no_attack_enters_the_certified_ball(build):
    """Projected ascent from random starts inside the lower end of every digit never changes its class."""
    model = build().double()
    x = builders.digits()[0][:12].double()
    with torch.no_grad():
        y = model(x).argmax(1)
    lower, _ = ends(model, x, y)
    starts = torch.randn(12, 6, 64, dtype=torch.float64)
    ball = lower[:, None, None]
    delta = ball * starts / starts.norm(dim=2, keepdim=True)
    for _ in range(25):
        delta.requires_grad_()
        logits = model((x[:, None] + delta).flatten(0, 1)).unflatten(0, (12, 6))
        assert bool((logits.argmax(2) == y[:, None]).all())
        labels = y[:, None, None].expand(12, 6, 1)
        rival = logits.scatter(2, labels, -torch.inf).amax(2)
        (slope,) = torch.autograd.grad((rival - logits.gather(2, labels)[..., 0]).sum(), delta)
        step = delta.detach() + ball * slope / slope.norm(dim=2, keepdim=True).clamp_min(1e-12)
        delta = step * (ball / step.norm(dim=2, keepdim=True)).clamp(max=1.0)


@pytest.mark.parametrize(
    "final",
    [
        [nn.Softmax(1)],
        [nn.LogSoftmax(1)],
        [nn.Softmax(1), nn.LogSoftmax(1)],
        [nn.Softmax(1), nn.Softmax(1)],
        [nn.LogSoftmax(1), nn.Softmax(1)],
    ],
    ids=lambda final: "+".join(type(m).__name__ for m in final),
)
def test_a_final_softmax_moves_no_boundary(final):
    model = linear(PLANE)
    x, y = torch.tensor([[1.0, 0.5]]), torch.tensor([0])
    bracket = finding(nn.Sequential(model, *final), x, y).values["radius"]
    assert 0.0 < bracket.lower <= 1.5 / math.sqrt(5.0) <= bracket.upper
    assert bracket.upper == pytest.approx(1.5 / math.sqrt(5.0), rel=1e-6)
    if len(final) == 1:
        assert bracket.lower == pytest.approx(1.5 / math.sqrt(5.0), rel=1e-6)


def test_median_over_points_and_test_points_first():
    x = torch.tensor([[1.0, 0.5], [2.0, 1.0], [4.0, 2.0], [-1.0, -1.0]])
    y = torch.tensor([0, 0, 0, 0])
    result = finding(linear(PLANE), x, y)
    # radii .67, 1.34, 2.68 and 0 for the misclassified one: the mean of the middle two
    middle = 0.5 * (1.0 + 2.0) * 1.5 / math.sqrt(5.0)
    assert result.values["radius"].upper == pytest.approx(middle, rel=1e-6)
    assert "medians over 4 training points, 1 of them misclassified" in result.values["radius"].note
    tested = finding(linear(PLANE), x, y, test=(x[:1], y[:1])).values["radius"]
    assert tested.upper == pytest.approx(1.5 / math.sqrt(5.0), rel=1e-6)
    assert "over 1 test points" in tested.note


def test_a_network_that_never_changes_its_mind():
    model = nn.Linear(2, 3)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    x = torch.randn(5, 2)
    result = finding(model, x, torch.zeros(5, dtype=torch.int64))
    bracket = result.values["radius"]
    assert (bracket.lower, bracket.upper) == (math.inf, None)
    assert "no misclassified point was found near 5" in bracket.note
    flat = finding(model, x, torch.ones(5, dtype=torch.int64)).values["radius"]
    assert (flat.lower, flat.upper) == (0.0, 0.0)


def test_a_network_that_does_not_see_its_input():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.scores.expand(x.shape[0], 2).clone()

    result = finding(Constant(), torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    assert result.values["radius"].lower == math.inf
    assert result.values["margin_min"].value == 1.0


def test_rescaling_moves_the_lower_end_alone():
    model, other = builders.mlp(2, 6, 3, bias=True).double(), builders.mlp(2, 6, 3, bias=True).double()
    with torch.no_grad():
        other.layers[0].weight[0] *= 50.0
        other.layers[0].bias[0] *= 50.0
        other.layers[2].weight[:, 0] /= 50.0
    x = torch.randn(9, 2, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    one, two = (finding(m, x, y).values for m in (model, other))
    assert two["radius"].lower < 0.9 * one["radius"].lower
    for name in ("margin_median", "margin_min"):
        assert two[name].value == pytest.approx(one[name].value, rel=1e-9)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.regression_subject, "the loss is mse with"),
        (
            lambda: Subject(nn.Linear(3, 1), torch.ones(4, 3), torch.zeros(4).long()),
            "the loss is cross_entropy with",
        ),
    ],
)
def test_without_classes_there_is_no_margin(build, reason):
    result = evaluate(Margins(), build())
    assert result.status == "not applicable"
    assert reason in result.reason


def test_networks_without_a_lower_end():
    for build, words in [
        (lambda: builders.subject(nets.attention_net), "dot-product attention is not globally Lipschitz"),
        (lambda: builders.subject(nets.branching_net), "could not be traced"),
    ]:
        result = evaluate(Margins(), build())
        assert result.status == "certified"
        bracket = result.values["radius"]
        assert bracket.lower is None
        assert f"no lower end: {words}" in bracket.note or words in bracket.note
    tokens = evaluate(Margins(), builders.tokens_subject())
    assert "radius" not in tokens.values
    assert tokens.values["margin_median"].kind == "exact"


def test_attack_refuses_what_it_cannot_use():
    model, x, y = linear(PLANE), torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="norm: expected 'l2'"):
        radius(model, x, y, norm="linf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: expected real inputs"):
        radius(model, x.long(), y)
    with pytest.raises(ValueError, match="y: expected 2 class numbers"):
        radius(model, x, y[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_found_perturbations_are_verified_in_float64(dtype):
    """Every norm belongs to a misclassified point: moving a hair less far must be possible, not further."""
    model = builders.mlp(bias=True)
    x = builders.digits()[0][:30]
    with torch.no_grad():
        y = model.double()(x.double()).argmax(1)
    norms = radius(model, x.double(), y, dtype=dtype, steps=8, refinements=2, targets=1)
    assert norms.dtype == torch.float64
    assert bool((norms > 0).all())
    thorough = radius(model, x.double(), y)
    assert float(thorough.median()) <= float(norms.median()) * 1.01

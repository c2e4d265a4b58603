"""OPT003: the degree of weight decay against the network's, and what sampling around W = 0 shows."""

from __future__ import annotations

import math

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.regularizer_degree import RegularizerDegree
from theodolite.theorems.subject import Subject


def finding(subject: Subject) -> Finding:
    result = evaluate(RegularizerDegree(), subject)
    assert result.status != "failed", result.traceback
    return result


class Chain(nn.Module):
    """f(x) = w_L relu(... relu(w_1 x)), one unit a layer."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in weights)
        with torch.no_grad():
            for layer, weight in zip(self.layers, weights, strict=True):
                layer.weight.fill_(weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


ONE = torch.ones(1, 1, dtype=torch.float64)
LAMBDA = 0.2


def chain_subject(*weights: float, lam: float = LAMBDA) -> Subject:
    """The example of the notes, 1/2 (1 - f)^2 + lam/2 sum w^2, times two: our squared error has no 1/2."""
    return Subject(Chain(*weights), ONE, ONE, weight_decay=2.0 * lam)


def objective(subject: Subject, weights: Tensor) -> Tensor:
    """Return the training objective at rows of parameters, shape (m, size) to (m,)."""
    named = dict(subject.model.named_parameters())

    def at(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        point = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        output = torch.func.functional_call(subject.model, point, (subject.x,))
        return subject.loss(output, subject.y) + subject.weight_decay / 2 * flat.square().sum()

    with torch.no_grad():
        return torch.func.vmap(at)(weights)


def in_ball(m: int, size: int, radius: float) -> Tensor:
    directions = torch.randn(m, size, dtype=torch.float64)
    radii = radius * torch.rand(m, 1, dtype=torch.float64) ** (1.0 / size)
    return radii * directions / directions.norm(dim=1, keepdim=True)


def test_known_answer_of_three_layers():
    subject = chain_subject(*[0.921699] * 3)
    result = finding(subject)
    assert result.status == "refuted"
    assert result.values == {}
    verdict = result.hypotheses[-1].verdict
    assert verdict.witness["degree"] == 3.0
    assert verdict.witness["objective_at_zero"] == pytest.approx(2 * 0.5)
    assert verdict.witness["objective"] == pytest.approx(2 * 0.278401, rel=1e-5)
    start = "weight decay has degree 2, the network 3: W = 0 is a spurious local minimum (objective 1 there, 0.5568"
    assert result.reason.startswith(start)
    assert "of degree 3" in result.advice


def test_sampling_around_zero_confirms_the_spurious_minimum():
    subject = chain_subject(*[0.921699] * 3)
    near = objective(subject, in_ball(20_000, 3, 1.5 * math.sqrt(3.0) * LAMBDA))
    assert bool((near > 1.0).all())  # the basin of the notes, of radius 0.5196
    far = objective(subject, in_ball(20_000, 3, 2.0))
    assert float(far.min()) < 0.6  # and it is spurious: lower points exist
    heavier = chain_subject(*[0.5] * 3, lam=0.4)  # above 2^(-4/3) zero is the global minimum
    assert float(objective(heavier, in_ball(20_000, 3, 3.0)).min()) > 1.0
    assert "strict local minimum" in finding(heavier).reason


@pytest.mark.parametrize("widths", [(4, 3, 3, 3), (4, 3, 3, 2, 3)])
@pytest.mark.parametrize("decay", [1e-3, 0.1])
def test_sampling_around_zero_in_wider_networks(widths, decay):
    x = torch.randn(20, widths[0], dtype=torch.float64)
    y = torch.randint(widths[-1], (20,))
    subject = Subject(builders.mlp(*widths).double(), x, y, weight_decay=decay)
    result = finding(subject)
    assert result.status == "refuted"
    assert f"the network {len(widths) - 1}: W = 0 is a" in result.reason
    size = sum(p.numel() for p in subject.model.parameters())
    # the loss falls by at most C |w|^3: within a radius of order decay / C it is all uphill
    slope = float(x.norm(dim=1).max())
    samples = in_ball(4000, size, min(0.5, 0.5 * decay / slope))
    assert bool((objective(subject, samples) > math.log(widths[-1])).all())


def test_two_layers_match_and_zero_is_no_minimum():
    subject = chain_subject(0.5, 0.5)
    result = finding(subject)
    assert result.status == "certified"
    assert result.values["degree"].value == result.values["regularizer_degree"].value == 2.0
    assert float(objective(subject, in_ball(2000, 2, 1e-2)).min()) < 1.0


def test_one_layer_is_convex_anyway():
    result = finding(chain_subject(0.5))
    assert result.status == "refuted"
    assert result.reason.endswith("the objective is convex without any theorem")
    assert "local minimum" not in result.reason
    assert "own degree" in result.advice


def test_excess_is_what_balancing_saves():
    torch.manual_seed(0)
    model = builders.mlp(3, 5, 2).double()
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    before = finding(Subject(model, x, y, weight_decay=0.1)).values["excess"].value
    u, v = model.layers[0].weight.detach().norm(dim=1), model.layers[2].weight.detach().norm(dim=0)
    total = float((u**2 + v**2).sum())
    assert before == pytest.approx(1.0 - 2.0 * float((u * v).sum()) / total, rel=1e-12)
    # no rescaling does better than c = sqrt(|v| / |u|), and that one leaves no excess
    factors = torch.exp(torch.randn(5000, 5, dtype=torch.float64))
    assert float(((factors * u) ** 2 + (v / factors) ** 2).sum(1).min()) >= total * (1.0 - before)
    with torch.no_grad():
        best = (v / u).sqrt()
        model.layers[0].weight *= best[:, None]
        model.layers[2].weight /= best
    balanced = finding(Subject(model, x, y, weight_decay=0.1))
    assert balanced.values["excess"].value == pytest.approx(0.0, abs=1e-12)
    assert balanced.advice == ""


def test_excess_of_convolutions_and_its_advice():
    conv, head = nn.Conv2d(1, 3, 3, bias=False), nn.Linear(3 * 9, 2, bias=False)
    with torch.no_grad():
        head.weight *= 0.01
    subject = Subject(
        nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head),
        torch.randn(6, 1, 8, 8),
        torch.zeros(6, 2),
        weight_decay=0.1,
    )
    result = finding(subject)
    u = conv.weight.detach().flatten(1).norm(dim=1)
    v = head.weight.detach().view(2, 3, 9).transpose(0, 1).flatten(1).norm(dim=1)
    assert result.values["excess"].value == pytest.approx(
        1.0 - 2.0 * float((u * v).sum() / (u**2 + v**2).sum()), rel=1e-5
    )
    assert "balancing the two layers" in result.advice


def test_no_excess_where_other_parameters_decay_too():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = builders.mlp(3, 4, 2), builders.mlp(3, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)

    result = finding(Subject(Sum(), torch.randn(5, 3), torch.zeros(5, 2), weight_decay=0.1))
    assert result.status == "certified"
    assert set(result.values) == {"degree", "regularizer_degree"}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.subject, "weight decay was not given"),
        (lambda: builders.subject(weight_decay=0.0), "weight decay is 0"),
        (lambda: builders.subject(builders.mlp(bias=True), weight_decay=0.1), "adds a bias of degree 1"),
        (builders.bare_subject, "the model has 0 parameters"),
    ],
)
def test_where_it_does_not_apply(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert reason in result.reason
    assert "\n" not in result.reason


class Quotient(nn.Module):
    """a^4 x / b: of degree 3, and without bound near 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.a**4 * x / self.b


def test_a_quotient_of_degree_three_gets_no_claim_about_zero():
    subject = Subject(Quotient(), ONE, ONE, weight_decay=1e-3)
    result = finding(subject)
    assert "local minimum" not in result.reason
    # there is indeed none: as near to 0 as one likes, f = 1 with next to no decay
    a = 1e-3
    assert float(objective(subject, torch.tensor([[a, a**4]], dtype=torch.float64))) < 1e-6


def test_a_loss_of_the_users_own_gets_a_condition():
    def root(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).square().sum(1) + 1e-3).sqrt().mean()

    subject = Subject(Chain(0.9, 0.9, 0.9), ONE, ONE, weight_decay=0.1, loss=root)
    reason = finding(subject).reason
    assert "provided that the loss is locally Lipschitz in the outputs at 0" in reason


def test_one_class_and_one_sample():
    x, y = torch.randn(1, 3), torch.zeros(1, dtype=torch.int64)
    result = finding(Subject(builders.mlp(3, 2, 2, 1), x, y, weight_decay=0.1))
    assert result.status == "refuted"
    assert "strict local minimum (objective 0 there" in result.reason


def test_the_objective_is_the_one_that_is_trained():
    subject = builders.subject(weight_decay=0.01)
    witness = finding(subject).hypotheses[-1].verdict.witness
    with torch.no_grad():
        loss = float(F.cross_entropy(subject.model(subject.x), subject.y))
    squares = sum(float(p.detach().square().sum()) for p in subject.model.parameters())
    assert witness["objective"] == pytest.approx(loss + 0.005 * squares, rel=1e-5)
    assert witness["objective_at_zero"] == pytest.approx(math.log(10), rel=1e-6)

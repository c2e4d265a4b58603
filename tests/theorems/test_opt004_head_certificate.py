"""OPT004: the certificate of the last layer, against what training it can really reach."""

from __future__ import annotations

import copy
import time

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from torch import nn

from theodolite.theorems import head_problem
from theodolite.theorems.base import evaluate
from theodolite.theorems.head_problem import HeadFeatures, certified_problem
from theodolite.theorems.optimality.head_certificate import HeadCertificate
from theodolite.theorems.subject import Subject

DECAY = 1e-3


def finding(subject: Subject):
    result = evaluate(HeadCertificate(), subject)
    assert result.status != "failed", result.traceback
    return result


def objective(subject: Subject, model: nn.Module, y: torch.Tensor) -> float:
    """Mean loss plus decay of all trained parameters, in float64, the way it is trained."""
    model = copy.deepcopy(model).double()
    loss = F.cross_entropy if subject.loss_name == "cross_entropy" else F.mse_loss
    with torch.no_grad():
        value = loss(model(subject.x.double()), y if subject.loss_name == "cross_entropy" else y.double())
    squares = sum(float(p.detach().square().sum()) for p in model.parameters() if p.requires_grad)
    return float(value) + subject.weight_decay / 2 * squares


def three_outputs(**options) -> Subject:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator)
    y = torch.stack([x[:, 0].abs(), x[:, 1] * x[:, 2], x.sum(1)], 1)
    return Subject(builders.mlp(5, 9, 3, bias=True).double(), x, y, **options)


@pytest.mark.parametrize("bias", [False, True])
def test_certified_bracket_on_digits(bias):
    subject = builders.subject(builders.mlp(64, 16, 12, 10, bias=bias).double(), weight_decay=DECAY)
    result = finding(subject)
    assert result.status == "certified"
    assert list(result.values) == ["gap", "objective", "optimum", "training_objective", "training_gap"]
    gap, own, optimum, whole, share = result.values.values()
    assert 0.0 <= gap.lower <= gap.upper
    assert gap.upper - gap.lower < 1e-8
    assert whole.value == pytest.approx(objective(subject, subject.model, subject.y), rel=1e-12)
    assert own.value * (1 - gap.upper) <= optimum.upper
    assert (own.value - optimum.lower) / whole.value == pytest.approx(share.upper, rel=1e-9)
    assert share.upper < gap.upper
    assert "Re-solve the last layer" in result.advice


def test_mean_squared_error_is_averaged_over_samples_and_outputs():
    subject = three_outputs(weight_decay=DECAY)
    result = finding(subject)
    assert result.status == "certified"
    whole = objective(subject, subject.model, subject.y)
    assert result.values["training_objective"].value == pytest.approx(whole, rel=1e-12)
    # the optimum, installed, has the promised objective and leaves no gap: known answer 9
    _, problem, weight, bias = certified_problem(subject)
    solved = problem.solve(weight, bias, tol=1e-13)
    with torch.no_grad():
        subject.model.layers[2].weight.copy_(solved.weight)
        subject.model.layers[2].bias.copy_(solved.bias)
    at_optimum = finding(Subject(subject.model, subject.x, subject.y, weight_decay=DECAY))
    assert at_optimum.values["gap"].upper <= 1e-10
    assert at_optimum.values["objective"].value == pytest.approx(result.values["optimum"].upper, rel=1e-10)
    assert at_optimum.advice == ""


def test_ridge_head_at_its_solution_has_no_gap():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    mu, scale = 0.5, 2 / (60 * 2)
    model = nn.Linear(6, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_((torch.linalg.solve(scale * x.T @ x + mu * torch.eye(6), scale * x.T @ y)).T)
    result = finding(Subject(model, x, y, weight_decay=mu))
    assert result.status == "certified"
    assert result.values["gap"].lower == pytest.approx(0.0, abs=1e-12)
    assert result.values["gap"].upper <= 1e-12


@pytest.mark.parametrize(
    "build", [lambda: builders.subject(weight_decay=DECAY), lambda: three_outputs(weight_decay=DECAY)]
)
def test_no_training_of_the_head_goes_below_the_bound(build):
    subject = build()
    bound = finding(subject).values["optimum"].lower
    whole = finding(subject).values["training_objective"].value - finding(subject).values["objective"].value
    model = copy.deepcopy(subject.model).double()
    head = model.layers[-1]
    lowest = objective(subject, model, subject.y) - whole
    assert lowest >= bound
    loss = F.cross_entropy if subject.loss_name == "cross_entropy" else F.mse_loss
    y = subject.y if subject.loss_name == "cross_entropy" else subject.y.double()
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(model(subject.x.double()), y)
        value = value + DECAY / 2 * sum(p.square().sum() for p in head.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    reached = float(closure().detach())
    # features were computed in the model's own dtype
    tolerance = 1e-12 if next(subject.model.parameters()).dtype == torch.float64 else 1e-6
    assert bound <= reached + tolerance
    assert reached == pytest.approx(bound, rel=1e-4)
    for size in (1e-4, 1e-2, 1.0):
        trial = copy.deepcopy(model)
        with torch.no_grad():
            for p in trial.layers[-1].parameters():
                p.add_(size * torch.randn(p.shape, dtype=p.dtype))
        assert objective(subject, trial, subject.y) - whole >= bound - tolerance


def test_linear_model_reads_the_input_itself():
    subject = builders.subject(nn.Linear(64, 10), weight_decay=DECAY)
    result = finding(subject)
    assert result.status == "certified"
    assert result.values["training_gap"].upper == pytest.approx(result.values["gap"].upper, rel=1e-9)


def test_frozen_bias_is_an_offset():
    model = builders.mlp(64, 12, 10, bias=True).double()
    model.layers[2].bias.requires_grad_(False)
    with torch.no_grad():
        model.layers[2].bias.copy_(torch.linspace(-2, 2, 10))
    subject = builders.subject(model, weight_decay=DECAY)
    result = finding(subject)
    assert result.status == "certified"
    whole = objective(subject, subject.model, subject.y)
    assert result.values["training_objective"].value == pytest.approx(whole, rel=1e-12)
    free = builders.subject(model.requires_grad_(True), weight_decay=DECAY)
    assert result.values["gap"].upper - result.values["gap"].lower < 1e-8
    assert finding(free).values["optimum"].upper != pytest.approx(result.values["optimum"].upper, rel=1e-3)


def frozen_head() -> nn.Module:
    model = builders.mlp()
    model.layers[-1].weight.requires_grad_(False)
    return model


class TiedEmbedding(nn.Module):
    """The output matrix is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


def tied() -> Subject:
    x = torch.arange(80).reshape(20, 4) % 20
    return Subject(TiedEmbedding(), x, x[:, 0], weight_decay=DECAY)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: builders.subject(), "weight decay was not given"),
        (lambda: builders.subject(weight_decay=0.0), "weight decay is 0"),
        (
            lambda: builders.subject(nn.Sequential(builders.mlp(), nn.Softmax(1)), weight_decay=DECAY),
            r"'softmax' in layer '1' \(Softmax\), not from a linear layer",
        ),
        (
            lambda: builders.subject(frozen_head(), weight_decay=DECAY),
            r"layer 'layers.4' \(Linear\) is frozen",
        ),
        (tied, r"the weight of layer 'head' \(Linear\) is shared with layer 'embedding'"),
        (
            lambda: builders.regression_subject(weight_decay=DECAY, loss=F.huber_loss),
            "the dual of the loss huber_loss is not known",
        ),
        (lambda: builders.subject(nets.branching_net, weight_decay=DECAY), "could not be traced"),
    ],
)
def test_what_does_not_apply_says_why(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert result.values == {}
    import re

    assert re.search(reason, result.reason), result.reason


def test_too_many_features_are_refused_with_their_size(monkeypatch):
    monkeypatch.setattr(head_problem, "FEATURE_BYTES", 1000)
    subject = builders.subject(weight_decay=DECAY)
    assert subject.reduced(HeadFeatures)._parts == []
    result = finding(subject)
    assert result.status == "not applicable"
    assert "features of 120 samples take" in result.reason


def test_nothing_is_kept_without_weight_decay():
    assert builders.subject().reduced(HeadFeatures)._parts == []


def test_a_spent_budget_still_gives_a_bound():
    subject = builders.subject(weight_decay=1e-6)
    subject.deadline = time.monotonic() - 1.0
    result = finding(subject)
    assert result.status == "certified"
    assert result.values["gap"].lower <= result.values["gap"].upper

"""OPT001: statuses and degrees of whole networks, their advice, and scaling by hand."""

from __future__ import annotations

import copy

import builders
import pytest
import torch
from fixtures import nets
from torch import Tensor, nn

from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.homogeneity import PositiveHomogeneity
from theodolite.theorems.subject import Subject


def finding(subject: Subject) -> Finding:
    result = evaluate(PositiveHomogeneity(), subject)
    assert result.status != "failed", result.traceback
    return result


class Function(nn.Module):
    """Submodules and a function that calls them."""

    def __init__(self, function, **parts: nn.Module) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def linear(a: int, b: int) -> nn.Module:
    return nn.Linear(a, b, bias=False)


def quadratic(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(s.a(x).square())


def projected(s: nn.Module, x: Tensor) -> Tensor:
    return s.c(s.b(s.a(x).relu()).relu() + s.e(s.d(x)))


HOMOGENEOUS = {
    "chain of four": (lambda: builders.mlp(64, 8, 8, 8, 10), 4.0, 1.0),
    "convolutions and pooling": (builders.conv_net, 3.0, 1.0),
    "leaky and dropped": (
        lambda: nn.Sequential(linear(64, 8), nn.LeakyReLU(0.2), nn.Dropout(0.5), linear(8, 10)),
        2.0,
        1.0,
    ),
    "quadratic activation": (lambda: Function(quadratic, a=linear(64, 8), b=linear(8, 10)), 3.0, 2.0),
    "projected skip": (
        lambda: Function(
            projected, a=linear(64, 8), b=linear(8, 8), c=linear(8, 10), d=linear(64, 8), e=linear(8, 8)
        ),
        3.0,
        1.0,
    ),
    "first bias": (lambda: nn.Linear(64, 10), 1.0, None),
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_degrees_that_are_proved(name):
    make, in_parameters, in_input = HOMOGENEOUS[name]
    subject = builders.subject(make().double())
    result = finding(subject)
    assert result.status == "certified"
    assert {h.status for h in result.hypotheses} == {"proved"}
    assert result.values["degree"].kind == "exact"
    assert result.values["degree"].value == in_parameters
    assert result.values["input_degree"].value == in_input
    assert result.advice == ""
    # and by hand: a factor on all parameters, and one on the input
    model, x = subject.model, subject.x[:5]
    for factor in (0.25, 3.0):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in scaled.parameters():
                parameter *= factor
            torch.testing.assert_close(scaled(x), factor**in_parameters * model(x), rtol=1e-9, atol=1e-12)
            if in_input is not None:
                torch.testing.assert_close(model(factor * x), factor**in_input * model(x))


def test_an_input_degree_that_does_not_exist_names_the_layer():
    value = finding(builders.subject(nn.Linear(64, 10))).values["input_degree"]
    assert value.value is None
    assert value.witness["layer_type"] == "Linear"


REFUTED = {
    "sigmoid": (lambda: nets.sigmoid_net, "layer '1' (Sigmoid)", "replace it by ReLU"),
    "bias": (lambda: nets.bias_net, "layer 'layers.2' (Linear) adds a bias", "remove the bias of 'layers.2'"),
    "batch norm": (lambda: nets.batch_norm_net, "layer '1' (BatchNorm1d)", "fold the normalization into"),
    "attention": (lambda: nets.attention_net, "(MultiheadAttention) applies a softmax", "linear attention"),
    "final sigmoid": (
        lambda: nn.Sequential(builders.mlp(), nn.Sigmoid()),
        "layer '1' (Sigmoid)",
        "put the Sigmoid of '1' into the loss",
    ),
    "identity skip": (
        lambda: Function(lambda s, x: s.b(x + s.a(x).relu()), a=linear(64, 64), b=linear(64, 10)),
        "adds terms of degree 0 and 1",
        "put as many weight layers on the skip connection",
    ),
    "slopes": (
        lambda: nn.Sequential(linear(64, 8), nn.PReLU(), linear(8, 10)),
        "layer '1' (PReLU) has trained slopes",
        "freeze the slopes",
    ),
    "limit": (
        lambda: nn.Sequential(linear(64, 8), nn.ReLU6(), linear(8, 10)),
        "layer '1' (ReLU6) compares terms",
        "replace the limit by a ReLU",
    ),
}


@pytest.mark.parametrize("name", REFUTED)
def test_refutations_have_a_witness_that_can_be_checked(name):
    make, reason, advice = REFUTED[name]
    subject = builders.subject(make())
    result = finding(subject)
    assert result.status == "refuted"
    assert result.values == {}
    assert reason in result.reason
    assert advice in result.advice
    witness = next(h.verdict.witness for h in result.hypotheses if h.status == "refuted")
    assert witness["layer"] in dict(subject.model.named_modules())
    assert witness["ratio"] != pytest.approx(witness["expected"], rel=1e-6)


def test_the_probe_of_a_sigmoid_by_hand():
    subject = builders.subject(nets.sigmoid_net)
    witness = next(h.verdict.witness for h in finding(subject).hypotheses if h.status == "refuted")
    model = copy.deepcopy(subject.model).double()
    x = subject.x[witness["sample"]][None].double()
    with torch.no_grad():
        before = model(x)[0, witness["output"]]
        for parameter in model.parameters():
            parameter *= witness["alpha"]
        after = model(x)[0, witness["output"]]
    assert float(after / before) == pytest.approx(witness["ratio"], rel=1e-6)


def test_open_questions_are_scores_never_certified():
    result = finding(builders.subject(nets.branching_net))
    assert result.status == "score"
    assert result.values["degree"].kind == "score"
    assert {h.name: h.status for h in result.hypotheses}[
        "positively homogeneous in the parameters"
    ] == "tested"


def test_tokens_have_no_input_degree():
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 6), linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mean(1))

    x = torch.randint(0, 20, (10, 4))
    result = finding(Subject(Bag(), x, x[:, 0] % 3))
    assert result.status == "certified"
    assert result.values["degree"].value == 2.0
    assert result.values["input_degree"].value is None
    assert "integers cannot be scaled" in result.values["input_degree"].note


def test_frozen_parameters_are_constants():
    assert finding(builders.subject(nets.frozen_net)).values["degree"].value == 2.0
    half_frozen = builders.mlp(bias=True)
    for name, parameter in half_frozen.named_parameters():
        parameter.requires_grad_("weight" in name)
    assert finding(builders.subject(half_frozen)).status == "refuted"  # constant shifts do not scale


def test_edges():
    bare = finding(builders.bare_subject())
    assert (bare.status, bare.reason) == ("not applicable", "the model has 0 parameters")
    single = finding(Subject(builders.mlp(3, 2, 1), torch.randn(1, 3), torch.randn(1, 1)))
    assert single.values["degree"].value == 2.0
    assert finding(builders.regression_subject()).status == "certified"

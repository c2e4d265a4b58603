"""OPT002: numbers of parallel and of zero subnetworks, and when the theorem has something to say."""

from __future__ import annotations

import builders
import pytest
import torch
from fixtures import nets
from torch import Tensor, nn

from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.parallel_subnetworks import ParallelSubnetworks
from theodolite.theorems.subject import Subject


def finding(subject: Subject) -> Finding:
    result = evaluate(ParallelSubnetworks(), subject)
    assert result.status != "failed", result.traceback
    return result


class Sum(nn.Module):
    """A sum of subnetworks."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)


def deep(seed: int) -> nn.Module:
    return builders.mlp(64, 4, 4, 10, seed=seed)


@pytest.mark.parametrize("width", [2, 16])
def test_units_of_a_hidden_layer_are_subnetworks(width):
    result = finding(builders.subject(builders.mlp(64, width, 10), n=30))
    assert result.status == "certified"
    assert {h.status for h in result.hypotheses} == {"proved"}
    assert result.values["subnetworks"].value == width
    assert result.values["zero_subnetworks"].value == 0.0
    assert f"r = {width:,} <= NK = 300 training outputs" in result.values["subnetworks"].note


def test_more_subnetworks_than_training_outputs():
    x, y = torch.randn(3, 4), torch.randn(3, 2)
    note = finding(Subject(builders.mlp(4, 7, 2), x, y)).values["subnetworks"].note
    assert "r = 7 > NK = 6 training outputs" in note


def test_zero_subnetworks_are_zero_throughout():
    model = builders.mlp(64, 8, 10)
    with torch.no_grad():
        model.layers[0].weight[2] = 0.0  # only the incoming weights: not a zero subnetwork
        model.layers[0].weight[5] = 0.0
        model.layers[2].weight[:, 5] = 0.0
    result = finding(builders.subject(model))
    assert result.values["zero_subnetworks"].value == 1.0
    note = result.values["zero_subnetworks"].note
    assert "this certifies nothing" in note


def test_sums_of_deep_networks():
    result = finding(builders.subject(Sum(deep(0), deep(1), deep(2))))
    assert result.status == "certified"
    assert result.values["subnetworks"].value == 3.0
    zero = deep(3)
    with torch.no_grad():
        for parameter in zero.parameters():
            parameter.zero_()
    assert finding(builders.subject(Sum(deep(0), zero))).values["zero_subnetworks"].value == 1.0


def test_a_dead_unit_is_one_more_subnetwork_and_a_permutation_none():
    model = builders.mlp(64, 5, 10)
    wider = builders.mlp(64, 6, 10)
    with torch.no_grad():
        wider.layers[0].weight[:5] = model.layers[0].weight
        wider.layers[2].weight[:, :5] = model.layers[2].weight
        wider.layers[2].weight[:, 5] = 0.0
    v = finding(builders.subject(wider)).values
    assert v["subnetworks"].value == 6.0
    assert v["zero_subnetworks"].value == 0.0  # its incoming weights are not zero


def test_frozen_features_make_the_units_above_them_parallel():
    result = finding(builders.subject(nets.frozen_net))
    assert result.status == "certified"
    assert result.values["subnetworks"].value == 16.0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: builders.mlp(64, 8, 8, 10), "mixes the units below it, so that all paths share"),
        (lambda: builders.mlp(64, 10), "is the only layer with parameters on its path"),
        (lambda: Sum(deep(0), builders.mlp(64, 5, 4, 10)), "different architectures"),
        (lambda: nets.tied_net, "mixes the units below it"),
    ],
)
def test_single_subnetworks_are_refuted_with_the_reason(make, reason):
    result = finding(builders.subject(make()))
    assert result.status == "refuted"
    assert result.reason.startswith("one subnetwork: ")
    assert reason in result.reason
    assert "sum several copies of a small network" in result.advice
    assert result.values == {}


def test_shared_parameters_are_not_parallel():
    part = deep(0)
    result = finding(builders.subject(Sum(part, part)))
    assert result.status == "refuted"
    assert "share the parameter" in result.reason


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.bare_subject, "the model has 0 parameters"),
        (lambda: builders.subject(builders.mlp(64, 8, 10, bias=True)), "adds a bias of degree 1"),
        (lambda: builders.subject(builders.constant_net()), "the network has degree 0 in its parameters"),
        (lambda: builders.subject(nets.branching_net), "needs the computation graph"),
    ],
)
def test_where_it_does_not_apply(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert reason in result.reason
    assert result.advice == ""


def test_one_output_regression_and_one_sample():
    x = torch.randn(1, 3)
    result = finding(Subject(builders.mlp(3, 2, 1), x, torch.zeros(1, 1)))
    assert result.status == "certified"
    assert "r = 2 > NK = 1" in result.values["subnetworks"].note

"""APP001 against sampling, its limit, part counts, and networks on which it has nothing to say."""

from __future__ import annotations

import re
from statistics import median

import builders
import pytest
import torch
from fixtures import nets
from torch import nn

from theodolite.reference.regions import regions_by_sampling
from theodolite.testing import check_theorem
from theodolite.theorems.approximation import regions as module
from theodolite.theorems.approximation.regions import ActivationRegions
from theodolite.theorems.base import evaluate
from theodolite.theorems.subject import Subject


def small(model, inputs=3, n=12, **options):
    torch.manual_seed(1)
    x = torch.randn(n, inputs)
    return Subject(model, x, (x[:, 0] > 0).long(), **options)


def net(*activations, width=6, inputs=3):
    torch.manual_seed(0)
    layers = []
    for activation in activations:
        layers += [nn.Linear(inputs, width), activation]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 2))


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Hardtanh(-0.5, 0.5)], ids=["ReLU", "leaky", "hardtanh"]
)
def test_counts_of_its_segments(activation):
    model = net(activation, activation)
    subject = small(model)
    pairs = module._pairs(subject)
    assert len({i for pair in pairs for i in pair}) == 12, "no point is in two segments"
    brute = [
        regions_by_sampling(model, subject.x[i], subject.x[j], samples=2001, resolution=1e-10)
        for i, j in pairs
    ]
    cells = [len(found[0]) + 1 for found in brute]
    pieces = [len(found[1]) + 1 for found in brute]
    lengths = [float((subject.x[j] - subject.x[i]).double().norm()) for i, j in pairs]
    truth = {
        "regions": median(cells),
        "regions_max": max(cells),
        "linear_pieces": median(pieces),
        "breakpoints_per_distance": (sum(cells) - len(cells)) / sum(lengths),
    }
    finding = check_theorem(ActivationRegions, lambda: small(model), truth=truth)
    assert finding.status == "certified"
    assert finding.values["regions"].witness == {"counts": cells}
    assert {v.kind for k, v in finding.values.items() if k != "log10_region_limit"} == {"exact"}
    most = finding.values["regions_max"].witness
    assert cells[pairs.index((most["from"], most["to"]))] == max(cells)


def test_tent_map_between_its_ends():
    """2^k pieces: nothing else on the segment from 0 to 1, and the limit of 3^k is not far above."""
    k, layers = 5, []
    for _ in range(k):
        first, second = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            first.weight.fill_(1.0)
            first.bias.copy_(torch.tensor([0.0, -0.5]))
            second.weight.copy_(torch.tensor([[2.0, -4.0]]))
        layers += [first, nn.ReLU(), second]
    x = torch.tensor([[0.0], [1.0]])
    values = ActivationRegions()(nn.Sequential(*layers), x, x).values
    assert values["regions"].value == values["linear_pieces"].value == 2**k
    assert values["breakpoints_per_distance"].value == 2**k - 1
    assert 10 ** values["log10_region_limit"].upper == pytest.approx(3**k)


def test_dead_and_duplicate_units_make_fewer_pieces_than_regions():
    model = net(nn.ReLU(), width=8)
    with torch.no_grad():
        model[2].weight[:, 4:] = 0.0
    values = evaluate(ActivationRegions(), small(model, n=40)).values
    assert values["linear_pieces"].value < values["regions"].value


def test_a_linear_network_has_one_region():
    values = evaluate(ActivationRegions(), small(nn.Linear(3, 2))).values
    assert values["regions"].value == values["regions_max"].value == values["linear_pieces"].value == 1
    assert values["log10_region_limit"].upper == 0.0


def test_a_spent_budget_counts_parts_and_says_so(monkeypatch):
    subject = builders.subject(builders.mlp(64, 40, 40, 10))
    whole = evaluate(ActivationRegions(), subject).values
    assert "regions_whole" not in whole
    monkeypatch.setattr(module, "ALLOWANCE", 2e4)
    monkeypatch.setattr(module, "BUDGET", 2e6)
    finding = evaluate(ActivationRegions(), builders.subject(builders.mlp(64, 40, 40, 10)))
    part = finding.values
    assert finding.status == "certified"
    assert "from its midpoint on" in part["regions"].note
    assert part["regions_whole"].kind == "bound"
    assert part["regions_whole"].upper is None
    counts = zip(part["regions"].witness["counts"], whole["regions"].witness["counts"], strict=True)
    assert all(few <= many for few, many in counts)
    assert part["regions_whole"].lower <= whole["regions"].value


@pytest.mark.parametrize("name", ["relu_net", "bias_net", "batch_norm_net", "residual_net", "tied_net"])
def test_networks_that_it_counts(name):
    finding = evaluate(ActivationRegions(), Subject(getattr(nets, name), *builders.digits_pairs(20)["train"]))
    assert finding.status == "certified"
    assert finding.values["regions"].value >= 1
    assert (
        max(finding.values["regions"].witness["counts"]) <= 10 ** finding.values["log10_region_limit"].upper
    )


NOTHING_TO_SAY = {
    "sigmoid_net": r"layer '1' \(Sigmoid\) is not piecewise linear in the input",
    "attention_net": "is not piecewise linear",
    "recurrent_net": r"layer 'lstm' \(LSTM\) is not piecewise linear in the input",
    "branching_net": "could not be traced",
}


@pytest.mark.parametrize("name", NOTHING_TO_SAY)
def test_not_applicable(name):
    finding = evaluate(ActivationRegions(), Subject(getattr(nets, name), *builders.digits_pairs(20)["train"]))
    assert finding.status == "not applicable"
    assert finding.values == {}
    assert re.search(NOTHING_TO_SAY[name], finding.reason), finding.reason


def test_tokens_and_equal_points_are_refused():
    tokens = evaluate(ActivationRegions(), builders.tokens_subject())
    assert tokens.status == "not applicable"
    assert "inputs have dtype torch.int64" in tokens.reason
    x = torch.ones(6, 3)
    same = evaluate(ActivationRegions(), Subject(net(nn.ReLU()), x, torch.zeros(6, dtype=torch.long)))
    assert same.status == "not applicable"
    assert "no two training points that differ" in same.reason


def test_an_operation_without_a_rule_is_not_called_curved():
    class Sorting(nn.Module):
        def forward(self, x):
            return x.sort(1)[0]

    finding = evaluate(ActivationRegions(), small(nn.Sequential(Sorting(), nn.Linear(3, 2))))
    assert finding.status == "not applicable"
    assert finding.reason == "no rule tells whether layer '0' (Sorting) is piecewise linear"
